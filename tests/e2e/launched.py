"""Runs a command that serves a graph, in a process group of its own."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

STOP_S = 60.0


@contextmanager
def launched(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """The addresses that a command prints, of its ``service`` and its ``dashboard``.

    Afterwards it is interrupted, as by Ctrl-C.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    addresses: dict[str, str] = {}
    try:
        for line in process.stdout:
            if found := re.match(r"\s+(service|dashboard)\s+(http://\S+)", line):
                addresses[found[1]] = found[2]
            if len(addresses) == 2:
                break
        assert addresses, "the command printed no address"
        yield addresses
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_S)


def eventually(condition: Callable[[], bool], within_s: float = 120) -> None:
    """Wait for a state that the service reaches by itself. Raises AssertionError if it does not."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the service did not get there"
        time.sleep(0.1)
