"""Train the small Whisper from scratch on one thread within a budget of processor seconds.

``python -m models.recipes.whisper --budget-s 5000`` writes ``models/work/whisper.pt`` every few
minutes, ``--resume`` goes on from there. Windows grow from 4 s to 10 s; known times of
phonemes, tokens and words teach the encoder and the cross-attention.
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
from models.recipes.ctc_data import PhonemeSet
from models.recipes.paths import WORK
from models.recipes.whisper_data import WINDOW_S, Batch, Stage, WhisperBatches
from models.recipes.whisper_model import Shape, SmallWhisper
from models.recipes.whisper_tokens import VOCABULARY, WhisperTokens

CHECKPOINT = WORK / "whisper.pt"
_BUDGET_S = 5000.0
_PEAK_RATE = 2e-3
_WARM_UP_STEPS = 100
_SAVE_EVERY_S = 120.0
_FRAME_STEP = 3
_CORRUPTED_SHARE = 0.12
"""Share of the words that are replaced in the input of the decoder."""
_SEED = 22


def losses(model: SmallWhisper, batch: Batch, others: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decoder, attention, phoneme and frame-token losses; ``others`` share the last row.

    Neighbouring frames are much alike, so the two frame-level losses use every third.
    """
    first = int(torch.randint(_FRAME_STEP, ()))
    inputs = _corrupted(batch, model.token_head.out_features - 1)
    with torch.autocast("cpu", torch.bfloat16):
        memory, middle = model.encoder(batch.features)
        logits, weights = model.decoder(inputs, memory)
        phonemes = model.phoneme_head(middle[:, first::_FRAME_STEP])
        frame_tokens = model.token_head(memory[:, first::_FRAME_STEP])
    phoneme_labels = batch.phonemes[:, first::_FRAME_STEP]
    token_labels = batch.frame_tokens[:, first::_FRAME_STEP]
    logits = logits.float()
    logits = torch.cat([logits[..., :-1], logits[..., -1:] + math.log(others)], dim=-1)
    text = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    phoneme = functional.cross_entropy(phonemes.float().flatten(0, 1), phoneme_labels.flatten())
    token = functional.cross_entropy(frame_tokens.float().flatten(0, 1), token_labels.flatten())
    return text, _attention_loss(weights, batch.spans), phoneme, token


def _attention_loss(weights: Tensor, spans: Tensor) -> Tensor:
    """Minus the logarithm of the attention that falls on the frames of the token predicted."""
    total = functional.pad(weights.float().cumsum(-1), (1, 0))
    first, last = (spans[:, None, :, side, None] for side in (0, 1))
    heads = weights.shape[1]
    inside = total.gather(-1, last.expand(-1, heads, -1, -1)) - total.gather(
        -1, first.expand(-1, heads, -1, -1)
    )
    placed = (spans[..., 1] > spans[..., 0])[:, None, :, None].expand_as(inside)
    return -(inside.clamp_min(1e-6).log() * placed).sum() / placed.sum().clamp_min(1)


def stage_at(progress: float) -> Stage:
    """The curriculum: a sentence in a short window, then windows of long speech."""
    if progress < 0.2:
        return Stage(window_s=4.0, batch=32, flows=False)
    return Stage(window_s=WINDOW_S, batch=16, flows=True)


def _corrupted(batch: Batch, vocabulary: int) -> Tensor:
    """The input tokens with some words replaced by others.

    The grammar is so tight that a decoder that trusts its own words would write sentences by heart
    and hardly listen.
    """
    placed = batch.spans[:, :-1, 1] > batch.spans[:, :-1, 0]
    words = functional.pad(placed, (1, 0))
    replaced = words & (torch.rand(words.shape) < _CORRUPTED_SHARE)
    return torch.where(replaced, torch.randint(vocabulary, words.shape), batch.tokens)


