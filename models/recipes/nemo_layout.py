"""Write ``demo-nemo``: the network of ``demo-vosk`` in the layout that onnx-asr reads.

onnx-asr computes the features of NeMo, brings the bands of each utterance to mean 0 and variance 1,
and counts a last output frame for what remains of the four. The file of ``demo-vosk`` expects the
features themselves, so the mean and the deviation of its training data are put back in front of it,
and silence behind.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_asr
from onnx import helper, numpy_helper

from engines.onnx_sessions import session_options
from models.recipes import asr_cards, evaluate_ctc
from models.recipes.ctc_export import NEMO, OFFLINE
from models.recipes.ctc_model import STRIDE
from models.recipes.evaluate import COUNT
from models.recipes.features import MELS
from models.recipes.measurements import record
from models.recipes.paths import DEMO

_FEATURES, _RESTORED = "audio_signal", "log_mel"
_QUIET = -15.9


def write(source: Path = DEMO / OFFLINE, folder: Path = DEMO / NEMO) -> None:
    """``model.onnx``, ``vocab.txt`` and ``config.json`` in ``folder``, from a ``demo-vosk``."""
    model = onnx.load(str(source / "model.onnx"))
    graph = model.graph
    constants = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    for node in graph.node:
        node.input[:] = [_RESTORED if name == _FEATURES else name for name in node.input]
    for name, value in {
        "deviation": 1 / constants["trunk.scale_nemo"].reshape(1, -1, 1),
        "mean": constants["trunk.mean_nemo"].reshape(1, -1, 1),
        "paddings": np.array([0, 0, 0, 0, 0, STRIDE - 1]),
        "quiet": np.float32(_QUIET),
    }.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    restored = [
        helper.make_node("Mul", [_FEATURES, "deviation"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["shifted"]),
        helper.make_node("Pad", ["shifted", "paddings", "quiet"], [_RESTORED]),
    ]
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del model.metadata_props[:]  # those of sherpa-onnx
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    shutil.copyfile(source / "tokens.txt", folder / "vocab.txt")
    config = {
        "model_type": "nemo-conformer-ctc",
        "features_size": MELS["nemo"],
        "subsampling_factor": STRIDE,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path = DEMO / NEMO) -> None:
    """Write ``metrics.json``: figures through onnx-asr, and the network's of ``demo-vosk``."""
    recogniser = onnx_asr.load_model(
        "nemo-conformer-ctc",
        folder,
        sess_options=session_options(threads=1),
        providers=["CPUExecutionProvider"],
    ).with_timestamps()
    of_the_network = json.loads((DEMO / OFFLINE / "metrics.json").read_text(encoding="utf-8"))
    kept = ("bar_wer", "parameters", "training_cpu_s")
    record(
        folder / "metrics.json",
        **{name: of_the_network[name] for name in kept},
        size_bytes=sum((folder / name).stat().st_size for name in ("model.onnx", "vocab.txt")),
        **evaluate_ctc.measure(recogniser.recognize, COUNT),
    )


if __name__ == "__main__":
    write()
    measure()
    asr_cards.write()
