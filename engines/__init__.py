"""A package or module per model family, adapting a library to a port. No Ray, no HTTP."""

import os

# Each library reads its own when it is imported, and would report its use to its makers otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime 1.29 and later, every session
os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")  # pyannote.audio 4, every file
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