def learning_rate(step: int, progress: float) -> float:
    """Warm-up of a run, flat for a third of the training, then a cosine to almost nothing."""
    warm = min((step + 1) / _WARM_UP_STEPS, 1.0)
    fall = min(max((progress - 0.3) / 0.7, 0.0), 1.0)
    return warm * _PEAK_RATE * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * fall)))


def train(
    budget_s: float,
    wall_s: float = math.inf,
    resume: bool = False,
    threads: int = 1,
    checkpoint: Path = CHECKPOINT,
) -> None:
    """Train until ``budget_s`` processor seconds or ``wall_s`` seconds of this run are spent.

    A resumed run counts the seconds of the earlier one; its optimiser starts anew.
    """
    torch.manual_seed(_SEED)
    torch.set_num_threads(threads)
    clips = load()
    tokens, phonemes = WhisperTokens({clip.text for clip in clips}), PhonemeSet(clips)
    model, before_s = SmallWhisper(tokens.size, len(phonemes), Shape()), 0.0
    if resume:
        model, _, before_s = restore(checkpoint)
        model.train()
    rng = np.random.default_rng([_SEED, round(before_s)])
    batches = WhisperBatches(clips, tokens, phonemes, rng)
    others = VOCABULARY - tokens.size + 1
    optimiser = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=0.01)
    saved_s = time.process_time()
    started_s, begun_s = saved_s - before_s, time.monotonic()
    step, smooth, progress = 0, np.zeros(4), 0.0
    first = before_s / budget_s
    print(f"{tokens.size} tokens in use, {len(phonemes)} phonemes", flush=True)
    while progress < 1.0:
        spent_s = time.process_time() - started_s
        waited = first + (1.0 - first) * (time.monotonic() - begun_s) / wall_s
        progress = max(spent_s / budget_s, waited)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, progress)
        parts = losses(model, batches.next(stage_at(progress)), others)
        place, frames = _fading(progress, 1.0, 0.4), _fading(progress, 1.0, 0.3)
        weights = (1.0, place, frames, frames)
        loss = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        optimiser.zero_grad(set_to_none=True)
        torch.as_tensor(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        now = np.array([part.item() for part in parts])
        smooth = now if step == 1 else 0.98 * smooth + 0.02 * now
        if step % 50 == 0:
            shown = " ".join(f"{value:.3f}" for value in smooth)
            print(f"{spent_s:6.0f} s  step {step}  text/place/phonemes/tokens {shown}", flush=True)
        if time.process_time() - saved_s > _SAVE_EVERY_S:
            _save(checkpoint, model, tokens, len(phonemes), spent_s)
            saved_s = time.process_time()
    _save(checkpoint, model, tokens, len(phonemes), time.process_time() - started_s)


def restore(checkpoint: Path = CHECKPOINT) -> tuple[SmallWhisper, np.ndarray, float]:
    """A trained model, the full identifiers of its rows, and its processor seconds."""
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    full_ids = saved["full_ids"].numpy()
    model = SmallWhisper(len(full_ids) + 1, saved["phonemes"], Shape())
    model.load_state_dict(saved["model"])
    return model.eval(), full_ids, float(saved["spent_s"])


def _fading(progress: float, first: float, last: float) -> float:
    return first + (last - first) * min(progress / 0.8, 1.0)


def _save(
    path: Path, model: SmallWhisper, tokens: WhisperTokens, phonemes: int, spent_s: float
) -> None:
    partial = path.with_suffix(".tmp")
    torch.save(
        {
            "model": {name: value.clone() for name, value in model.state_dict().items()},
            "full_ids": torch.from_numpy(tokens.full_ids),
            "phonemes": phonemes,
            "spent_s": spent_s,
        },
        partial,
    )
    partial.replace(path)


def main() -> None:
    """Command line: train the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=_BUDGET_S)
    parser.add_argument("--wall-s", type=float, default=math.inf)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    train(given.budget_s, given.wall_s, given.resume, given.threads)


if __name__ == "__main__":
    main()
