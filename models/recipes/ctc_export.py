"""Write the three CTC models in sherpa-onnx's formats.

* ``demo-vosk-streaming``: ``OnlineRecognizer.from_nemo_ctc``; the window carries the look-ahead, so
  token times need no correction;
* ``demo-vosk``: ``OfflineRecognizer.from_nemo_ctc``;
* ``demo-gigaam``: the same in GigaAM's layout (64 mels).
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from models.recipes.ctc import restore
from models.recipes.ctc_model import DELAY_FRAMES, STRIDE, CtcTrunk
from models.recipes.features import MELS, Frontend
from models.recipes.paths import DEMO

STREAMING, OFFLINE, GIGAAM = "demo-vosk-streaming", "demo-vosk", "demo-gigaam"
NEMO = "demo-nemo"
"""``demo-vosk`` for onnx-asr, written by ``nemo_layout``."""
_SHIFT = 16
_LOOK_AHEAD = DELAY_FRAMES * STRIDE
_SMALLEST_QUANTISED = 4096
_OPSET = 17


class Streaming(nn.Module):
    """A window of new frames and look-ahead; the state kept is that before the look-ahead."""

    def __init__(self, trunk: CtcTrunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(
        self, audio_signal: Tensor, length: Tensor, frames: Tensor, layers: Tensor, seen: Tensor
    ) -> tuple[Tensor, ...]:
        x = self.trunk.normalise(audio_signal.transpose(1, 2), "nemo")
        joined = torch.cat([frames[:, 0], x], dim=1)
        next_frames = joined[:, -(_LOOK_AHEAD + STRIDE) : -_LOOK_AHEAD][:, None]
        x = self.trunk.stem(joined, "nemo")
        contexts = []
        for number, block in enumerate(self.trunk.blocks):
            x, history = block(x, layers[:, number])
            context = self.trunk.shape.kernel - 1
            contexts.append(history[:, -(DELAY_FRAMES + context) : -DELAY_FRAMES])
        logits = self.trunk.head(self.trunk.norm(x[:, DELAY_FRAMES:]))
        count = length // STRIDE - DELAY_FRAMES
        return logits.log_softmax(-1), count, next_frames, torch.stack(contexts, 1), seen + count


class Offline(nn.Module):
    """Whole utterances: padded by the look-ahead, whose outputs are dropped at the start."""

    def __init__(self, trunk: CtcTrunk, frontend: Frontend) -> None:
        super().__init__()
        self.trunk = trunk
        self.frontend = frontend

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.normalise(audio_signal.transpose(1, 2), self.frontend)
        quiet = self.trunk.normalise(
            torch.full_like(audio_signal[:, :, :1], -15.9).transpose(1, 2), self.frontend
        )
        after = quiet.expand(-1, _LOOK_AHEAD + STRIDE, -1)
        usable = (x.shape[1] + _LOOK_AHEAD) // STRIDE * STRIDE
        joined = torch.cat([functional.pad(x, (0, 0, STRIDE, 0)), after], dim=1)
        x = self.trunk.stem(joined[:, : usable + STRIDE], self.frontend)
        shape = self.trunk.shape
        context = torch.zeros_like(x[:, :1]).expand(-1, shape.kernel - 1, -1)
        for block in self.trunk.blocks:
            x, _ = block(x, context)
        logits = self.trunk.head(self.trunk.norm(x[:, DELAY_FRAMES:]))
        return logits.log_softmax(-1), length // STRIDE


def export_all(folder: Path = DEMO) -> None:
    """Export the last checkpoint three times."""
    trunk, pieces, _ = restore()
    for name in (STREAMING, OFFLINE, GIGAAM):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pieces.write_tokens(folder / name / "tokens.txt")
    _export_streaming(trunk, folder / STREAMING / "model.onnx")
    _export_offline(trunk, "nemo", folder / OFFLINE / "model.onnx")
    _export_offline(trunk, "gigaam", folder / GIGAAM / "model.onnx")


def _export_streaming(trunk: CtcTrunk, path: Path) -> None:
    shape, mels = trunk.shape, MELS["nemo"]
    window, context = _SHIFT + _LOOK_AHEAD, shape.kernel - 1
    inputs = {
        "audio_signal": torch.zeros(2, mels, window),
        "length": torch.full((2,), window),
        "cache_last_channel": torch.zeros(2, 1, STRIDE, mels),
        "cache_last_time": torch.zeros(2, shape.blocks, context, shape.width),
        "cache_last_channel_len": torch.zeros(2, dtype=torch.int64),
    }
    outputs = ["logprobs", "encoded_lengths"]
    outputs += [f"{name}_next" for name in inputs if name.startswith("cache")]
    _write(
        Streaming(trunk),
        inputs,
        outputs,
        path,
        {
            "window_size": window,
            "chunk_shift": _SHIFT,
            "subsampling_factor": STRIDE,
            "vocab_size": trunk.head.out_features - 1,
            "cache_last_channel_dim1": 1,
            "cache_last_channel_dim2": STRIDE,
            "cache_last_channel_dim3": mels,
            "cache_last_time_dim1": shape.blocks,
            "cache_last_time_dim2": context,
            "cache_last_time_dim3": shape.width,
        },
    )


def _export_offline(trunk: CtcTrunk, frontend: Frontend, path: Path) -> None:
    inputs = {
        "audio_signal": torch.zeros(2, MELS[frontend], 160),
        "length": torch.full((2,), 160),
    }
    _write(
        Offline(trunk, frontend),
        inputs,
        ["logprobs", "encoded_lengths"],
        path,
        {
            "vocab_size": trunk.head.out_features,
            "normalize_type": "",
            "subsampling_factor": STRIDE,
            "is_giga_am": int(frontend == "gigaam"),
        },
    )


def _write(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    path: Path,
    metadata: dict[str, int | str],
) -> None:
    axes = {name: {0: "batch"} for name in [*inputs, *outputs]}
    axes["audio_signal"][2] = "frames"
    axes["logprobs"][1] = "outputs"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=axes,
            dynamo=False,
            opset_version=_OPSET,
        )
    graph = onnx.load(str(path))
    store_as_int8(graph)
    helper.set_model_props(graph, {name: str(value) for name, value in metadata.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def store_as_int8(model: onnx.ModelProto) -> None:
    """Keep large matrices as int8 with a scale per column.

    They are widened once when the runtime folds constants, so arithmetic stays float32.
    """
    graph = model.graph
    kept, widened = [], []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.ndim != 2 or values.size < _SMALLEST_QUANTISED or values.dtype != np.float32:
            kept.append(weight)
            continue
        scale = np.maximum(np.abs(values).max(axis=0, keepdims=True), 1e-12) / 127.0
        name = weight.name
        kept.append(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{name}_q"))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
        widened.append(helper.make_node("Cast", [f"{name}_q"], [f"{name}_f"], to=TensorProto.FLOAT))
        widened.append(helper.make_node("Mul", [f"{name}_f", f"{name}_scale"], [name]))
    nodes = [*widened, *graph.node]
    for field, items in ((graph.initializer, kept), (graph.node, nodes)):
        copies = list(items)
        del field[:]
        field.extend(copies)


if __name__ == "__main__":
    export_all()
