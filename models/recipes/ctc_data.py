"""Batches for CTC training: features, piece strings, and the label of every frame."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.recipes.bank import Clip
from models.recipes.ctc_model import DELAY_FRAMES, PHONEME_DELAY_FRAMES, STRIDE
from models.recipes.features import HOP, Frontend, log_mel
from models.recipes.mixing import Example, Mixer
from models.recipes.pieces import FRAME_S, Pieces

_FRAME_SAMPLES = STRIDE * HOP
_IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Targets of a batch; ``spikes`` and ``phonemes`` are per output frame, -100 where unknown."""

    features: Tensor
    frontend: Frontend
    frames: Tensor
    targets: Tensor
    target_lengths: Tensor
    spikes: Tensor
    phonemes: Tensor


class PhonemeSet:
    """Classes for the auxiliary loss: espeak's mnemonics per language, pauses as class 0."""

    def __init__(self, clips: list[Clip]) -> None:
        names = {self._key(clip.language, name) for clip in clips for name, _, _ in clip.phonemes}
        self._ids = {name: i + 1 for i, name in enumerate(sorted(names - {""}))}

    def __len__(self) -> int:
        return len(self._ids) + 1

    @staticmethod
    def _key(language: str, mnemonic: str) -> str:
        plain = mnemonic.strip("',=%|")
        return "" if not plain or plain.startswith("_") else f"{language}:{plain}"

    def identify(self, language: str, mnemonic: str) -> int:
        return self._ids.get(self._key(language, mnemonic), 0)


class Batches:
    """An endless source of batches of similar length."""

    def __init__(
        self, clips: list[Clip], pieces: Pieces, phonemes: PhonemeSet, rng: np.random.Generator
    ) -> None:
        self._mixer = Mixer(clips, rng)
        self._pieces = pieces
        self._phonemes = phonemes
        self._rng = rng
        self._queue: list[list[Example]] = []

    def next(self, longest_s: float, most_sentences: int, batch_s: float) -> Batch:
        """A batch of about ``batch_s`` seconds of audio."""
        if not self._queue:
            self._queue = self._refill(longest_s, most_sentences, batch_s)
        return self.collate(self._queue.pop())

    def _refill(self, longest_s: float, most: int, batch_s: float) -> list[list[Example]]:
        examples: list[Example] = []
        while sum(example.duration_s for example in examples) < 6 * batch_s:
            examples.append(self._mixer.example(longest_s, (1, most), 0.03, 0.08))
        examples.sort(key=lambda example: example.duration_s)
        groups: list[list[Example]] = [[]]
        for example in examples:
            if groups[-1] and (len(groups[-1]) + 1) * example.duration_s > batch_s:
                groups.append([])
            groups[-1].append(example)
        self._rng.shuffle(groups)
        return groups

    def collate(self, examples: list[Example]) -> Batch:
        """Features and targets of examples, padded with silence to the longest plus the delay."""
        longest = max(len(example.samples) for example in examples)
        frames = -(-longest // _FRAME_SAMPLES) + DELAY_FRAMES + 1
        waves = np.zeros((len(examples), frames * _FRAME_SAMPLES), np.float32)
        for row, example in enumerate(examples):
            waves[row, : len(example.samples)] = example.samples
        frontend: Frontend = "nemo" if self._rng.random() < 0.5 else "gigaam"
        features = self._masked(log_mel(torch.from_numpy(waves), frontend))
        aligned = [self._pieces.align(example.words) for example in examples]
        lengths = [
            min(frames, -(-len(example.samples) // _FRAME_SAMPLES) + DELAY_FRAMES + 1)
            for example in examples
        ]
        spikes = torch.full((len(examples), frames), self._pieces.blank)
        phonemes = torch.zeros(len(examples), frames, dtype=torch.long)
        for row, example in enumerate(examples):
            for identifier, frame in aligned[row]:
                spikes[row, min(frame + DELAY_FRAMES, lengths[row] - 1)] = identifier
            self._fill_phonemes(phonemes[row], example)
            spikes[row, lengths[row] :] = _IGNORE
        flat = [identifier for pieces in aligned for identifier, _ in pieces]
        return Batch(
            features=features,
            frontend=frontend,
            frames=torch.tensor(lengths),
            targets=torch.tensor(flat, dtype=torch.long),
            target_lengths=torch.tensor([len(pieces) for pieces in aligned]),
            spikes=spikes,
            phonemes=phonemes,
        )

    def _masked(self, features: Tensor) -> Tensor:
        """Short stretches of time and bands of mels set to the mean, in most batches."""
        batch, frames, mels = features.shape
        if self._rng.random() < 0.3:
            return features
        mean = features.mean(dim=(1, 2))
        for row in range(batch):
            for _ in range(2):
                start = int(self._rng.integers(frames))
                features[row, start : start + int(self._rng.integers(2, 12))] = mean[row]
            low = int(self._rng.integers(mels))
            features[row, :, low : low + int(self._rng.integers(1, 10))] = mean[row]
        return features

    def _fill_phonemes(self, row: Tensor, example: Example) -> None:
        if not example.phonemes:
            if example.sentences:
                row.fill_(_IGNORE)
            return
        language = example.sentences[0].language
        for mnemonic, start_s, end_s in example.phonemes:
            first = int(start_s / FRAME_S + 0.5) + PHONEME_DELAY_FRAMES
            last = int(end_s / FRAME_S + 0.5) + PHONEME_DELAY_FRAMES
            row[first:last] = self._phonemes.identify(language, mnemonic)
