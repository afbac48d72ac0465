"""The worker of jobs: takes them from the store, attempts and retries them, delivers webhooks."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from speech.errors import DeadlineExceeded, EngineFailed, Overloaded, SpeechError
from speech.jobs.retention import ORPHAN_AGE_S, Retention
from speech.jobs.states import NON_RETRYABLE, AudioStore, Job, JobStore, Lease
from speech.log_context import about_job

logger = logging.getLogger(f"speechgraph.{__name__}")
T = TypeVar("T")

HEARTBEATS_PER_LEASE = 5
"""A worker may miss this many heartbeats before its lease expires."""
MAX_HEARTBEAT_S = 1.0
"""Longest until a worker notices that its job was cancelled."""
OVERLOADED_RETRY_S = 10.0
"""Delay of a job that was rejected by a full queue."""
WEBHOOKS_AT_ONCE = 4
"""Concurrent deliveries of one worker, so that a slow receiver does not delay all others."""
EXPIRY_INTERVAL_S = 5.0
MAX_REASON_CHARS = 500
"""Longest reason of a failed delivery; a part of it is up to the receiver."""


@dataclass(frozen=True, slots=True)
class JobRules:
    """When to retry and how long to keep; all in seconds but the counts."""

    attempts: int
    backoff_s: float
    max_backoff_s: float
    max_age_s: float
    lease_s: float
    poll_s: float
    audio_ttl_s: float
    result_ttl_s: float
    webhook_attempts: int

    def backoff(self, attempts: int) -> float:
        """The delay after so many attempts: it doubles with each, up to the longest."""
        return float(min(self.backoff_s * 2 ** min(attempts - 1, 60), self.max_backoff_s))


class Progress:
    """Progress of one attempt: the stage that began last, the seconds of audio recognised.

    Written by the work, read by the heartbeat.
    """

    def __init__(self) -> None:
        self.stage: str | None = None
        self.seconds_done = 0.0

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self.stage = stage


Work = Callable[[Job, bytes, Progress], Awaitable[str]]
"""Computes the result (JSON text) of a job from its audio, and may be cancelled."""


class Webhooks(Protocol):
    """Notifies receivers that a job has ended."""

    @property
    def timeout_s(self) -> float:
        """Longest delivery."""
        ...

    async def deliver(self, job: Job) -> None:
        """Raises any error if the receiver did not accept it."""
        ...


class JobWorker:
    """Runs up to ``concurrency`` jobs at once. Any number of workers may share a store.

    The leases of a worker that dies expire, and other workers take over its jobs.
    """

    def __init__(
        self,
        store: JobStore,
        audio: AudioStore,
        work: Work,
        rules: JobRules,
        concurrency: int,
        webhooks: Webhooks | None,
    ) -> None:
        self._store = store
        self._audio = audio
        self._work = work
        self._rules = rules
        self._concurrency = concurrency
        self._webhooks = webhooks
        self._retention = Retention(store, audio, rules.audio_ttl_s, rules.result_ttl_s)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until stopped. Cancelling it returns the running jobs to the store."""
        poll_s = self._rules.poll_s
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._repeat(self._next_job, poll_s))
            group.create_task(self._repeat(self._next_expired_lease, poll_s))
            group.create_task(self._repeat(self._expire, EXPIRY_INTERVAL_S))
            group.create_task(self._repeat(self._remove_orphans, ORPHAN_AGE_S))
            for _ in range(WEBHOOKS_AT_ONCE if self._webhooks is not None else 0):
                group.create_task(self._repeat(self._next_webhook, poll_s))

    def stop(self) -> None:
        """Let :meth:`run` return once what runs now has finished."""
        self._stopping.set()

    async def _repeat(self, step: Callable[[], Awaitable[bool]], pause_s: float) -> None:
        """Repeat a step, pausing where it found nothing to do or failed.

        An error neither ends the loop nor reaches the other loops. It is logged when it first
        occurs, not in every round that it persists.
        """
        logged = ""
        while not self._stopping.is_set():
            try:
                more = await step()
                logged = ""
            except Exception as error:
                if repr(error) != logged:
                    logged = repr(error)
                    expected = isinstance(error, SpeechError | OSError)
                    logger.error("jobs: %r", error, exc_info=None if expected else error)
                more = False
            if not more:
                # Jitter, so that workers that started together do not poll together.
                await self._pause(pause_s * random.uniform(0.75, 1.25))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _next_job(self) -> bool:
        taking = asyncio.create_task(asyncio.to_thread(self._store.take, self._rules.lease_s))
        try:
            lease = await asyncio.shield(taking)
        except asyncio.CancelledError:  # the thread takes it nevertheless
            if (lease := await taking) is not None:
                await self._release(lease)
            raise
        if lease is not None:
            with about_job(lease.job.id):
                await self._attempt(lease)
        return lease is not None

    async def _attempt(self, lease: Lease) -> None:
        progress = Progress()
        work = asyncio.create_task(self._result(lease.job, progress))
        interval_s = min(self._rules.lease_s / HEARTBEATS_PER_LEASE, MAX_HEARTBEAT_S)
        try:
            while not (await asyncio.wait({work}, timeout=interval_s))[0]:
                if not await self._heartbeat(lease, progress):
                    logger.info("job %s was cancelled or taken over", lease.job.id)
                    return
            await self._settle(lease, work)
        except asyncio.CancelledError:
            await self._release(lease)
            raise
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _release(self, lease: Lease) -> None:
        """The worker stops, not the job: it is due at once, and this attempt does not count."""
        await asyncio.to_thread(self._store.requeue, lease, 0.0, None, counted=False)

    async def _heartbeat(self, lease: Lease, progress: Progress) -> bool:
        stage, seconds_done = progress.stage, progress.seconds_done
        try:
            return await asyncio.to_thread(
                self._store.renew, lease, self._rules.lease_s, stage, seconds_done
            )
        except Overloaded as error:
            # Whether the lease expired meanwhile is decided when the result is written.
            logger.warning("job %s: no heartbeat: %s", lease.job.id, error)
            return True

    async def _result(self, job: Job, progress: Progress) -> str:
        if time.time() - job.created_at > self._rules.max_age_s:
            raise DeadlineExceeded(f"the job was not done within {self._rules.max_age_s:g} s")
        try:
            data = await asyncio.to_thread(self._audio.get, job.id)
        except FileNotFoundError:
            raise EngineFailed("the audio of the job is missing") from None
        return await self._work(job, data, progress)

    async def _settle(self, lease: Lease, work: asyncio.Task[str]) -> None:
        try:
            result = work.result()
        except SpeechError as error:
            await self._failed(lease, error)
        except Exception as error:
            logger.error("job %s failed", lease.job.id, exc_info=error)
            await self._failed(lease, SpeechError(f"internal error in {lease.job.id}"))
        else:
            await self._write(lambda: self._store.complete(lease, result))

    async def _failed(self, lease: Lease, error: SpeechError) -> None:
        job, rules = lease.job, self._rules
        # A full queue is caused by the load of others: the attempt does not count.
        overloaded = type(error) is Overloaded
        aged = time.time() - job.created_at > rules.max_age_s
        exhausted = job.attempts >= rules.attempts and not overloaded
        if isinstance(error, NON_RETRYABLE) or aged or exhausted:
            logger.warning("job %s failed in attempt %d: %s", job.id, job.attempts, error)
            await self._write(lambda: self._store.fail(lease, error))
            return
        logger.warning("job %s: attempt %d failed, retrying: %s", job.id, job.attempts, error)
        delay_s = OVERLOADED_RETRY_S if overloaded else rules.backoff(job.attempts)
        await self._write(
            lambda: self._store.requeue(lease, delay_s, error, counted=not overloaded)
        )

    async def _write(self, write: Callable[[], T]) -> T:
        """Write, retrying for the length of a lease while the database does not answer."""
        deadline = time.monotonic() + self._rules.lease_s
        while True:
            try:
                return await asyncio.to_thread(write)
            except Overloaded:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self._rules.poll_s)

    async def _next_expired_lease(self) -> bool:
        lease = await asyncio.to_thread(self._store.take_expired, self._rules.lease_s)
        if lease is not None:
            with about_job(lease.job.id):
                await self._failed(lease, EngineFailed("the worker of this job died"))
        return lease is not None

    async def _next_webhook(self) -> bool:
        assert self._webhooks is not None
        hold_s = 2 * self._webhooks.timeout_s
        job = await asyncio.to_thread(self._store.take_webhook, hold_s)
        if job is None:
            return False
        with about_job(job.id):
            await self._deliver(job)
        return True

    async def _deliver(self, job: Job) -> None:
        assert self._webhooks is not None
        rules = self._rules
        try:
            await self._webhooks.deliver(job)
        except Exception as error:  # whatever a URL that a client named may cause
            attempt = job.webhook_attempts
            logger.warning("job %s: webhook attempt %d failed: %r", job.id, attempt, error)
            retry = rules.backoff(attempt) if attempt < rules.webhook_attempts else None
            reason = self._reason(error)
            await asyncio.to_thread(self._store.webhook_failed, job.id, retry, reason)
        else:
            await asyncio.to_thread(self._store.webhook_delivered, job.id)

    def _reason(self, error: Exception) -> str:
        """What the owner of the job reads; the text of an unexpected error is withheld."""
        assert self._webhooks is not None
        if isinstance(error, TimeoutError):
            return f"no response within {self._webhooks.timeout_s:g} s"
        if isinstance(error, SpeechError):
            return error.message
        if isinstance(error, ConnectionError):
            return str(error)[:MAX_REASON_CHARS]
        return "internal error"

    async def _expire(self) -> bool:
        await asyncio.to_thread(self._retention.expire)
        return False

    async def _remove_orphans(self) -> bool:
        await asyncio.to_thread(self._retention.remove_orphans)
        return False
