"""NeMo models made by hand, with the files and the shapes that onnx-asr reads.

NeMo's features of an utterance have mean 0, so that its loud frames are above and its quiet ones
below. The transducer with durations emits ``▁да`` and ``▁нет`` in turn for loud frames, and goes on
by two of its frames, 160 ms, with each. The attention decoder writes one word, in the language that
it is asked for.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS = ("▁да", "▁нет", "<blk>")
STEP_S = 0.16
_BY_LOUDNESS = np.array([[4.0, 3.9, -4.0]], np.float32)
_NEVER_TWICE = np.diag([-30.0, -30.0, 0.0]).astype(np.float32)
_DURATIONS = np.array([[0.0, 0.0, 9.0, 0.0, 0.0]], np.float32)

WORDS = {"en": "▁hello", "ru": "▁привет"}
_PROMPT = (
    *(" ", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|ru|>"),
    *("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
)
AED_TOKENS = (*_PROMPT, "<|endoftext|>", *WORDS.values())


def write_tdt(folder: Path) -> Path:
    """A ``nemo-conformer-tdt``."""
    encoder = _model(
        [
            *_loudness(),
            helper.make_node("MatMul", ["by_frame", "by_loudness"], ["scores"]),
            helper.make_node("Transpose", ["scores"], ["outputs"], perm=[0, 2, 1]),
            helper.make_node("Div", ["length", "eight"], ["encoded_lengths"]),
        ],
        {"audio_signal": ["N", 80, "T"], "length": ["N"]},
        {"outputs": ["N", 3, "t"], "encoded_lengths": ["N"]},
        {"by_loudness": _BY_LOUDNESS, "eight": np.array(8)},
    )
    joint = _model(
        [
            helper.make_node("Squeeze", ["encoder_outputs", "last"], ["scores"]),
            helper.make_node("Squeeze", ["targets", "last"], ["token"]),
            helper.make_node("Gather", ["table", "token"], ["forbidden"]),
            helper.make_node("Add", ["scores", "forbidden"], ["tokens"]),
            helper.make_node("Concat", ["tokens", "durations"], ["outputs"], axis=1),
            helper.make_node("Identity", ["input_states_1"], ["output_states_1"]),
            helper.make_node("Identity", ["input_states_2"], ["output_states_2"]),
        ],
        {
            "encoder_outputs": [1, 3, 1],
            "targets": [1, 1],
            "target_length": [1],
            "input_states_1": [1, 1, 2],
            "input_states_2": [1, 1, 2],
        },
        {"outputs": [1, 8], "output_states_1": [1, 1, 2], "output_states_2": [1, 1, 2]},
        {"table": _NEVER_TWICE, "durations": _DURATIONS, "last": np.array([-1])},
    )
    return _write(folder, TOKENS, {"encoder-model": encoder, "decoder_joint-model": joint})


def write_aed(folder: Path) -> Path:
    """A ``nemo-conformer-aed``."""
    count = len(AED_TOKENS)
    end = AED_TOKENS.index("<|endoftext|>")
    following = np.zeros((count, count), np.float32)
    following[:, end] = 1.0
    for_language = np.zeros((count, count), np.float32)
    for language, word in WORDS.items():
        for_language[AED_TOKENS.index(f"<|{language}|>"), AED_TOKENS.index(word)] = 2.0
    encoder = _model(
        [
            *_loudness(),
            helper.make_node("Identity", ["by_frame"], ["encoder_embeddings"]),
            helper.make_node("Squeeze", ["by_frame", "last"], ["row"]),
            helper.make_node("Cast", ["row"], ["encoder_mask"], to=TensorProto.INT64),
        ],
        {"audio_signal": ["N", 80, "T"], "length": ["N"]},
        {"encoder_embeddings": ["N", "t", 1], "encoder_mask": ["N", "t"]},
        {"last": np.array([-1])},
    )
    decoder = _model(
        [
            helper.make_node("Gather", ["following", "input_ids"], ["by_token"]),
            # The sixth of the ten tokens of the prompt; nothing of one token alone.
            helper.make_node("Slice", ["input_ids", "sixth", "seventh", "one"], ["target"]),
            helper.make_node("Gather", ["for_language", "target"], ["of_target"]),
            helper.make_node("ReduceSum", ["of_target", "one"], ["by_language"], keepdims=1),
            helper.make_node("Add", ["by_token", "by_language"], ["logits"]),
            helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["ids", "ends"], ["state"]),
            helper.make_node(
                "Concat", ["decoder_mems", "state"], ["decoder_hidden_states"], axis=2
            ),
        ],
        {
            "input_ids": ["N", "L"],
            "encoder_embeddings": ["N", "t", 1],
            "encoder_mask": ["N", "t"],
            "decoder_mems": [1, "N", "M", 1],
        },
        {"logits": ["N", "L", count], "decoder_hidden_states": [1, "N", "m", 1]},
        {
            "following": following,
            "for_language": for_language,
            "one": np.array([1]),
            "sixth": np.array([-5]),
            "seventh": np.array([-4]),
            "ends": np.array([0, 3]),
        },
    )
    return _write(folder, AED_TOKENS, {"encoder-model": encoder, "decoder-model": decoder})


def _loudness() -> list[Any]:
    return [
        helper.make_node("ReduceMean", ["audio_signal"], ["loudness"], axes=[1], keepdims=1),
        helper.make_node(
            "AveragePool", ["loudness"], ["fewer"], kernel_shape=[8], strides=[8], ceil_mode=1
        ),
        helper.make_node("Transpose", ["fewer"], ["by_frame"], perm=[0, 2, 1]),
    ]


def _write(folder: Path, tokens: tuple[str, ...], parts: dict[str, onnx.ModelProto]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        onnx.save(part, folder / f"{name}.onnx")
    lines = [f"{token.replace(' ', '▁')} {number}" for number, token in enumerate(tokens)]
    (folder / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"features_size": 80}), encoding="utf-8")
    return folder


def _model(
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: dict[str, Any],
) -> onnx.ModelProto:
    types = dict.fromkeys(("length", "encoded_lengths", "encoder_mask", "input_ids"), "INT64")
    types |= dict.fromkeys(("targets", "target_length"), "INT32")
    values = [
        [
            helper.make_tensor_value_info(
                name, TensorProto.DataType.Value(types.get(name, "FLOAT")), shape
            )
            for name, shape in side.items()
        ]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "toy", *values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
