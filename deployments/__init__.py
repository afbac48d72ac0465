"""One Serve deployment per file: lifecycle, queueing, health and metrics around an engine."""
