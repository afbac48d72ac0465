"""One Serve deployment per file: lifecycle, queueing, health and metrics around an engine."""

from deployments.runtime.logs import connect
from deployments.runtime.numpy_threads import limit_numpy_threads

# Every process that runs a deployment imports this package.
connect()
limit_numpy_threads()
