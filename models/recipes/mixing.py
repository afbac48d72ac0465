"""Training examples: sentences put one after another, with pauses, noise, gain and telephone band.

Every word and phoneme keeps its exact time, so alignment losses and time stamps cost nothing.
"""

from dataclasses import dataclass

import numpy as np
import soxr

from models.recipes.bank import Clip
from models.recipes.synth import Span

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Sentence:
    """One sentence (or string of digits) inside an example."""

    text: str
    language: str
    words: tuple[Span, ...]

    @property
    def start_s(self) -> float:
        return self.words[0][1]

    @property
    def end_s(self) -> float:
        return self.words[-1][2]


@dataclass(frozen=True)
class Example:
    """A waveform in [-1, 1] with its transcript."""

    samples: np.ndarray
    sentences: tuple[Sentence, ...]
    phonemes: tuple[Span, ...]

    @property
    def words(self) -> tuple[Span, ...]:
        return tuple(word for sentence in self.sentences for word in sentence.words)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    def since(self, start_s: float) -> "Example":
        """What is left from ``start_s`` on; words that began earlier get times below zero."""
        first = round(start_s * SAMPLE_RATE_HZ)
        shift_s = -first / SAMPLE_RATE_HZ
        sentences = tuple(
            Sentence(sentence.text, sentence.language, _shift(sentence.words, shift_s))
            for sentence in self.sentences
            if sentence.words[-1][1] >= start_s
        )
        spans = _shift(self.phonemes, shift_s) if sentences else ()
        phonemes = tuple(span for span in spans if span[2] > 0)
        return Example(self.samples[first:], sentences, phonemes)


