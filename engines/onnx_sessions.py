"""Options of ONNX Runtime that the engines on it share."""

from collections.abc import Iterable

import onnxruntime

from engines.device import Device
from speech.errors import ModelUnavailable


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """``threads`` per inference, which sleep when there is none: other replicas share the cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def providers(device: Device) -> list[str]:
    """The providers for a device, the wanted one first; operators that it lacks run on the CPU."""
    return ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]


def check_providers(
    model: str, device: Device, sessions: Iterable[onnxruntime.InferenceSession]
) -> None:
    """Raise ModelUnavailable where onnxruntime took the CPU for a GPU that does not work.

    ``model`` is the subject of the message.
    """
    wanted = providers(device)[0]
    if not all(wanted in session.get_providers() for session in sessions):
        raise ModelUnavailable(
            f"{model} does not load on the GPU",
            detail=f"onnxruntime has no {wanted}; it wrote the reason to stderr",
        )
