"""One module per model family, each adapting a library to a port of the domain. No Ray, no HTTP."""

import os

# From 1.29 on ONNX Runtime tells its maker of every session; it looks at this when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
