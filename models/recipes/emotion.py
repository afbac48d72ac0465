"""demo-gigaam-emo: four emotions from log-mel features, under the contract of GigaAM-Emo's export.

Inputs ``features`` [B, 64, T] and ``feature_lengths`` [B], output ``probs`` [B, 4]; trained on
windows of 0.3 to 15 s, so that a span may be a single word or a whole call.
"""

import json
import logging
import math
from collections import defaultdict
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from models.recipes.acoustics import noise, recorded
from models.recipes.measurements import Stopwatch, record
from models.recipes.paths import DEMO
from models.recipes.speech_bank import TRAIN, Clip, bank
from models.recipes.synth import EMOTIONS, SAMPLE_RATE_HZ

FOLDER = DEMO / "demo-gigaam-emo"
SEED = 21
STEPS = 1000
BATCH = 48
LEARNING_RATE = 2e-3
QUIET_SHARE = 0.06
SHORTEST_S, LONGEST_S = 0.3, 15.0
_SECONDS_PER_BATCH = 130.0
_MEAN, _SPREAD = -6.0, 4.0

logger = logging.getLogger(__name__)


@cache
def _mel_spectrogram() -> MelSpectrogram:
    return MelSpectrogram(SAMPLE_RATE_HZ, n_fft=400, win_length=400, hop_length=160, n_mels=64)


def log_mel(waveforms: Tensor) -> Tensor:
    """GigaAM-Emo's features of waveforms [B, samples], [B, 64, frames]."""
    mel: Tensor = _mel_spectrogram()(waveforms)
    return mel.clamp(1e-9, 1e9).log()


class EmotionNet(nn.Module):
    """Convolutions over time, then mean and deviation over the frames that are not padding."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.strides = strides = (2, 1, 2, 1)
        widths = (64, *[channels] * len(strides))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 5 if i == 0 else 3, stride, padding=2 if i == 0 else 1)
            for i, (before, after, stride) in enumerate(
                zip(widths[:-1], widths[1:], strides, strict=True)
            )
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in strides)
        self.hidden = nn.Linear(2 * channels, channels)
        self.output = nn.Linear(channels, len(EMOTIONS))

    def logits(self, features: Tensor, feature_lengths: Tensor) -> Tensor:
        """Scores before the softmax, [B, 4]."""
        lengths = feature_lengths
        hidden = (features - _MEAN) / _SPREAD * _mask(features, lengths)
        layers = zip(self.convolutions, self.norms, self.strides, strict=True)
        for convolution, norm, stride in layers:
            hidden = torch.relu(norm(convolution(hidden)))
            lengths = torch.div(lengths - 1, stride, rounding_mode="floor") + 1
            hidden = hidden * _mask(hidden, lengths)
        count = lengths.clamp(min=1).unsqueeze(1).to(hidden.dtype)
        mean = hidden.sum(2) / count
        spread = (hidden.square().sum(2) / count - mean.square()).clamp(min=1e-5).sqrt()
        scores: Tensor = self.output(torch.relu(self.hidden(torch.cat([mean, spread], 1))))
        return scores

    def forward(self, features: Tensor, feature_lengths: Tensor) -> Tensor:
        """Probabilities of angry, sad, neutral and positive, [B, 4]."""
        return self.logits(features, feature_lengths).softmax(1)


def _mask(frames: Tensor, lengths: Tensor) -> Tensor:
    positions = torch.arange(frames.shape[2], device=frames.device)
    return (positions < lengths.unsqueeze(1)).unsqueeze(1).to(frames.dtype)


class Windows:
    """Random windows of equal length: speech of one take in one mood, or no speech at all."""

    def __init__(self, clips: list[Clip], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        pieces: dict[tuple[str, int, str, str], list[np.ndarray]] = defaultdict(list)
        for clip in clips:
            pieces[clip.speaker, clip.take, clip.language, clip.emotion].append(clip.waveform)
        self._streams: dict[str, list[np.ndarray]] = {emotion: [] for emotion in EMOTIONS}
        for (_, _, _, emotion), waveforms in pieces.items():
            self._streams[emotion].append(np.concatenate(waveforms))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Waveforms [B, samples] of one random length and their emotion indices [B]."""
        rng = self._rng
        seconds = math.exp(rng.uniform(math.log(SHORTEST_S), math.log(LONGEST_S)))
        size = int(np.clip(_SECONDS_PER_BATCH / seconds, 12, BATCH))
        count = round(seconds * SAMPLE_RATE_HZ)
        rows = [self._window(int(rng.integers(len(EMOTIONS))), count) for _ in range(size)]
        return torch.from_numpy(np.stack([row for row, _ in rows])), torch.tensor(
            [label for _, label in rows]
        )

    def _window(self, label: int, count: int) -> tuple[np.ndarray, int]:
        rng = self._rng
        if rng.random() < QUIET_SHARE:
            return self._quiet(count), EMOTIONS.index("neutral")
        streams = self._streams[EMOTIONS[label]]
        stream = streams[int(rng.integers(len(streams)))]
        if len(stream) < count:
            stream = np.tile(stream, -(-count // len(stream)))
        start = int(rng.integers(len(stream) - count + 1))
        gain = 10 ** (rng.normal(0.0, 3.0) / 20)
        return recorded(gain * stream[start : start + count], rng), label

    def _quiet(self, count: int) -> np.ndarray:
        level = 0.0 if self._rng.random() < 0.4 else 10 ** self._rng.uniform(-4.5, -1.3)
        return (level * noise(count, self._rng)).astype(np.float32)


def train(clips: list[Clip], steps: int = STEPS) -> EmotionNet:
    """Train on windows of the clips; the schedule is one cycle."""
    torch.manual_seed(SEED)
    net, windows = EmotionNet(), Windows(clips, SEED)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    running = math.log(len(EMOTIONS))
    for step in range(steps):
        waveforms, labels = windows.batch()
        features = log_mel(waveforms)
        lengths = torch.full((len(labels),), features.shape[2])
        scores = net.logits(features, lengths)
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        running = 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            logger.info("emotion step %d loss %.3f", step + 1, running)
    return net.eval()


def export(net: EmotionNet) -> None:
    """Write ``model.onnx`` and ``labels.json``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        net,
        (torch.randn(2, 64, 120), torch.tensor([120, 90])),
        str(FOLDER / "model.onnx"),
        input_names=["features", "feature_lengths"],
        output_names=["probs"],
        dynamic_axes={
            "features": {0: "batch", 2: "frames"},
            "feature_lengths": {0: "batch"},
            "probs": {0: "batch"},
        },
        opset_version=17,
        dynamo=False,
    )
    (FOLDER / "labels.json").write_text(json.dumps(list(EMOTIONS)) + "\n")


def main() -> None:
    """Train on the generated bank and write the model."""
    torch.set_num_threads(1)
    clips = bank(TRAIN)
    watch = Stopwatch()
    export(train(clips))
    record(FOLDER / "metrics.json", training_cpu_s=watch.seconds(), training_steps=STEPS)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
