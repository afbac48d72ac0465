"""Jobs: files that are worked on after their request was answered, whatever dies meanwhile.

queued → processing → completed | failed | cancelled; a failed attempt goes back to queued.
"""

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from speech.errors import (
    AudioTooLarge,
    AudioTooLong,
    EmptyAudio,
    InvalidRequest,
    Overloaded,
    SpeechError,
    TooManyChannels,
    UnsupportedAudio,
)

logger = logging.getLogger(__name__)

State = Literal["queued", "processing", "completed", "failed", "cancelled"]
WebhookState = Literal["pending", "delivered", "failed"]

HOPELESS = (
    InvalidRequest,
    EmptyAudio,
    UnsupportedAudio,
    AudioTooLarge,
    AudioTooLong,
    TooManyChannels,
)
"""Errors that another attempt would meet again."""

FULL_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is handed in; ``fingerprint`` tells two requests with one key apart."""

    id: str
    owner: str
    request: str
    fingerprint: str
    audio_bytes: int
    idempotency_key: str | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. Times are Unix seconds, ``result`` is JSON text.

    ``attempts`` counts those that began; ``error`` is that of the last attempt that failed, also
    while another one is still to come.
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
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to a job; it is worth nothing once another worker holds a newer one."""

    job: Job
    token: str


@dataclass(frozen=True, slots=True)
class Load:
    """How many jobs there are, and the bytes of audio that are kept for all of them."""

    queued: int
    processing: int
    stored_bytes: int


class JobStore(Protocol):
    """Where jobs are written down. Every method is one transaction, blocks, and is on disk after.

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
        """End a job that has not ended yet; the job as it stands then."""
        ...

    def load(self) -> Load:
        """What waits, runs and is kept."""
        ...

    def take(self, lease_s: float) -> Lease | None:
        """Begin an attempt at the oldest job that is due; nobody else takes it for ``lease_s``."""
        ...

    def take_lost(self, lease_s: float) -> Lease | None:
        """Take a job whose worker let its lease expire, without beginning an attempt."""
        ...

    def beat(self, lease: Lease, lease_s: float, stage: str | None, seconds_done: float) -> bool:
        """Prolong a lease and note the progress; False if the job is the worker's no more."""
        ...

    def complete(self, lease: Lease, result: str) -> bool:
        """Store the result; False if the job is the worker's no more."""
        ...

    def fail(self, lease: Lease, error: SpeechError) -> bool:
        """Give the job up for good; False if the job is the worker's no more."""
        ...

    def put_back(
        self, lease: Lease, delay_s: float, error: SpeechError | None, *, counted: bool
    ) -> bool:
        """Queue the job again, due in ``delay_s``; an attempt that is not ``counted`` is undone."""
        ...

    def take_webhook(self, hold_s: float) -> Job | None:
        """Begin an attempt to tell of a job that ended; it is due again after ``hold_s``."""
        ...

    def webhook_told(self, id: str) -> None:
        """The webhook was delivered."""
        ...

    def webhook_failed(self, id: str, retry_in_s: float | None) -> None:
        """It was not: it is due again later, or None for never."""
        ...

    def stale_audio(self, ttl_s: float) -> Sequence[str]:
        """Ids of jobs that ended ``ttl_s`` ago and still have audio."""
        ...

    def audio_gone(self, id: str) -> None:
        """The audio of a job was removed."""
        ...

    def with_audio(self) -> set[str]:
        """Ids of all jobs that have audio."""
        ...

    def forget(self, ttl_s: float) -> int:
        """Delete the jobs that ended ``ttl_s`` ago and have no audio left; how many."""
        ...


