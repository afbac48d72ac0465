"""What the log records of the current task or thread are about; None where it is nothing.

A task inherits these from the one that created it, so they are set once, where a task begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

session_id: ContextVar[str | None] = ContextVar("session_id", default=None)
"""Id of the live session."""

job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
"""Id of the job."""


@contextmanager
def about_job(id: str) -> Iterator[None]:
    """The records inside are about this job."""
    token = job_id.set(id)
    try:
        yield
    finally:
        job_id.reset(token)
