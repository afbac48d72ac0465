"""Options of ONNX Runtime that the engines on it share."""

import onnxruntime

from engines.device import Device


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