class AudioStore(Protocol):
    """Where the audio of jobs is kept, by job id. Every method blocks; raises OSError."""

    def put(self, id: str, data: bytes) -> None:
        """Keep it; it is on disk after."""
        ...

    def get(self, id: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def remove(self, id: str) -> None:
        """Remove it if it is there."""
        ...

    def stored(self) -> Sequence[str]:
        """Ids of all audio."""
        ...

    def age_s(self, id: str) -> float:
        """Seconds since it was stored. Raises FileNotFoundError."""
        ...


@dataclass(frozen=True, slots=True)
class JobBounds:
    """What is taken in: jobs that wait, and bytes of audio kept for jobs."""

    max_queued: int
    max_stored_bytes: int


class JobDesk:
    """Takes jobs in and tells how they stand. Every method blocks on disk or network.

    A job is seen by its owner only. ``check_webhook`` raises InvalidRequest for a URL that must not
    be called.
    """

    def __init__(
        self,
        store: JobStore,
        audio: AudioStore,
        bounds: JobBounds,
        check_webhook: Callable[[str], None],
    ) -> None:
        self._store = store
        self._audio = audio
        self._bounds = bounds
        self._check_webhook = check_webhook

    def submit(
        self,
        owner: str,
        data: bytes,
        request: str,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
    ) -> Job:
        """Queue a file; the job and its audio are on disk when this returns.

        A key that the owner has used before gives the job of that time, whatever became of it.
        Raises InvalidRequest if that was for another request, Overloaded if no more is taken in.
        The bounds are looked at before the audio is stored: requests at the same moment may exceed
        them by one each.
        """
        if webhook_url is not None:
            self._check_webhook(webhook_url)
        digest = hashlib.sha256(data)
        digest.update(request.encode())
        fingerprint = digest.hexdigest()
        if idempotency_key is not None:
            known = self._store.find_by_key(owner, idempotency_key)
            if known is not None:
                return _same(known, fingerprint)
        self._check_bounds(len(data))
        job = NewJob(
            id=f"job_{uuid.uuid4().hex}",
            owner=owner,
            request=request,
            fingerprint=fingerprint,
            audio_bytes=len(data),
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
        )
        self._keep(job.id, data)
        added = self._store.add(job)
        if added is not None:
            return added
        # The same key at the same time: the other request was first.
        self._audio.remove(job.id)
        assert idempotency_key is not None, "only a key can be taken"
        known = self._store.find_by_key(owner, idempotency_key)
        assert known is not None, "a job outlives the requests of its time"
        return _same(known, fingerprint)

    def _keep(self, id: str, data: bytes) -> None:
        try:
            self._audio.put(id, data)
        except OSError as error:
            logger.error("the audio of %s cannot be stored", id, exc_info=error)
            with contextlib.suppress(OSError):
                self._audio.remove(id)
            raise Overloaded("The audio cannot be stored now.", FULL_RETRY_AFTER_S) from None

    def _check_bounds(self, size: int) -> None:
        load = self._store.load()
        if load.queued >= self._bounds.max_queued:
            raise Overloaded(f"{load.queued} jobs are waiting already.", FULL_RETRY_AFTER_S)
        if load.stored_bytes + size > self._bounds.max_stored_bytes:
            raise Overloaded("The audio of jobs takes all the room it may.", FULL_RETRY_AFTER_S)

    def find(self, owner: str, id: str) -> Job | None:
        """The job with its result; None if there is none of this owner."""
        return self._store.find(owner, id)

    def page(self, owner: str, limit: int, after: str | None) -> tuple[Sequence[Job], bool]:
        """The owner's next jobs, the newest first, and whether there are more.

        Raises InvalidRequest if ``after`` is no job of this owner.
        """
        if after is not None and self._store.find(owner, after) is None:
            raise InvalidRequest(f"There is no job '{after}' to list the jobs after.")
        jobs = self._store.page(owner, limit + 1, after)
        return jobs[:limit], len(jobs) > limit

    def cancel(self, owner: str, id: str) -> Job | None:
        """End a job; one that has ended stays as it is."""
        return self._store.cancel(owner, id)


def _same(job: Job, fingerprint: str) -> Job:
    if job.fingerprint != fingerprint:
        raise InvalidRequest("This idempotency key was used for another request.")
    return job
