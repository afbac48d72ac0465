"""Demo and test audio: two-speaker calls, a stereo call, a meeting, silence and noise.

Each recording has a reference beside it: ``<name>.json`` (turns, words, emotions) and, for the
diarizers, ``<name>.rttm``. Voices are held out from training, and sentences wherever a line has
room for a sentence that was held out.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from models.recipes import demo_scripts, grammar, grammar_en, grammar_ru, synth
from models.recipes.acoustics import noise
from models.recipes.demo_scripts import AGENT, CUSTOMER, Script
from models.recipes.dialogues import Dialogue, Turn
from models.recipes.paths import DEMO
from models.recipes.speech_bank import trimmed
from models.recipes.synth import SAMPLE_RATE_HZ, Language, Voice

FOLDER = DEMO / "audio"
SEED = 51
MEETING_S = 600.0
PEAK = 0.6
_SLOTS: dict[Language, dict[str, str]] = {"ru": grammar_ru.SLOTS, "en": grammar_en.SLOTS}
_TRIES, _DRAWS = 100, 20
_OPUS_LEVEL = {1: 0.955, 2: 0.93}

logger = logging.getLogger(__name__)


def worded(template: str, slots: dict[str, str], rng: np.random.Generator) -> str:
    """The template with its slots filled, as a held-out sentence if it has any."""
    sentence = grammar.fill(template, slots, rng)
    for _ in range(_TRIES):
        if _is_heldout(sentence):
            break
        sentence = grammar.fill(template, slots, rng)
    return sentence


def texts(script: Script, rng: np.random.Generator) -> list[str]:
    """The lines of a call, its shared slots drawn so that most lines are held out."""
    best: list[str] = []
    for _ in range(_DRAWS):
        slots = dict(_SLOTS[script.language])
        for name, options in script.shared.items():
            slots[name] = grammar.fill("{" + name + "}", slots | {name: options}, rng)
        drawn = [worded(template, slots, rng) for _, _, template in script.lines]
        best = max(best, drawn, key=lambda lines: sum(map(_is_heldout, lines)))
    return best


def _is_heldout(sentence: str) -> bool:
    return grammar.split_of(sentence) == "heldout"


def person(language: Language, variant: str, rng: np.random.Generator) -> Voice:
    """An ordinary voice of one espeak variant."""
    voice = synth.random_voice(language, [variant], rng)
    return replace(voice, rate_wpm=int(rng.integers(140, 160)))


class Stage:
    """Where turns are placed one after another, each speaker on a track of their own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._placed: list[tuple[int, str, np.ndarray]] = []
        self._turns: list[Turn] = []
        self.end_s = 0.3

    def add_turn(self, speaker: str, voice: Voice, emotion: str, text: str, gap_s: float) -> None:
        """Add a turn ``gap_s`` after the end of the last one (before it if negative)."""
        spoken = trimmed(synth.speak(text, synth.styled(voice, emotion, self._rng)))
        first = round(max(self.end_s + gap_s, 0.0) * SAMPLE_RATE_HZ)
        start_s = first / SAMPLE_RATE_HZ
        words = tuple((word, start_s + begin, start_s + end) for word, begin, end in spoken.words)
        self._placed.append((first, speaker, spoken.samples))
        self._turns.append(Turn(speaker, words[0][1], words[-1][2], text, emotion, words))
        self.end_s = start_s + len(spoken.samples) / SAMPLE_RATE_HZ

    def tracks(self, speakers: list[str]) -> np.ndarray:
        """One track per speaker, [samples, speakers]; their sum peaks at ``PEAK``."""
        last = max(first + len(samples) for first, _, samples in self._placed)
        canvas = np.zeros((last + round(0.4 * SAMPLE_RATE_HZ), len(speakers)), np.float32)
        for first, speaker, samples in self._placed:
            canvas[first : first + len(samples), speakers.index(speaker)] += samples
        return canvas * (PEAK / max(float(np.abs(canvas.sum(1)).max()), 1e-6))

    def dialogue(self) -> Dialogue:
        """Everything mixed to one channel."""
        speakers = sorted({turn.speaker for turn in self._turns})
        return Dialogue(self.tracks(speakers).sum(1), tuple(self._turns))


