"""States and values of jobs, the ports to their stores, and which errors are worth a retry.

queued → processing → completed | failed | cancelled; a failed attempt returns to queued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from speech.errors import (
    AudioTooLarge,
    AudioTooLong,
    EmptyAudio,
    InvalidRequest,
    ModelNotInstalled,
    SpeechError,
    TooManyChannels,
    UnsupportedAudio,
)

State = Literal["queued", "processing", "completed", "failed", "cancelled"]
WebhookState = Literal["pending", "delivered", "failed"]

NON_RETRYABLE = (
    InvalidRequest,
    ModelNotInstalled,
    EmptyAudio,
    UnsupportedAudio,
    AudioTooLarge,
    AudioTooLong,
    TooManyChannels,
)
"""Errors that every further attempt would meet again."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be queued; ``fingerprint`` distinguishes two requests with the same key."""

    id: str
    owner: str
    request: str
    fingerprint: str
    audio_bytes: int
    idempotency_key: str | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored. Times are Unix seconds, ``result`` is JSON text.

    ``attempts`` counts those that began; ``error`` is that of the last failed attempt, also while
    another one is still due. The same holds of the attempts to deliver the webhook, of which the
    next is due at ``webhook_due_at``.
    """

    id: str
    owner: str
    state: State
    request: str
    fingerprint: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    stage: str | None
    seconds_done: float
    error_code: str | None
    error: str | None
    webhook_url: str | None
    webhook_state: WebhookState | None
    webhook_attempts: int
    webhook_attempted_at: float | None
    webhook_due_at: float | None
    webhook_error: str | None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to a job; void once another worker holds a newer one."""

    job: Job
    token: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many jobs have not ended."""

    queued: int
    processing: int


class JobStore(Protocol):
    """Where jobs are stored. Every method is one transaction, blocks, and is durable on return.

    Raises Overloaded where the database does not answer.
    """

    def add(self, job: NewJob) -> Job | None:
        """Queue a job; None if its owner has used the idempotency key before."""
        ...

    def find(self, owner: str, id: str) -> Job | None:
        """A job of this owner with its result."""
        ...

    def find_by_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job for which the owner used this key."""
        ...

    def page(self, owner: str, limit: int, after: str | None) -> Sequence[Job]:
        """Jobs of this owner without results, the newest first, those after ``after`` (an id)."""
        ...

    def cancel(self, owner: str, id: str) -> Job | None:
        """Cancel a job that has not ended yet; the job as it is then."""
        ...

    def backlog(self) -> Backlog:
        """Count the jobs that have not ended; takes no longer for any number that have."""
        ...

    def stored_bytes(self) -> int:
        """Bytes of the audio that is stored for all jobs, ended or not."""
        ...

    def take(self, lease_s: float) -> Lease | None:
        """Begin an attempt at the oldest due job; no other worker gets it for ``lease_s``."""
        ...

    def take_expired(self, lease_s: float) -> Lease | None:
        """Take a job whose lease expired, without beginning an attempt."""
        ...

    def renew(self, lease: Lease, lease_s: float, stage: str | None, seconds_done: float) -> bool:
        """Renew a lease and store the progress; False if the lease is void."""
        ...

    def complete(self, lease: Lease, result: str) -> bool:
        """Store the result; False if the lease is void."""
        ...

    def fail(self, lease: Lease, error: SpeechError) -> bool:
        """End the job as failed; False if the lease is void."""
        ...

    def requeue(
        self, lease: Lease, delay_s: float, error: SpeechError | None, *, counted: bool
    ) -> bool:
        """Queue the job again, due in ``delay_s``; an attempt that is not ``counted`` is undone."""
        ...

    def take_webhook(self, hold_s: float) -> Job | None:
        """Begin an attempt to deliver a due webhook; it is due again after ``hold_s``."""
        ...

    def webhook_delivered(self, id: str) -> None:
        """Store that the webhook was delivered."""
        ...

    def webhook_failed(self, id: str, retry_in_s: float | None, error: str) -> None:
        """Store why the attempt failed: due again in ``retry_in_s``, or never if None."""
        ...

    def expired_audio(self, ttl_s: float) -> Sequence[str]:
        """Ids of jobs that ended ``ttl_s`` ago and still have audio."""
        ...

    def audio_removed(self, id: str) -> None:
        """Store that the audio of a job was removed."""
        ...

    def with_audio(self) -> set[str]:
        """Ids of all jobs that have audio."""
        ...

    def delete_expired(self, ttl_s: float) -> int:
        """Delete the jobs that ended ``ttl_s`` ago and have no audio left; how many."""
        ...


class AudioStore(Protocol):
    """Where the audio of jobs is stored, by job id. Every method blocks; raises OSError."""

    def put(self, id: str, data: bytes) -> None:
        """Store it; it is durable on return."""
        ...

    def get(self, id: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def remove(self, id: str) -> None:
        """Remove it if it exists."""
        ...

    def stored(self) -> Sequence[str]:
        """Ids of all audio."""
        ...

    def age_s(self, id: str) -> float:
        """Seconds since it was stored. Raises FileNotFoundError."""
        ...
