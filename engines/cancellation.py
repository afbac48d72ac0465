"""Cancellation of inference in threads: a check that engines poll, and a lock that respects it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from speech.errors import Cancelled

CancelCheck = Callable[[], bool]
"""True once nobody waits for the result any more."""

_POLL_S = 0.1


def raise_if_cancelled(cancelled: CancelCheck) -> None:
    """Raise Cancelled if the check is true."""
    if cancelled():
        raise Cancelled("the inference was cancelled")


@contextmanager
def hold_lock(lock: threading.Lock, cancelled: CancelCheck) -> Iterator[None]:
    """Hold ``lock``; raises Cancelled if the check becomes true while waiting for it."""
    while not lock.acquire(timeout=_POLL_S):
        raise_if_cancelled(cancelled)
    try:
        yield
    finally:
        lock.release()
