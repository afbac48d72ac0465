"""A package or module per model family, adapting a library to a port. No Ray, no HTTP."""

import os

# ONNX Runtime 1.29 and later send telemetry about every session; this is read at its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
