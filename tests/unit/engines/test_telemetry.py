"""No library of an engine connects to another machine."""

import os
import socket
import subprocess
import sys

from tests.unit.engines.conftest import Calls

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
LOADED = "import engines, os; from engines.vad.silero_vad import SileroVad; SileroVad(); print({})"


def test_the_telemetry_of_the_libraries_is_off_before_they_are_loaded() -> None:
    """ONNX Runtime reads the environment of C, which is what a child of the process inherits."""
    inherited = LOADED.format(
        f"os.popen('echo {' '.join(f'${name}' for name in SWITCHES)}').read()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES}
    ran = subprocess.run(
        [sys.executable, "-c", inherited], env=environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == list(SWITCHES.values()), ran.stderr


def test_the_guard_of_these_tests_notices_a_call(calls_elsewhere: Calls) -> None:
    socket.getaddrinfo("192.0.2.1", 443, flags=socket.AI_NUMERICHOST)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        probe.connect_ex(("127.0.0.1", 9))
    (call,) = calls_elsewhere
    assert "192.0.2.1" in call
    calls_elsewhere.clear()
