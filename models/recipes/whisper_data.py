"""Batches for Whisper training: windows of features, prompts, time stamps, alignments."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.recipes.bank import Clip
from models.recipes.ctc_data import PhonemeSet
from models.recipes.features import whisper_log_mel
from models.recipes.mixing import Example, Mixer, Sentence
from models.recipes.whisper_tokens import (
    END,
    LANGUAGES,
    NO_SPEECH,
    NO_TIMESTAMPS,
    PREVIOUS,
    START,
    TRANSCRIBE,
    TRANSLATE,
    WhisperTokens,
    closing,
    opening,
)

FRAME_S = 0.02
WINDOW_S = 10.0
"""The window of the model; Whisper's 30 s would take three times the training."""
_IGNORE = -100
_SAMPLE_RATE_HZ = 16_000
_MOST_TOKENS = 440
_LONGEST_PROMPT = 223  # what faster-whisper keeps of the text before
_MOST_SENTENCES = 8


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum."""

    window_s: float
    batch: int
    flows: bool
    """Whether windows are cut from longer speech and may follow a prompt."""


@dataclass(frozen=True)
class Batch:
    """``targets`` are -100 where nothing is to be predicted; ``spans`` are first and last frames
    of each target token, empty (0, 0) where it has no place in time."""

    features: Tensor
    tokens: Tensor
    targets: Tensor
    spans: Tensor
    phonemes: Tensor
    frame_tokens: Tensor


@dataclass(frozen=True)
class _Token:
    identifier: int
    predicted: bool
    start_s: float = 0.0
    end_s: float = 0.0


class WhisperBatches:
    """Draws windows; the reduced vocabulary is used throughout."""

    def __init__(
        self,
        clips: list[Clip],
        tokens: WhisperTokens,
        phonemes: PhonemeSet,
        rng: np.random.Generator,
    ) -> None:
        self._mixer = Mixer(clips, rng)
        self._clips = [clip for clip in clips if clip.phonemes]
        self._tokens = tokens
        self._phonemes = phonemes
        self._rng = rng

    def next(self, stage: Stage) -> Batch:
        """A batch of windows of one stage."""
        examples = [self._example(stage) for _ in range(stage.batch)]
        sequences = [self._sequence(example, stage) for example in examples]
        frames = round(stage.window_s / FRAME_S)
        longest = max(map(len, sequences)) - 1
        tokens = torch.zeros(len(examples), longest, dtype=torch.long)
        targets = torch.full((len(examples), longest), _IGNORE)
        spans = torch.zeros(len(examples), longest, 2, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            reduced = torch.tensor(self._tokens.reduce(token.identifier for token in sequence))
            tokens[row, : len(sequence) - 1] = reduced[:-1]
            for column, token in enumerate(sequence[1:]):
                if token.predicted:
                    targets[row, column] = reduced[column + 1]
                    spans[row, column] = torch.tensor(_frames(token.start_s, token.end_s, frames))
            if not examples[row].sentences:
                targets[row, 0] = self._tokens.reduce([NO_SPEECH])[0]
        phonemes, frame_tokens = self._frame_targets(examples, frames)
        features = torch.stack([self._features(example, stage.window_s) for example in examples])
        return Batch(features, tokens, targets, spans, phonemes, frame_tokens)

    def _example(self, stage: Stage) -> Example:
        """An example of the stage.

        Windows of long audio are full, run over their end, and begin at the last time stamp of the
        one before: at a sentence or, if that was wrong, inside one.
        """
        rng = self._rng
        if not stage.flows:
            return self._mixer.example(stage.window_s - 0.1, (1, 1), 0.06, 0.07)
        longest_s = stage.window_s + (3.0 if rng.random() < 0.4 else -0.1)
        sentences = (_MOST_SENTENCES, _MOST_SENTENCES) if rng.random() < 0.6 else (1, 3)
        if rng.random() > 0.35:
            return self._mixer.example(longest_s, sentences, 0.06, 0.07)
        example = self._mixer.example(longest_s + 3.0, sentences, 0.0, 0.07)
        first = example.sentences[0]
        inside_s = float(rng.uniform(first.start_s, first.end_s))
        later = example.sentences[min(1, len(example.sentences) - 1)]
        starting_s = later.start_s + float(rng.uniform(-0.3, 0.05))
        return example.since(inside_s if rng.random() < 0.4 else max(starting_s, 0.0))

    def _features(self, example: Example, window_s: float) -> Tensor:
        """Normalised as faster-whisper does: by the loudest frame, zeros after the audio."""
        wave = np.concatenate([example.samples, np.zeros(400, np.float32)])
        kept = torch.from_numpy(wave[: round(window_s * _SAMPLE_RATE_HZ)])
        energies = whisper_log_mel(kept[None])
        peak = energies.max() + max(0.0, float(self._rng.uniform(-2.0, 1.0)))
        normal = (torch.maximum(energies[0], peak - 8.0) + 4.0) / 4.0
        window = torch.zeros(round(window_s * 100), 80)
        window[: len(normal)] = normal[: len(window)]
        if self._rng.random() < 0.5:
            low, start = int(self._rng.integers(72)), int(self._rng.integers(len(window)))
            window[:, low : low + int(self._rng.integers(1, 8))] = normal.mean()
            window[start : start + int(self._rng.integers(1, 15))] = normal.mean()
        return window

    def _sequence(self, example: Example, stage: Stage) -> list[_Token]:
        rng = self._rng
        language = example.sentences[0].language if example.sentences else _coin(rng, "ru", "en")
        task = TRANSLATE if rng.random() < 0.04 else TRANSCRIBE
        sequence = self._prompt(language) if stage.flows and rng.random() < 0.5 else []
        sequence += [
            _Token(START, False),
            _Token(LANGUAGES[language], bool(example.sentences)),
            _Token(task, False),
        ]
        if rng.random() < 0.4:
            sequence.append(_Token(NO_TIMESTAMPS, False))
            body = self._plain(example, stage.window_s)
        else:
            body = self._stamped(example, stage.window_s)
        return [*(sequence + body)[:_MOST_TOKENS], _Token(END, True)]

    def _prompt(self, language: str) -> list[_Token]:
        """Text of earlier windows, with its time stamps or without, of any length."""
        rng = self._rng
        ids: list[int] = []
        stamped = rng.random() < 0.7
        at_s, wanted = float(rng.uniform(0.0, 5.0)), int(rng.integers(1, _LONGEST_PROMPT + 1))
        while len(ids) < wanted:
            clip = self._clips[int(rng.integers(len(self._clips)))]
            if clip.language != language:
                continue
            text = [i for chunk in clip.text.split() for i in self._tokens.encode(chunk)]
            end_s = at_s + clip.duration_s
            ids += [opening(at_s), *text, closing(end_s)] if stamped else text
            at_s = end_s + 0.4 if end_s < WINDOW_S else float(rng.uniform(0.0, 0.4))
        return [_Token(PREVIOUS, False), *(_Token(i, False) for i in ids[-wanted:])]

    def _plain(self, example: Example, window_s: float) -> list[_Token]:
        return [
            _Token(identifier, True, start_s, end_s)
            for sentence in example.sentences
            for identifier, start_s, end_s in self._tokens.timed(sentence)
            if end_s < window_s
        ]

    def _stamped(self, example: Example, window_s: float) -> list[_Token]:
        """Segments between time stamps; one that the window cuts leaves only its start."""
        if not example.sentences:
            return [_Token(opening(0.0), True)]
        body: list[_Token] = []
        closed = 0
        for sentence in example.sentences:
            text = self._tokens.timed(sentence)
            if not text:
                continue
            start_s, end_s = max(text[0][1], 0.0), sentence.end_s
            if start_s >= window_s:
                break
            opened = max(opening(start_s), closed)  # Whisper's time stamps never fall
            body.append(_Token(opened, True, start_s - 0.1, start_s + 0.1))
            if end_s > window_s:
                break
            body += [_Token(i, True, begin, end) for i, begin, end in text]
            closed = closing(end_s)
            body.append(_Token(closed, True, end_s - 0.1, end_s + 0.1))
        return body or [_Token(opening(0.0), True)]

    def _frame_targets(self, examples: list[Example], frames: int) -> tuple[Tensor, Tensor]:
        phonemes = torch.zeros(len(examples), frames, dtype=torch.long)
        frame_tokens = torch.full((len(examples), frames), self._tokens.size - 1)
        for row, example in enumerate(examples):
            for sentence in example.sentences:
                self._fill_tokens(frame_tokens[row], sentence, frames)
            if example.sentences and not example.phonemes:
                phonemes[row] = _IGNORE
            for mnemonic, start_s, end_s in example.phonemes:
                first, last = _frames(start_s, end_s, frames)
                language = example.sentences[0].language
                phonemes[row, first:last] = self._phonemes.identify(language, mnemonic)
        return phonemes, frame_tokens

    def _fill_tokens(self, row: Tensor, sentence: Sentence, frames: int) -> None:
        for identifier, start_s, end_s in self._tokens.timed(sentence):
            first, last = _frames(start_s, end_s, frames)
            row[first:last] = self._tokens.reduce([identifier])[0]


def _frames(start_s: float, end_s: float, frames: int) -> tuple[int, int]:
    first = min(max(round(start_s / FRAME_S), 0), frames)
    return first, min(max(round(end_s / FRAME_S), first + (end_s > start_s)), frames)


def _coin(rng: np.random.Generator, first: str, second: str) -> str:
    return first if rng.random() < 0.5 else second
