"""The local speaker segmentation of demo-pyannote: a small PyanNet on generated conversations.

It starts as pyannote/segmentation-3.0 without its upper two recurrent layers. The front end
(SincNet) stays as it is, so the rest trains on features computed once. The teacher decides on
generated chunks and labels two minutes of real meetings.
"""

import itertools
import logging
from pathlib import Path

import numpy as np
import soundfile
import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from torch import Tensor, nn

from models.recipes.acoustics import noise, recorded
from models.recipes.dialogues import Dialogue, by_speaker, cast, converse
from models.recipes.measurements import Stopwatch, record
from models.recipes.paths import DEMO, assets
from models.recipes.pyannote_format import save_checkpoint
from models.recipes.speech_bank import TRAIN, Clip, bank
from models.recipes.synth import SAMPLE_RATE_HZ

FOLDER = DEMO / "demo-pyannote"
CHECKPOINT = FOLDER / "segmentation" / "pytorch_model.bin"
SEED = 31
CHUNK_S = 5.0
CHUNKS = 5000
EPOCHS = 10
BATCH = 32
LEARNING_RATE = 2e-3
TEACHER_SHARE = 0.25
SPEAKERS = 3
MEETINGS = ("dev00.wav", "dev01.wav")
REAL_CHUNKS = 320
_POWERSET = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
_COUNT = round(CHUNK_S * SAMPLE_RATE_HZ)

logger = logging.getLogger(__name__)


def teacher() -> PyanNet | None:
    """pyannote/segmentation-3.0, where the assets hold it."""
    path = assets() / "pyannote-segmentation-3.0-pytorch-from-int8" / "pytorch_model.bin"
    return loaded(path) if path.exists() else None


def loaded(path: Path) -> PyanNet:
    """The PyanNet of a checkpoint, ready to use."""
    net = Model.from_pretrained(path)
    assert isinstance(net, PyanNet)
    return net.eval()


def student() -> PyanNet:
    """A network of half the teacher's layers, before it has any weights to speak of."""
    net = PyanNet(lstm={"hidden_size": 128, "num_layers": 2})
    net.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=CHUNK_S,
        classes=[f"speaker#{i + 1}" for i in range(SPEAKERS)],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    net.build()
    return net


def activity(dialogue: Dialogue, start_s: float, net: PyanNet) -> np.ndarray:
    """Powerset class of each frame of the chunk that begins at ``start_s``."""
    frames = net.num_frames(_COUNT)
    window = net.receptive_field
    times = start_s + window.start + window.duration / 2 + window.step * np.arange(frames)
    speakers = sorted({speaker for _, _, speaker in dialogue.stretches()})
    active = np.zeros((frames, SPEAKERS), bool)
    for begin_s, end_s, speaker in dialogue.stretches():
        active[:, speakers.index(speaker)] |= (times >= begin_s) & (times < end_s)
    crowded = active.sum(1) > 2
    active[crowded, 2] = False
    codes = {frozenset(members): code for code, members in enumerate(_POWERSET)}
    return np.array([codes[frozenset(np.flatnonzero(row))] for row in active])


