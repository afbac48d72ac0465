"""Nothing that an engine loads calls anybody."""

import os
import subprocess
import sys

LOADED = "import engines, os; from engines.vad.silero_vad import SileroVad; SileroVad(); print({})"


def test_telemetry_of_onnx_runtime_is_off_before_it_is_loaded() -> None:
    """It reads the environment of C, which is what a child of the process inherits."""
    inherited = LOADED.format("os.popen('echo $ORT_DISABLE_TELEMETRY').read()")
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [sys.executable, "-c", inherited], env=environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["1"], ran.stderr
