"""Generated speech with exact word and phoneme times, by libespeak-ng through ctypes.

Text and a :class:`Voice` go in, an :class:`Utterance` comes out:

    >>> utterance = speak("Good morning.", Voice("en", "en-us+f2", 170, 50, 50, 100))
    >>> [word for word, _, _ in utterance.words]
    ['Good', 'morning']

The library keeps one voice per process, so a process pool scales and threads do not.
"""

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import espeakng_loader
import numpy as np
import soxr

Language = Literal["ru", "en"]
Span = tuple[str, float, float]

SAMPLE_RATE_HZ = 16_000
EMOTIONS = ("angry", "sad", "neutral", "positive")

_SYNCHRONOUS = 0x02
_PHONEME_EVENTS_NO_EXIT = 0x8001
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_HEADROOM = 0.55  # at espeak's own level many variants clip
_END, _WORD, _PHONEME = 0, 1, 7
_WORD_PATTERN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_BASES: dict[Language, tuple[str, ...]] = {
    "ru": ("ru",),
    "en": ("en-us", "en", "en-gb-x-rp", "en-us-nyc"),
}
# Robots, whispers, croaks and copies of another voice's settings are left out of both sets.
# fmt: off
_TRAIN_VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f4", "f5", "adam", "Alex", "Alicia",
    "Andrea", "Andy", "anika", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris",
    "caleb", "david", "Denis", "Diogo", "ed", "edward", "Gene", "grandma", "gustave",
    "Henrique", "Hugo", "ian", "john", "kaukovalta", "Lee", "linda", "Mario", "max", "Michael",
    "michel", "miguel", "Mike", "pablo", "paul", "pedro", "quincy", "Reed", "rob", "robert",
    "sandro", "shelby", "steph", "travis", "victor", "zac",
)
_HELDOUT_VARIANTS = (
    "m6", "m8", "f3", "Gene2", "edward2", "iven2", "marcelo", "mike2", "steph2", "Jacky",
)
# fmt: on


@dataclass(frozen=True)
class Voice:
    """How a sentence is spoken; ``variant`` is an espeak voice such as ``ru+f2``."""

    language: Language
    variant: str
    rate_wpm: int
    pitch: int
    pitch_range: int
    volume: int


@dataclass(frozen=True)
class Utterance:
    """Speech as mono float32 at 16 kHz; times are seconds from its first sample."""

    samples: np.ndarray
    words: tuple[Span, ...]
    phonemes: tuple[Span, ...]
    text: str
    voice: Voice


def train_voices(language: Language) -> list[str]:
    """Voices for training."""
    return [f"{base}+{variant}" for base in _BASES[language] for variant in _TRAIN_VARIANTS]


def heldout_voices(language: Language) -> list[str]:
    """Voices kept for evaluation."""
    bases = _BASES[language][:2]
    return [f"{base}+{variant}" for base in bases for variant in _HELDOUT_VARIANTS]


def random_voice(language: Language, names: list[str], rng: np.random.Generator) -> Voice:
    """A voice of ``names`` with an ordinary rate, pitch and level drawn at random."""
    return Voice(
        language=language,
        variant=names[int(rng.integers(len(names)))],
        rate_wpm=int(rng.integers(135, 196)),
        pitch=int(rng.integers(35, 66)),
        pitch_range=int(rng.integers(35, 66)),
        volume=100,
    )


