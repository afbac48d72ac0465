"""One Serve deployment per file: lifecycle, queueing, health and metrics around an engine."""

from deployments.runtime.logs import connect

connect()  # every process that runs a deployment imports this package
