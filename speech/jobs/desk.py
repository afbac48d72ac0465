"""Accepts jobs within their bounds and gives their owners access to them."""

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speech.errors import InvalidRequest, Overloaded
from speech.jobs.states import AudioStore, Job, JobStore, NewJob

logger = logging.getLogger(f"speechgraph.{__name__}")

FULL_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class JobBounds:
    """Bounds of admission: queued jobs, and bytes of audio stored for all jobs."""

    max_queued: int
    max_stored_bytes: int


class JobDesk:
    """Submits, finds, lists and cancels jobs. Every method blocks on disk or network.

    A job is visible to its owner only. ``check_webhook`` raises InvalidRequest for a URL that must
    not be called.
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
        """Queue a file; the job and its audio are durable when this returns.

        A key that the owner has used before returns the job created then, in whatever state it is.
        Raises InvalidRequest if that was for another request, Overloaded at a bound. The bounds are
        checked before the audio is stored: concurrent requests may exceed them by one each.
        """
        if webhook_url is not None:
            self._check_webhook(webhook_url)
        digest = hashlib.sha256(data)
        digest.update(request.encode())
        fingerprint = digest.hexdigest()
        if idempotency_key is not None:
            existing = self._store.find_by_key(owner, idempotency_key)
            if existing is not None:
                return _same(existing, fingerprint)
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
        self._store_audio(job.id, data)
        added = self._store.add(job)
        if added is not None:
            return added
        # A concurrent request with the same key was first.
        with contextlib.suppress(OSError):
            self._audio.remove(job.id)
        assert idempotency_key is not None, "only a key can be in use"
        existing = self._store.find_by_key(owner, idempotency_key)
        assert existing is not None, "a job outlives concurrent requests"
        return _same(existing, fingerprint)

    def _store_audio(self, id: str, data: bytes) -> None:
        try:
            self._audio.put(id, data)
        except OSError as error:
            logger.error("job %s: the audio cannot be stored", id, exc_info=error)
            with contextlib.suppress(OSError):
                self._audio.remove(id)
            raise Overloaded("The audio cannot be stored now.", FULL_RETRY_AFTER_S) from None

    def _check_bounds(self, size: int) -> None:
        queued = self._store.backlog().queued
        if queued >= self._bounds.max_queued:
            raise Overloaded(f"{queued} jobs are waiting already.", FULL_RETRY_AFTER_S)
        if self._store.stored_bytes() + size > self._bounds.max_stored_bytes:
            raise Overloaded("The audio of jobs takes all the room it may.", FULL_RETRY_AFTER_S)

    def find(self, owner: str, id: str) -> Job | None:
        """The job with its result; None if there is none of this owner."""
        return self._store.find(owner, id)

    def page(self, owner: str, limit: int, after: str | None) -> tuple[Sequence[Job], bool]:
        """A page of the owner's jobs, the newest first, and whether more follow.

        Raises InvalidRequest if ``after`` is no job of this owner.
        """
        if after is not None and self._store.find(owner, after) is None:
            raise InvalidRequest(f"There is no job '{after}' to list the jobs after.")
        jobs = self._store.page(owner, limit + 1, after)
        return jobs[:limit], len(jobs) > limit

    def cancel(self, owner: str, id: str) -> Job | None:
        """Cancel a job; one that has ended does not change."""
        return self._store.cancel(owner, id)


def _same(job: Job, fingerprint: str) -> Job:
    if job.fingerprint != fingerprint:
        raise InvalidRequest("This idempotency key was used for another request.")
    return job