def perform(script: Script, seed: int) -> Stage:
    """Speak a script: answers follow quickly, one speaker's own sentences after a breath."""
    rng = np.random.default_rng([SEED, seed])
    voices = {role: person(script.language, name, rng) for role, name in script.roles.items()}
    stage, before = Stage(rng), ""
    for (role, emotion, _), text in zip(script.lines, texts(script, rng), strict=True):
        gap_s = float(rng.uniform(0.25, 0.45) if role == before else rng.uniform(0.3, 0.6))
        stage.add_turn(role, voices[role], emotion, text, gap_s)
        before = role
    return stage


def meeting(duration_s: float = MEETING_S) -> Dialogue:
    """A meeting of four: mostly calm, at times two at once."""
    rng = np.random.default_rng([SEED, 4])
    people = {
        name: person("ru", variant, rng) for name, variant in demo_scripts.MEETING_VOICES.items()
    }
    names, speaker, stage = list(people), "", Stage(rng)
    while stage.end_s < duration_s - 5.0:
        topic = str(
            rng.choice(
                list(demo_scripts.MEETING_TOPICS), p=list(demo_scripts.MEETING_TOPICS.values())
            )
        )
        follower = speaker if speaker and rng.random() < 0.35 else str(rng.choice(names))
        overlaps = follower != speaker and rng.random() < 0.12
        gap_s = float(-rng.uniform(0.2, 0.8) if overlaps else rng.uniform(0.2, 1.1))
        text = grammar.sentences("ru", "heldout", 1, int(rng.integers(2**31)), topic)[0]
        emotion = demo_scripts.MEETING_MOODS.get(topic, "neutral")
        stage.add_turn(follower, people[follower], emotion, text, gap_s)
        speaker = follower
    return stage.dialogue()


def write_reference(
    name: str, language: Language | None, seconds: float, turns: list[Turn]
) -> None:
    """``<name>.json`` for everyone and ``<name>.rttm`` for diarizers."""
    reference = {
        "language": language,
        "duration": round(seconds, 3),
        "turns": [
            {
                "speaker": turn.speaker,
                "start": round(turn.start_s, 3),
                "end": round(turn.end_s, 3),
                "text": turn.text,
                "emotion": turn.emotion,
                "words": [
                    {"word": word, "start": round(start_s, 3), "end": round(end_s, 3)}
                    for word, start_s, end_s in turn.words
                ],
            }
            for turn in turns
        ],
    }
    text = json.dumps(reference, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    rows = sorted((*stretch, turn.speaker) for turn in turns for stretch in turn.stretches())
    if rows:
        lines = [
            f"SPEAKER {name} 1 {start_s:.3f} {end_s - start_s:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
            for start_s, end_s, speaker in rows
        ]
        (FOLDER / f"{name}.rttm").write_text("".join(lines), encoding="utf-8")


def write_audio(path: Path, samples: np.ndarray) -> None:
    """FLAC, or Opus at speech rates, by the name's suffix."""
    if path.suffix == ".flac":
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16", compression_level=1.0)
        return
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    soundfile.write(
        path,
        samples,
        SAMPLE_RATE_HZ,
        format="OGG",
        subtype="OPUS",
        compression_level=_OPUS_LEVEL[channels],
    )


def write_dialogue(file_name: str, language: Language, dialogue: Dialogue) -> None:
    """A mono recording and its references."""
    write_audio(FOLDER / file_name, dialogue.samples)
    seconds = len(dialogue.samples) / SAMPLE_RATE_HZ
    write_reference(Path(file_name).stem, language, seconds, list(dialogue.turns))
    logger.info("%s: %.1f s, %d turns", file_name, seconds, len(dialogue.turns))


def main() -> None:
    """Write every recording of the demo."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_dialogue("dialogue-ru.flac", "ru", perform(demo_scripts.LOST_ORDER_RU, 1).dialogue())
    write_dialogue("dialogue-en.flac", "en", perform(demo_scripts.LOST_ORDER_EN, 2).dialogue())
    stage = perform(demo_scripts.TICKET_RU, 3)
    tracks = stage.tracks([AGENT, CUSTOMER])
    write_audio(FOLDER / "call-stereo.opus", tracks)
    call = stage.dialogue()
    write_reference("call-stereo", "ru", len(tracks) / SAMPLE_RATE_HZ, list(call.turns))
    write_dialogue("meeting-10min.opus", "ru", meeting())
    quiet = np.zeros(5 * SAMPLE_RATE_HZ, np.float32)
    write_audio(FOLDER / "silence.flac", quiet)
    hiss = 0.02 * noise(len(quiet), np.random.default_rng(SEED), colour=1.0)
    write_audio(FOLDER / "noise.flac", hiss)
    for name in ("silence", "noise"):
        write_reference(name, None, 5.0, [])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
