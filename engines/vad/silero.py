"""Silero's network on many streams at once, of the weights that faster-whisper carries.

The network as it is published hears one stream a call: its first axis is time, its memory has room
for one, and its convolutions over four frames are too narrow for a processor. The graph here is
the same arithmetic with an axis for streams and the convolutions as matrix products, about four
times as fast; ``benchmarks/silero.py`` compares them.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from speech.audio import Samples
from speech.errors import ModelUnavailable
from speech.media.segmentation import WINDOW_SAMPLES

CONTEXT_SAMPLES = 64
"""Of what came before a window, heard with it."""
_MEMORY = 128
_BLOCK = 1024
"""Windows of one run; bounds its memory to some 20 MB."""

# Published as: a short-time Fourier transform (256 samples every 128, so 4 frames of 129
# magnitudes), four convolutions of width 3 with strides 1, 2, 2, 1, which leave one frame, an
# LSTM, and one neuron. ``Gather`` lays what a convolution sees side by side; the third sees one
# frame of padding, the fourth nothing but padding around its one frame.
_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
silero (float[windows, 576] input, float[1, streams, 128] h, float[1, streams, 128] c,
        int64[3] shape)
    => (float[windows, 1] probability, float[1, streams, 128] h_after,
        float[1, streams, 128] c_after)
<
    int64[4] reflected = {0, 0, 0, 64}, int64[3] blocks_shape = {-1, 5, 128},
    int64[4, 2] frames_of = {0, 1, 1, 2, 2, 3, 3, 4}, int64[2] frame_shape = {-1, 256},
    int64[2] halves = {129, 129}, int64[3] magnitudes_shape = {-1, 4, 129},
    int64[6] around = {0, 1, 0, 0, 1, 0}, int64[4, 3] seen_0 = {0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5},
    int64[2] seen_0_shape = {-1, 387}, int64[3] heard_0_shape = {-1, 4, 128},
    int64[6] before = {0, 1, 0, 0, 0, 0}, int64[2, 3] seen_1 = {0, 1, 2, 2, 3, 4},
    int64[2] seen_1_shape = {-1, 384}, int64[2] heard_1_shape = {-1, 128},
    int64[2] memory_shape = {-1, 128}
>
{
    padded = Pad <mode = "reflect"> (input, reflected)
    blocks = Reshape (padded, blocks_shape)
    frame_blocks = Gather <axis = 1> (blocks, frames_of)
    frames = Reshape (frame_blocks, frame_shape)
    spectrum = MatMul (frames, basis)
    real, imaginary = Split <axis = 1> (spectrum, halves)
    real_2 = Mul (real, real)
    imaginary_2 = Mul (imaginary, imaginary)
    power = Add (real_2, imaginary_2)
    magnitude = Sqrt (power)
    magnitudes = Reshape (magnitude, magnitudes_shape)
    padded_0 = Pad (magnitudes, around)
    spread_0 = Gather <axis = 1> (padded_0, seen_0)
    flat_0 = Reshape (spread_0, seen_0_shape)
    sum_0 = Gemm (flat_0, weight_0, bias_0)
    relu_0 = Relu (sum_0)
    heard_0 = Reshape (relu_0, heard_0_shape)
    padded_1 = Pad (heard_0, before)
    spread_1 = Gather <axis = 1> (padded_1, seen_1)
    flat_1 = Reshape (spread_1, seen_1_shape)
    sum_1 = Gemm (flat_1, weight_1, bias_1)
    relu_1 = Relu (sum_1)
    flat_2 = Reshape (relu_1, heard_1_shape)
    sum_2 = Gemm (flat_2, weight_2, bias_2)
    relu_2 = Relu (sum_2)
    sum_3 = Gemm (relu_2, weight_3, bias_3)
    relu_3 = Relu (sum_3)
    steps = Reshape (relu_3, shape)
    outputs, h_after, c_after = LSTM <hidden_size = 128> (steps, lstm_w, lstm_r, lstm_b, , h, c)
    relu_lstm = Relu (outputs)
    remembered = Reshape (relu_lstm, memory_shape)
    logit = Gemm (remembered, weight_out, bias_out)
    probability = Sigmoid (logit)
}
"""


def no_memory(streams: int = 1) -> Samples:
    """What is remembered of streams that have heard nothing, float32 [2, streams, 128]."""
    return np.zeros((2, streams, _MEMORY), np.float32)


class Silero:
    """The loaded network; one thread for each run, any number of runs at once."""

    def __init__(self) -> None:
        """Raises ModelUnavailable."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(
                _batched(onnx.load(_published())).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise ModelUnavailable(f"Silero's network does not load: {error}") from error

    def hear(self, windows: Samples, memory: Samples) -> tuple[NDArray[np.float32], Samples]:
        """Probabilities of speech, float32 [windows, streams], and what is remembered then.

        ``windows`` are float32 [windows, streams, 64 + 512] at 16 kHz, each with the end of what
        came before it; ``memory`` is what the run before returned, or :func:`no_memory`.
        """
        streams = windows.shape[1]
        heard = [np.empty((0, streams), np.float32)]
        block = max(_BLOCK // streams, 1)
        for first in range(0, len(windows), block):
            piece = windows[first : first + block]
            probabilities, *remembered = self._session.run(
                None,
                {
                    "input": piece.reshape(-1, CONTEXT_SAMPLES + WINDOW_SAMPLES),
                    "h": memory[:1],
                    "c": memory[1:],
                    "shape": np.array([len(piece), streams, _MEMORY]),
                },
            )
            memory = np.concatenate(remembered)
            heard.append(probabilities.reshape(-1, streams))
        return np.concatenate(heard), memory


@cache
def shared() -> Silero:
    """The network, loaded once in a process. Raises ModelUnavailable."""
    return Silero()


def _published() -> Path:
    package = find_spec("faster_whisper")  # importing it would load CTranslate2
    if package is None or package.origin is None:
        raise ModelUnavailable("faster-whisper, which carries its weights, is not installed")
    return Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"


def _batched(published: onnx.ModelProto) -> onnx.ModelProto:
    """The graph above with the weights of the published one."""
    given = {i.name: numpy_helper.to_array(i) for i in published.graph.initializer}
    kernels = [given[f"encoder.conv_layers.{n}.weight"].transpose(2, 1, 0) for n in range(4)]
    kernels[2], kernels[3] = kernels[2][1:], kernels[3][1]
    (lstm,) = (node for node in published.graph.node if node.op_type == "LSTM")
    weights: dict[str, NDArray[Any]] = {
        "basis": given["encoder.feature_extractor.forward_basis_buffer"][:, 0].T,
        "weight_out": given["decoder.conv1d.weight"][0],
        "bias_out": given["decoder.conv1d.bias"],
    }
    for number, kernel in enumerate(kernels):
        weights[f"weight_{number}"] = kernel.reshape(-1, kernel.shape[-1])
        weights[f"bias_{number}"] = given[f"encoder.conv_layers.{number}.bias"]
    for ours, theirs in zip(("lstm_w", "lstm_r", "lstm_b"), lstm.input[1:4], strict=True):
        weights[ours] = given[theirs]
    model = onnx.parser.parse_model(_GRAPH)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in weights.items()
    )
    return model
