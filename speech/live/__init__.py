"""One live stream as a state machine, and the registry of all streams of a process."""
