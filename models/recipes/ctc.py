"""Train the CTC trunk: pieces by CTC, helped by exact piece and phoneme times.

``python -m models.recipes.ctc --budget-s 1500`` trains for that many processor seconds on one
thread and writes ``models/work/ctc.pt`` every few minutes; ``--resume`` goes on from there.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.recipes.bank import load
from models.recipes.ctc_data import Batch, Batches, PhonemeSet
from models.recipes.ctc_model import CtcTrunk, Shape
from models.recipes.paths import WORK
from models.recipes.pieces import Pieces

CHECKPOINT = WORK / "ctc.pt"
_BUDGET_S = 1500.0
_PEAK_RATE = 2e-3
_WARM_UP_STEPS = 150
_SAVE_EVERY_S = 120.0
_SEED = 21


def losses(model: CtcTrunk, batch: Batch, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """CTC, spike and phoneme losses."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, phonemes = model(batch.features, batch.frontend)
    log_probs = functional.log_softmax(logits.float(), dim=-1)
    ctc = functional.ctc_loss(
        log_probs.transpose(0, 1),
        batch.targets,
        batch.frames,
        batch.target_lengths,
        blank=blank,
        zero_infinity=True,
    )
    spoken = (batch.spikes != blank) & (batch.spikes >= 0)
    silent = batch.spikes == blank
    picked = -log_probs.gather(2, batch.spikes.clamp_min(0)[..., None])[..., 0]
    spikes = (picked * spoken).sum() / spoken.sum().clamp_min(1)
    spikes = spikes + (picked * silent).sum() / silent.sum().clamp_min(1)
    frames = functional.cross_entropy(phonemes.float().flatten(0, 1), batch.phonemes.flatten())
    return ctc, spikes, frames


def learning_rate(step: int, progress: float) -> float:
    """Warm-up, flat for a third, then a cosine to almost nothing."""
    if step < _WARM_UP_STEPS:
        return _PEAK_RATE * (step + 1) / _WARM_UP_STEPS
    fall = min(max((progress - 0.3) / 0.7, 0.0), 1.0)
    return _PEAK_RATE * (0.01 + 0.99 * 0.5 * (1.0 + float(np.cos(np.pi * fall))))


def train(
    budget_s: float,
    wall_s: float = math.inf,
    resume: bool = False,
    checkpoint: Path = CHECKPOINT,
) -> None:
    """Train until ``budget_s`` processor seconds or ``wall_s`` seconds of this run are spent.

    A resumed run counts the seconds of the earlier one; its optimiser starts anew.
    """
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)
    clips = load()
    pieces, phonemes = Pieces.train(clips), PhonemeSet(clips)
    model, before_s = CtcTrunk(len(pieces.names), len(phonemes), Shape()), 0.0
    if resume:
        model, pieces, before_s = restore(checkpoint)
        model.train()
    rng = np.random.default_rng([_SEED, round(before_s)])
    batches = Batches(clips, pieces, phonemes, rng)
    if not resume:
        _measure_statistics(model, batches)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=0.01)
    saved_s = time.process_time()
    started_s, begun_s = saved_s - before_s, time.monotonic()
    step, smooth, progress = 0, np.zeros(3), 0.0
    first = before_s / budget_s
    while progress < 1.0:
        spent_s = time.process_time() - started_s
        waited = first + (1.0 - first) * (time.monotonic() - begun_s) / wall_s
        progress = max(spent_s / budget_s, waited)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, progress)
        batch = batches.next(*_curriculum(progress))
        ctc, spikes, frames = losses(model, batch, pieces.blank)
        loss = ctc + _fading(progress, 0.5, 0.1) * spikes + _fading(progress, 1.0, 0.1) * frames
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        now = np.array([ctc.item(), spikes.item(), frames.item()])
        smooth = now if step == 1 else 0.98 * smooth + 0.02 * now
        if step % 50 == 0:
            figures = " ".join(f"{value:.3f}" for value in smooth)
            print(f"{spent_s:6.0f} s  step {step}  ctc/spikes/phonemes {figures}", flush=True)
        if time.process_time() - saved_s > _SAVE_EVERY_S:
            _save(checkpoint, model, pieces, len(phonemes), spent_s)
            saved_s = time.process_time()
    _save(checkpoint, model, pieces, len(phonemes), time.process_time() - started_s)


def restore(checkpoint: Path = CHECKPOINT) -> tuple[CtcTrunk, Pieces, float]:
    """A trained trunk, its pieces and the processor seconds it took."""
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    pieces = Pieces(saved["pieces"])
    model = CtcTrunk(len(pieces.names), saved["phonemes"], Shape())
    model.load_state_dict(saved["model"])
    return model.eval(), pieces, float(saved["spent_s"])


def _curriculum(progress: float) -> tuple[float, int, float]:
    """Longest example, most sentences in it, seconds of audio in a batch."""
    if progress < 0.15:
        return 7.0, 1, 80.0
    return (10.0, 2, 120.0) if progress < 0.6 else (14.0, 4, 160.0)


def _fading(progress: float, first: float, last: float) -> float:
    return first + (last - first) * min(progress / 0.6, 1.0)


def _measure_statistics(model: CtcTrunk, batches: Batches) -> None:
    missing = {"nemo", "gigaam"}
    while missing:
        batch = batches.next(10.0, 2, 120.0)
        flat = batch.features.flatten(0, 1)
        model.set_statistics(batch.frontend, flat.mean(0), flat.std(0))
        missing.discard(batch.frontend)


def _save(path: Path, model: CtcTrunk, pieces: Pieces, phonemes: int, spent_s: float) -> None:
    partial = path.with_suffix(".tmp")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(
        {"model": state, "pieces": pieces.model, "phonemes": phonemes, "spent_s": spent_s}, partial
    )
    partial.replace(path)


def main() -> None:
    """Command line: train the trunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=_BUDGET_S)
    parser.add_argument("--wall-s", type=float, default=math.inf)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    train(given.budget_s, given.wall_s, given.resume)


if __name__ == "__main__":
    main()