class Mixer:
    """Draws examples from the clips of a bank; one generator makes a run repeatable."""

    def __init__(self, clips: list[Clip], rng: np.random.Generator) -> None:
        self._rng = rng
        self._speech = {
            language: [clip for clip in clips if clip.language == language and clip.phonemes]
            for language in ("ru", "en")
        }
        self._digits: dict[str, list[Clip]] = {}
        for clip in clips:
            if not clip.phonemes:
                self._digits.setdefault(clip.voice, []).append(clip)
        self._tracks = self._noise_tracks()

    def example(
        self,
        longest_s: float,
        sentences: tuple[int, int],
        quiet_share: float,
        digit_share: float,
    ) -> Example:
        """An augmented example of fewest to most ``sentences`` or of no speech at all."""
        draw = self._rng.random()
        if draw < quiet_share:
            silence = np.zeros(int(self._rng.uniform(1.0, longest_s) * SAMPLE_RATE_HZ), np.float32)
            return Example(self._augment(silence, spoken=False), (), ())
        if draw < quiet_share + digit_share and self._digits:
            example = self._digit_string(longest_s)
        else:
            example = self._speech_string(longest_s, sentences)
        return Example(self._augment(example.samples), example.sentences, example.phonemes)

    def _pick(self, clips: list[Clip]) -> Clip:
        return clips[int(self._rng.integers(len(clips)))]

    def _speech_string(self, longest_s: float, sentences: tuple[int, int]) -> Example:
        rng = self._rng
        language = "ru" if rng.random() < 0.5 else "en"
        wanted = int(rng.integers(sentences[0], sentences[1] + 1))
        gap_s = (0.0, 0.5) if rng.random() < 0.8 else (0.5, 2.0)
        pieces: list[tuple[Clip, float]] = []
        length_s = 0.0
        for number in range(wanted):
            if number and rng.random() < 0.05:
                language = "en" if language == "ru" else "ru"
            clip = self._pick(self._speech[language])
            lead_s = float(rng.uniform(*gap_s)) if number == 0 else float(rng.uniform(0.1, 1.2))
            if pieces and length_s + lead_s + clip.duration_s > longest_s:
                break
            pieces.append((clip, lead_s))
            length_s += lead_s + clip.duration_s
        return self._join(pieces, tail_s=float(rng.uniform(0.0, 0.5)))

    def _digit_string(self, longest_s: float) -> Example:
        rng = self._rng
        speakers = sorted(self._digits)
        clips = self._digits[speakers[int(rng.integers(len(speakers)))]]
        pieces: list[tuple[Clip, float]] = []
        length_s = 0.0
        for _ in range(int(rng.integers(1, 9))):
            clip, lead_s = self._pick(clips), float(rng.uniform(0.02, 0.3))
            if pieces and length_s + lead_s + clip.duration_s > longest_s:
                break
            pieces.append((clip, lead_s))
            length_s += lead_s + clip.duration_s
        joined = self._join(pieces, tail_s=float(rng.uniform(0.0, 0.5)))
        words = joined.words
        text = " ".join(word for word, _, _ in words)
        spoken = Sentence(text[0].upper() + text[1:] + ".", "en", words)
        return Example(joined.samples, (spoken,), ())

    def _join(self, pieces: list[tuple[Clip, float]], tail_s: float) -> Example:
        blocks: list[np.ndarray] = []
        spoken: list[Sentence] = []
        phonemes: list[Span] = []
        at = 0
        for clip, lead_s in pieces:
            lead = int(lead_s * SAMPLE_RATE_HZ)
            blocks.append(np.zeros(lead, np.float32))
            at += lead
            level = 10.0 ** (self._rng.uniform(-6.0, 3.0) / 20.0)
            blocks.append(clip.samples.astype(np.float32) * np.float32(level / 32768.0))
            offset_s = at / SAMPLE_RATE_HZ
            spoken.append(Sentence(clip.text, clip.language, _shift(clip.words, offset_s)))
            phonemes.extend(_shift(clip.phonemes, offset_s))
            at += len(clip.samples)
        blocks.append(np.zeros(int(tail_s * SAMPLE_RATE_HZ), np.float32))
        return Example(np.concatenate(blocks), tuple(spoken), tuple(phonemes))

    def _augment(self, samples: np.ndarray, spoken: bool = True) -> np.ndarray:
        rng = self._rng
        level = 10.0 ** (rng.uniform(-24.0, 6.0) / 20.0)
        if spoken and rng.random() < 0.6:
            power = float(np.mean(samples**2)) + 1e-9
            noise = self._noise(len(samples))
            samples = samples + noise * np.sqrt(power / 10.0 ** (rng.uniform(8.0, 35.0) / 10.0))
        elif not spoken and rng.random() < 0.75:
            samples = samples + self._noise(len(samples)) * 10.0 ** (rng.uniform(-60, -15) / 20.0)
        if rng.random() < 0.2:
            narrow = soxr.resample(samples, SAMPLE_RATE_HZ, 8_000, quality="LQ")
            samples = soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ, quality="LQ")
        clipped: np.ndarray = np.clip(samples * level, -1.0, 1.0)
        return clipped.astype(np.float32)

    def _noise(self, length: int) -> np.ndarray:
        """White, pink or babble noise of about unit power."""
        rng = self._rng
        track = self._tracks[int(rng.integers(len(self._tracks)))]
        turned = np.roll(track, int(rng.integers(len(track))))
        return np.asarray(np.resize(turned, length))

    def _noise_tracks(self) -> list[np.ndarray]:
        length = 1 << 19
        tracks = []
        for slope in (0.0, 0.0, 0.25, 0.5, 0.5, 0.75):
            white = np.fft.rfft(self._rng.standard_normal(length, dtype=np.float32))
            coloured = white / np.maximum(np.arange(len(white)), 20.0) ** slope
            tracks.append(np.fft.irfft(coloured, length).astype(np.float32))
        for _ in range(2):
            babble = np.zeros(length, np.float32)
            for clip in (self._pick(self._speech[key]) for key in ("ru", "en") * 40):
                at = int(self._rng.integers(length - len(clip.samples)))
                babble[at : at + len(clip.samples)] += clip.samples
            tracks.append(babble)
        return [track / np.float32(np.sqrt(np.mean(track**2)) + 1e-6) for track in tracks]


def _shift(spans: tuple[Span, ...], offset_s: float) -> tuple[Span, ...]:
    return tuple((label, start + offset_s, end + offset_s) for label, start, end in spans)
