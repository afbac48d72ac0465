"""The speaker embeddings: an x-vector for demo-pyannote, a small one for the light backend.

Both learn to distinguish every espeak variant in three throats and the real speakers of the spoken
digits, across languages, pitches and moods, with an additive angular margin.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import XVectorMFCC
from torch import Tensor, nn

from models.recipes.acoustics import other_throat, recorded
from models.recipes.dialogues import THROATS
from models.recipes.digits import digit_recordings
from models.recipes.measurements import Stopwatch, record
from models.recipes.paths import DEMO
from models.recipes.pyannote_format import save_checkpoint, save_plda
from models.recipes.quantisation import eight_bit_xvector
from models.recipes.speech_bank import TRAIN, Clip, bank
from models.recipes.synth import SAMPLE_RATE_HZ

FOLDER = DEMO / "demo-pyannote"
CHECKPOINT = FOLDER / "embedding" / "pytorch_model.bin"
SEED = 41
STEPS = 1200
BATCH = 64
LEARNING_RATE = 2e-3
DIMENSION = 64
SHORTEST_S, LONGEST_S = 1.0, 4.0
_MARGIN, _SCALE = 0.2, 24.0

logger = logging.getLogger(__name__)


def xvector() -> XVectorMFCC:
    """pyannote's x-vector on 20 ms frames, with a short embedding."""
    spectrum = {"n_fft": 512, "win_length": 400, "hop_length": 320, "n_mels": 64}
    net = XVectorMFCC(
        mfcc={"n_mfcc": 40, "log_mels": True, "melkwargs": spectrum}, dimension=DIMENSION
    )
    net.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=LONGEST_S
    )
    return net


class Crops:
    """Random crops of equal length with the class of their speaker."""

    def __init__(self, clips: list[Clip], digits: dict[str, np.ndarray], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        streams: dict[str, list[np.ndarray]] = defaultdict(list)
        for clip in clips:
            streams[clip.speaker].append(clip.samples)
        self._streams = [(np.concatenate(streams[name]), t) for name in streams for t in THROATS]
        self._streams += [(stream, 1.0) for stream in digits.values()]

    @property
    def classes(self) -> int:
        """Number of speakers to distinguish."""
        return len(self._streams)

    def batch(self, size: int = BATCH) -> tuple[Tensor, Tensor]:
        """Waveforms [B, samples] of one random length and their speakers [B]."""
        count = round(self._rng.uniform(SHORTEST_S, LONGEST_S) * SAMPLE_RATE_HZ)
        labels = self._rng.choice(self.classes, size, replace=size > self.classes)
        rows = np.stack([self._crop(int(label), count) for label in labels])
        return torch.from_numpy(rows), torch.from_numpy(labels)

    def _crop(self, label: int, count: int) -> np.ndarray:
        stream, throat = self._streams[label]
        needed = int(count * throat) + 8
        start = int(self._rng.integers(len(stream) - needed))
        samples = stream[start : start + needed].astype(np.float32) / 32768.0
        if throat != 1.0:
            samples = other_throat(samples, throat)
        gain = 10 ** (self._rng.uniform(-8.0, 8.0) / 20)
        return recorded(gain * samples[:count], self._rng)


def spoken_digits() -> dict[str, np.ndarray]:
    """The real speakers of the spoken digits, each one stream; empty without the data set."""
    takes: dict[str, list[np.ndarray]] = defaultdict(list)
    for recording in digit_recordings("train"):
        takes[recording.speaker].append(recording.samples)
    return {name: np.concatenate(parts) for name, parts in takes.items()}


class AngularMargin(nn.Module):
    """Softmax over cosines with a margin on the true speaker."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, DIMENSION))

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Mean cross-entropy."""
        unit = nn.functional.normalize
        cosines = (unit(embeddings) @ unit(self.centres).T).clamp(-1 + 1e-6, 1 - 1e-6)
        true = nn.functional.one_hot(labels, len(self.centres)).bool()
        margined = torch.where(true, torch.cos(torch.acos(cosines) + margin), cosines)
        return nn.functional.cross_entropy(_SCALE * margined, labels)


def train(embed: nn.Module, features: Callable[[Tensor], Tensor], crops: Crops, steps: int) -> None:
    """Train ``embed`` (features to embeddings) in place; the margin grows over the first half."""
    head = AngularMargin(crops.classes)
    parameters = [*embed.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    embed.train()
    running = 0.0
    for step in range(steps):
        waveforms, labels = crops.batch()
        with torch.no_grad():
            inputs = features(waveforms)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = embed(inputs)
        loss = head(embeddings.float(), labels, _MARGIN * min(2 * step / steps, 1.0))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 25 == 24:
            logger.info("embedding step %d loss %.3f", step + 1, running)
    embed.eval()


class TdnnPart(nn.Module):
    """An x-vector after its features: what is trained."""

    def __init__(self, net: XVectorMFCC) -> None:
        super().__init__()
        self.tdnns, self.pool, self.embedding = net.tdnns, net.stats_pool, net.embedding

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings [B, dimension] of features [B, coefficients, frames]."""
        hidden = features
        for layer in self.tdnns:
            hidden = layer(hidden)
        embeddings: Tensor = self.embedding(self.pool(hidden.float()))
        return embeddings


def labelled_embeddings(
    net: Callable[[Tensor], Tensor], crops: Crops, batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of fresh crops and their speakers."""
    found, speakers = [], []
    with torch.no_grad():
        for _ in range(batches):
            waveforms, labels = crops.batch()
            found.append(net(waveforms).numpy())
            speakers.append(labels.numpy())
    return np.concatenate(found), np.concatenate(speakers)


def train_xvector(crops: Crops, steps: int = STEPS) -> XVectorMFCC:
    """A trained x-vector."""
    torch.manual_seed(SEED)
    net = xvector()
    train(TdnnPart(net), net.mfcc, crops, steps)
    return net.eval()


def save(net: XVectorMFCC, crops: Crops, checkpoint: Path = CHECKPOINT) -> None:
    """Write the x-vector with 8-bit weights, and a PLDA of its embeddings."""
    save_checkpoint(net, checkpoint, eight_bit_xvector(net))
    found = labelled_embeddings(lambda waveforms: net(waveforms[:, None]), crops, batches=20)
    save_plda(checkpoint.parents[1] / "plda", *found)


def main() -> None:
    """Train the x-vector on the bank and the spoken digits and write it."""
    torch.set_num_threads(1)
    crops = Crops(bank(TRAIN), spoken_digits(), SEED)
    watch = Stopwatch()
    save(train_xvector(crops), crops)
    record(FOLDER / "metrics.json", embedding_training_cpu_s=watch.seconds())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
