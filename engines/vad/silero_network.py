"""Silero's network on many streams at once, of the weights that faster-whisper carries.

The published network processes one stream per call: its first axis is time, its recurrent state is
that of one stream, and its convolutions over four frames are too narrow for a processor. The graph
here is the same arithmetic with an axis for streams and the convolutions as matrix products, about
four times as fast; ``benchmarks/vad_speed.py`` compares them.
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
from speech.errors import ModelNotInstalled, ModelUnavailable, SpeechError
from speech.media.segmentation import WINDOW_SAMPLES

CONTEXT_SAMPLES = 64
"""Samples before a window that the network sees in front of it."""
_STATE_SIZE = 128
_BLOCK = 1024
"""Windows of one run; bounds its working memory to some 20 MB."""

# Published as: a short-time Fourier transform (256 samples every 128, so 4 frames of 129
# magnitudes), four convolutions of width 3 with strides 1, 2, 2, 1, which leave one frame, an
# LSTM, and one neuron. ``Gather`` puts the receptive field of a convolution side by side; that of
# the third has one frame of padding, that of the fourth only padding around its one frame.
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
    int64[6] around = {0, 1, 0, 0, 1, 0},
    int64[4, 3] field_0 = {0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5}, int64[2] field_0_shape = {-1, 387},
    int64[3] conv_0_shape = {-1, 4, 128}, int64[6] before = {0, 1, 0, 0, 0, 0},
    int64[2, 3] field_1 = {0, 1, 2, 2, 3, 4}, int64[2] field_1_shape = {-1, 384},
    int64[2] conv_1_shape = {-1, 128}, int64[2] output_shape = {-1, 128}
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
    spread_0 = Gather <axis = 1> (padded_0, field_0)
    flat_0 = Reshape (spread_0, field_0_shape)
    sum_0 = Gemm (flat_0, weight_0, bias_0)
    relu_0 = Relu (sum_0)
    conv_0 = Reshape (relu_0, conv_0_shape)
    padded_1 = Pad (conv_0, before)
    spread_1 = Gather <axis = 1> (padded_1, field_1)
    flat_1 = Reshape (spread_1, field_1_shape)
    sum_1 = Gemm (flat_1, weight_1, bias_1)
    relu_1 = Relu (sum_1)
    flat_2 = Reshape (relu_1, conv_1_shape)
    sum_2 = Gemm (flat_2, weight_2, bias_2)
    relu_2 = Relu (sum_2)
    sum_3 = Gemm (relu_2, weight_3, bias_3)
    relu_3 = Relu (sum_3)
    lstm_input = Reshape (relu_3, shape)
    outputs, h_after, c_after =
        LSTM <hidden_size = 128> (lstm_input, lstm_w, lstm_r, lstm_b, , h, c)
    relu_lstm = Relu (outputs)
    lstm_frames = Reshape (relu_lstm, output_shape)
    logit = Gemm (lstm_frames, weight_out, bias_out)
    probability = Sigmoid (logit)
}
"""


def initial_state(streams: int = 1) -> Samples:
    """The recurrent state of new streams, h and c of the LSTM: float32 [2, streams, 128]."""
    return np.zeros((2, streams, _STATE_SIZE), np.float32)


class SileroNetwork:
    """The loaded network; each run uses one thread, any number of runs may be concurrent."""

    def __init__(self) -> None:
        """Raises ModelNotInstalled, ModelUnavailable."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        try:
            self._session = onnxruntime.InferenceSession(
                _batched(onnx.load(_published_file())).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
        except SpeechError:
            raise
        except Exception as error:
            raise ModelUnavailable("Silero's network does not load", detail=str(error)) from error

    def infer(self, windows: Samples, state: Samples) -> tuple[NDArray[np.float32], Samples]:
        """Probabilities of speech, float32 [windows, streams], and the recurrent state after them.

        ``windows`` are float32 [windows, streams, 64 + 512] at 16 kHz, each preceded by the end of
        the window before; ``state`` is that of the run before, or :func:`initial_state`.
        """
        streams = windows.shape[1]
        results = [np.empty((0, streams), np.float32)]
        block = max(_BLOCK // streams, 1)
        for first in range(0, len(windows), block):
            piece = windows[first : first + block]
            probabilities, *state_after = self._session.run(
                None,
                {
                    "input": piece.reshape(-1, CONTEXT_SAMPLES + WINDOW_SAMPLES),
                    "h": state[:1],
                    "c": state[1:],
                    "shape": np.array([len(piece), streams, _STATE_SIZE]),
                },
            )
            state = np.concatenate(state_after)
            results.append(probabilities.reshape(-1, streams))
        return np.concatenate(results), state


@cache
def shared_network() -> SileroNetwork:
    """The network, loaded once in a process. Raises ModelNotInstalled, ModelUnavailable."""
    return SileroNetwork()


def _published_file() -> Path:
    package = find_spec("faster_whisper")  # importing it would load CTranslate2
    if package is None or package.origin is None:
        raise ModelNotInstalled(
            "faster-whisper, which carries the weights of Silero, is not installed on this server"
        )
    return Path(package.origin).parent / "assets" / "silero_vad_v6.onnx"


def _batched(published: onnx.ModelProto) -> onnx.ModelProto:
    """The graph above with the weights of the published one."""
    source = {i.name: numpy_helper.to_array(i) for i in published.graph.initializer}
    kernels = [source[f"encoder.conv_layers.{n}.weight"].transpose(2, 1, 0) for n in range(4)]
    kernels[2], kernels[3] = kernels[2][1:], kernels[3][1]
    (lstm,) = (node for node in published.graph.node if node.op_type == "LSTM")
    weights: dict[str, NDArray[Any]] = {
        "basis": source["encoder.feature_extractor.forward_basis_buffer"][:, 0].T,
        "weight_out": source["decoder.conv1d.weight"][0],
        "bias_out": source["decoder.conv1d.bias"],
    }
    for number, kernel in enumerate(kernels):
        weights[f"weight_{number}"] = kernel.reshape(-1, kernel.shape[-1])
        weights[f"bias_{number}"] = source[f"encoder.conv_layers.{number}.bias"]
    for ours, theirs in zip(("lstm_w", "lstm_r", "lstm_b"), lstm.input[1:4], strict=True):
        weights[ours] = source[theirs]
    model = onnx.parser.parse_model(_GRAPH)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in weights.items()
    )
    return model
