"""Transducers made by hand: they emit да for sound, and нет instead when biased.

The encoder sees loudness alone: of four frames of features it makes one frame of scores, in which
silence is blank, and sound is ``▁да`` or, a little less, ``▁нет``. The decoder forbids that a token
follows itself. So for any sound the words alternate, their times are those of the sound, and
their probabilities are known.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS = ("<blk>", "▁да", "▁нет", "<unk>")
_SLOPE = np.array([[0.0, 0.5, 0.45, 0.0]], np.float32)
_LEVEL = np.array([2.0, 8.0, 7.0, -9.0], np.float32)
_NEVER_TWICE = np.diag([0.0, -30.0, -30.0, 0.0]).astype(np.float32)
_CHUNK, _FRAMES = 4, 4


def write(folder: Path, *, streaming: bool = False, suffix: str = "") -> Path:
    """The three networks and their tokens; ``suffix`` goes before ``.onnx``."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = _streaming_encoder() if streaming else _encoder()
    for name, network in (("encoder", encoder), ("decoder", _decoder()), ("joiner", _joiner())):
        onnx.save(network, folder / f"{name}{suffix}.onnx")
    lines = "".join(f"{token} {number}\n" for number, token in enumerate(TOKENS))
    (folder / "tokens.txt").write_text(lines, encoding="utf-8")
    return folder


def _encoder() -> onnx.ModelProto:
    nodes, weights = _scores()
    nodes.append(helper.make_node("Div", ["x_lens", "stride"], ["encoder_out_lens"]))
    weights.append(numpy_helper.from_array(np.array(4, np.int64), "stride"))
    return _model(
        nodes,
        {"x": ["N", "T", 80], "x_lens": ["N"]},
        {"encoder_out": ["N", "t", 4], "encoder_out_lens": ["N"]},
        weights,
        model_type="zipformer2",
        version=1,
    )


def _streaming_encoder() -> onnx.ModelProto:
    """Frame-synchronous, in the layout of an LSTM with one layer whose states mean nothing."""
    nodes, weights = _scores()
    nodes += [helper.make_node("Identity", [name], [f"next_{name}"]) for name in ("h", "c")]
    states = {name: [1, "N", 4] for name in ("h", "c")}
    return _model(
        nodes,
        {"x": ["N", _FRAMES, 80], **states},
        {"encoder_out": ["N", "t", 4], **{f"next_{k}": v for k, v in states.items()}},
        weights,
        model_type="lstm",
        num_encoder_layers=1,
        T=_FRAMES,
        decode_chunk_len=_CHUNK,
        rnn_hidden_size=4,
        d_model=4,
    )


def _scores() -> tuple[list[Any], list[Any]]:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["loudness"], axes=[2], keepdims=1),
        helper.make_node("Transpose", ["loudness"], ["row"], perm=[0, 2, 1]),
        helper.make_node("AveragePool", ["row"], ["fewer"], kernel_shape=[4], strides=[4]),
        helper.make_node("Transpose", ["fewer"], ["column"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["column", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "level"], ["encoder_out"]),
    ]
    weights = {"slope": _SLOPE, "level": _LEVEL}
    return nodes, [numpy_helper.from_array(array, name) for name, array in weights.items()]


def _decoder() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Slice", ["y", "one", "two", "one"], ["last"]),
        helper.make_node("Squeeze", ["last", "one"], ["token"]),
        helper.make_node("Gather", ["table", "token"], ["decoder_out"]),
    ]
    weights = {"one": np.array([1]), "two": np.array([2]), "table": _NEVER_TWICE}
    return _model(
        nodes,
        {"y": ["N", 2]},
        {"decoder_out": ["N", 4]},
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        context_size=2,
        vocab_size=len(TOKENS),
    )


def _joiner() -> onnx.ModelProto:
    node = helper.make_node("Add", ["encoder_out", "decoder_out"], ["logit"])
    inputs = {"encoder_out": ["N", 4], "decoder_out": ["N", 4]}
    return _model([node], inputs, {"logit": ["N", 4]}, [], joiner_dim=len(TOKENS))


def _model(
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: list[Any],
    **metadata: object,
) -> onnx.ModelProto:
    whole = {"x_lens", "encoder_out_lens", "y"}
    values = [
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in whole else TensorProto.FLOAT, shape
            )
            for name, shape in side.items()
        ]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "toy", *values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    return model