def styled(voice: Voice, emotion: str, rng: np.random.Generator) -> Voice:
    """The same voice in an emotional manner: prosody only, the words stay as clear."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def bounded(value: float, low: int, high: int) -> int:
        return int(min(max(round(value), low), high))

    if emotion == "neutral":
        return replace(voice, pitch_range=bounded(voice.pitch_range, 40, 60), volume=100)
    if emotion == "angry":
        rate, pitch, span, volume = between(1.2, 1.35), between(5, 15), between(88, 99), 160
    elif emotion == "sad":
        rate, pitch, span, volume = between(0.7, 0.82), between(-28, -18), between(5, 18), 55
    elif emotion == "positive":
        rate, pitch, span, volume = between(1.02, 1.14), between(22, 34), between(75, 95), 110
    else:
        raise ValueError(f"unknown emotion {emotion!r}: one of {', '.join(EMOTIONS)}")
    return replace(
        voice,
        rate_wpm=bounded(voice.rate_wpm * rate, 100, 245),
        pitch=bounded(voice.pitch + pitch, 5, 95),
        pitch_range=int(span),
        volume=volume,
    )


def speak(text: str, voice: Voice) -> Utterance:
    """Speak ``text`` with ``voice``."""
    engine = _engine()
    pcm, word_events, phoneme_events = engine.run(text, voice)
    samples = soxr.resample(pcm, engine.sample_rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    end_s = len(samples) / SAMPLE_RATE_HZ
    phonemes = _phoneme_spans(phoneme_events, end_s)
    return Utterance(
        samples=np.clip(samples, -1.0, 1.0),
        words=_word_spans(text, word_events, phonemes, end_s),
        phonemes=phonemes,
        text=text,
        voice=voice,
    )


def _phoneme_spans(events: list[tuple[str, float]], end_s: float) -> tuple[Span, ...]:
    starts = [start_s for _, start_s in events] + [end_s]
    return tuple(
        (name, start_s, max(starts[i + 1], start_s)) for i, (name, start_s) in enumerate(events)
    )


def _is_pause(mnemonic: str) -> bool:
    return mnemonic == "" or mnemonic.startswith("_")


def _word_spans(
    text: str, events: list[tuple[int, float]], phonemes: tuple[Span, ...], end_s: float
) -> tuple[Span, ...]:
    """Words of ``text`` with times; words that espeak joins share their joint time by length."""
    tokens = [(match.group(), match.start(), match.end()) for match in _WORD_PATTERN.finditer(text)]
    groups: list[tuple[float, list[str]]] = []
    pending = sorted(events)
    for word, _, stop in tokens:
        started = [start_s for position, start_s in pending if position < stop]
        pending = pending[len(started) :]
        if started or not groups:
            groups.append((min(started, default=0.0), [word]))
        else:
            groups[-1][1].append(word)
    limits = [start_s for start_s, _ in groups[1:]] + [end_s]
    spans: list[Span] = []
    for (start_s, words), limit_s in zip(groups, limits, strict=True):
        voiced = [
            (begin, end)
            for name, begin, end in phonemes
            if not _is_pause(name) and start_s - 0.002 <= begin < limit_s - 0.002
        ]
        begin_s = voiced[0][0] if voiced else start_s
        stop_s = min(voiced[-1][1], limit_s) if voiced else limit_s
        letters = sum(map(len, words))
        for word in words:
            step_s = (stop_s - voiced[0][0] if voiced else limit_s - start_s) * len(word) / letters
            spans.append((word, begin_s, begin_s + step_s))
            begin_s += step_s
    return tuple(spans)


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Engine:
    """The library of this process; it calls back with samples and events while it speaks."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = espeakng_loader.get_data_path().encode()
        self.sample_rate_hz = int(
            self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_path, _PHONEME_EVENTS_NO_EXIT)
        )
        if self.sample_rate_hz <= 0:
            raise RuntimeError("espeak-ng did not start: its voices were not found")
        self._receiver: Callable[..., int] = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._receiver)
        self._clear()

    def _clear(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._words: list[tuple[int, float]] = []
        self._phonemes: list[tuple[str, float]] = []

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self._blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _END:
            event = events[index]
            start_s = event.audio_position / 1000.0
            if event.type == _WORD:
                self._words.append((event.text_position - 1, start_s))
            elif event.type == _PHONEME:
                name = bytes(event.id.string).split(b"\0")[0].decode("utf-8", "ignore")
                self._phonemes.append((name, start_s))
            index += 1
        return 0

    def run(
        self, text: str, voice: Voice
    ) -> tuple[np.ndarray, list[tuple[int, float]], list[tuple[str, float]]]:
        """Samples at the library's rate, word events (character, second), phoneme events."""
        library = self._library
        if library.espeak_SetVoiceByName(voice.variant.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.variant!r}")
        set_parameter = library.espeak_SetParameter
        set_parameter(_RATE, voice.rate_wpm, 0)
        set_parameter(_PITCH, voice.pitch, 0)
        set_parameter(_RANGE, voice.pitch_range, 0)
        set_parameter(_VOLUME, round(voice.volume * _HEADROOM), 0)
        self._clear()
        data = text.encode() + b"\0"
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        pcm = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.int16)
        return pcm.astype(np.float32) / 32768.0, self._words, self._phonemes


@cache
def _engine() -> _Engine:
    return _Engine()