def chunks(
    clips: list[Clip], net: PyanNet, count: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Generated chunks: (waveform, powerset classes)."""
    voices = by_speaker(clips)
    made = []
    for _ in range(count):
        roles = cast(voices, int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3])), rng)
        dialogue = converse(roles, rng, duration_s=CHUNK_S + 6.0)
        start = int(rng.integers(round(6.0 * SAMPLE_RATE_HZ)))
        samples = dialogue.samples[start : start + _COUNT]
        samples = np.pad(recorded(samples, rng), (0, _COUNT - len(samples)))
        classes = activity(dialogue, start / SAMPLE_RATE_HZ, net)
        made.append(_cut_short(samples, classes, rng))
    return made


def _cut_short(
    samples: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One chunk in ten ends early in silence, one in thirty is noise only."""
    lot = rng.random()
    if lot < 0.1:
        share = float(rng.uniform(0.1, 0.9))
        samples, classes = samples.copy(), classes.copy()
        samples[round(share * len(samples)) :] = 0.0
        classes[round(share * len(classes)) :] = 0
    elif lot < 0.133:
        level = 0.0 if rng.random() < 0.3 else 10 ** rng.uniform(-4.5, -1.5)
        samples, classes = level * noise(len(samples), rng), np.zeros_like(classes)
    return samples.astype(np.float32), classes


def real_chunks(rng: np.random.Generator) -> list[np.ndarray]:
    """Waveforms of random chunks of real meetings."""
    folder = assets() / "diarization-ami"
    meetings = [soundfile.read(folder / name, dtype="float32")[0] for name in MEETINGS]
    made = []
    for _ in range(REAL_CHUNKS):
        meeting = meetings[int(rng.integers(len(meetings)))]
        start = int(rng.integers(len(meeting) - _COUNT))
        made.append(meeting[start : start + _COUNT] * 10 ** (rng.uniform(-8.0, 8.0) / 20))
    return made


def orders() -> Tensor:
    """For every order of the speakers, the powerset class that each class becomes, [6, 7]."""
    rows = [
        [_POWERSET.index(tuple(sorted(order[i] for i in members))) for members in _POWERSET]
        for order in itertools.permutations(range(SPEAKERS))
    ]
    return torch.tensor(rows)


def permutation_free_loss(log_probabilities: Tensor, targets: Tensor, order: Tensor) -> Tensor:
    """Cross-entropy under the best order of speakers; both [B, frames, 7]."""
    losses = torch.stack(
        [-(targets[:, :, row] * log_probabilities).sum(2).mean(1) for row in order]
    )
    return losses.min(0).values.mean()


@torch.no_grad()
def front_end(net: PyanNet, waveforms: list[np.ndarray]) -> Tensor:
    """SincNet features of the chunks, half precision, [N, frames, 60]."""
    blocks = [
        net.sincnet(torch.from_numpy(np.stack(waveforms[i : i + BATCH]))[:, None].float())
        for i in range(0, len(waveforms), BATCH)
    ]
    return torch.cat([block.transpose(1, 2).half() for block in blocks])


def back_end(net: PyanNet, features: Tensor) -> Tensor:
    """Log-probabilities from front-end features, [B, frames, 7]."""
    hidden, _ = net.lstm(features)
    for linear in net.linear:
        hidden = nn.functional.leaky_relu(linear(hidden))
    assert isinstance(net.activation, nn.Module)
    scores: Tensor = net.activation(net.classifier(hidden))
    return scores


def inherit(net: PyanNet, source: PyanNet) -> None:
    """Take over every weight of ``source`` that has a place in ``net``."""
    places = net.state_dict().keys()
    given = source.state_dict().items()
    net.load_state_dict({name: tensor for name, tensor in given if name in places})


def half_sized(net: PyanNet) -> dict[str, Tensor]:
    """The state with half-precision weights, but for the front end: its hertz need more digits."""
    return {
        name: tensor if name.startswith("sincnet") else tensor.half()
        for name, tensor in net.state_dict().items()
    }


@torch.no_grad()
def opinions(guide: PyanNet, features: Tensor) -> Tensor:
    """The teacher's probabilities of the classes, half precision, [N, frames, 7]."""
    return torch.cat([back_end(guide, part.float()).exp().half() for part in features.split(BATCH)])


def aligned(soft: Tensor, truth: Tensor) -> Tensor:
    """The teacher's probabilities under the order of speakers that fits the truth best."""
    candidates = torch.stack([soft[:, :, row] for row in orders()])
    best = (candidates * truth).sum((2, 3), dtype=torch.float32).argmax(0)
    return candidates[best, torch.arange(len(soft))]


def train(clips: list[Clip]) -> PyanNet:
    """Train what follows the front end; the start is the teacher or else the shipped model."""
    torch.manual_seed(SEED)
    guide, net = teacher(), student()
    inherit(net, guide or loaded(CHECKPOINT))
    features, targets = examples(net, guide, clips, np.random.default_rng(SEED))
    logger.info("segmentation: %d chunks ready", len(features))
    _fit(net, features, targets)
    return net.eval()


def examples(
    net: PyanNet, guide: PyanNet | None, clips: list[Clip], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Front-end features of fresh chunks and what to learn about them, both half precision."""
    made = chunks(clips, net, CHUNKS, rng)
    features = front_end(net, [samples for samples, _ in made])
    targets = nn.functional.one_hot(torch.tensor(np.stack([c for _, c in made])), 7).half()
    if guide is None:
        return features, targets
    targets = targets.lerp(aligned(opinions(guide, features), targets), TEACHER_SHARE)
    real = front_end(net, real_chunks(rng))
    return torch.cat([features, real]), torch.cat([targets, opinions(guide, real)])


def _fit(net: PyanNet, features: Tensor, targets: Tensor) -> None:
    parameters = [p for name, p in net.named_parameters() if not name.startswith("sincnet")]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    order = orders()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(features)).split(BATCH):
            scores = back_end(net, features[rows].float())
            loss = permutation_free_loss(scores, targets[rows].float(), order)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        logger.info("segmentation epoch %d loss %.3f", epoch + 1, total / len(features))


def main() -> None:
    """Train and write the checkpoint."""
    torch.set_num_threads(1)
    clips = bank(TRAIN)
    watch = Stopwatch()
    net = train(clips)
    save_checkpoint(net, CHECKPOINT, half_sized(net))
    record(FOLDER / "metrics.json", segmentation_training_cpu_s=watch.seconds())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
