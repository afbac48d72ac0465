"""The worker of jobs: takes them from the store, tries, tries again, and tidies up."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from speech.errors import DeadlineExceeded, EngineFailed, Overloaded, SpeechError
from speech.jobs.states import NON_RETRYABLE, AudioStore, Job, JobStore, Lease

logger = logging.getLogger(__name__)
T = TypeVar("T")

BEATS_PER_LEASE = 5
"""A worker may miss this many heartbeats before its job is taken from it."""
MAX_BEAT_S = 1.0
"""Longest until a worker hears that its job was cancelled."""
BUSY_PAUSE_S = 10.0
"""Wait of a job that met a full queue."""
WEBHOOKS_AT_ONCE = 4
"""Deliveries of one worker, so that a receiver that is silent does not hold up all others."""
HOUSEKEEPING_S = 5.0
ORPHAN_AGE_S = 3600.0
"""Audio that has no job after so long belongs to a submission that never finished."""


@dataclass(frozen=True, slots=True)
class JobRules:
    """When to try again and what to keep; all in seconds but the counts."""

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
        """The wait after so many attempts: twice as long each time, up to the longest."""
        return float(min(self.backoff_s * 2 ** min(attempts - 1, 60), self.max_backoff_s))


class Progress:
    """Where the work on a job is: the stage that began last, the seconds of audio recognised.

    The work writes it, the heartbeat reads it.
    """

    def __init__(self) -> None:
        self.stage: str | None = None
        self.seconds_done = 0.0

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self.stage = stage


Work = Callable[[Job, bytes, Progress], Awaitable[str]]
"""Makes the result (JSON text) of a job from its audio, and may be cancelled."""


class Webhooks(Protocol):
    """Tells the world that a job ended."""

    @property
    def timeout_s(self) -> float:
        """Longest delivery."""
        ...

    async def deliver(self, job: Job) -> None:
        """Raises some error if the other side did not take it."""
        ...


class JobWorker:
    """Runs up to ``concurrency`` jobs at once. Any number of workers may share a store.

    A worker that dies leaves its jobs to the others, who see its leases expire.
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
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until told to stop. Cancelling it gives the jobs that run back to the store."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._repeat(self._next_job, self._rules.poll_s))
            group.create_task(self._repeat(self._next_lost, self._rules.poll_s))
            group.create_task(self._repeat(self._tidy, HOUSEKEEPING_S))
            group.create_task(self._repeat(self._sweep, ORPHAN_AGE_S))
            for _ in range(WEBHOOKS_AT_ONCE if self._webhooks is not None else 0):
                group.create_task(self._repeat(self._next_webhook, self._rules.poll_s))

    def stop(self) -> None:
        """Let :meth:`run` return after what runs now."""
        self._stopping.set()

    async def _repeat(self, step: Callable[[], Awaitable[bool]], pause_s: float) -> None:
        """Do one thing over and over, pausing where there was nothing to do."""
        while not self._stopping.is_set():
            try:
                more = await step()
            except (SpeechError, OSError) as error:
                logger.warning("jobs: %s", error)
                more = False
            if not more:
                # Workers that started together need not ask together for ever.
                await self._pause(pause_s * random.uniform(0.75, 1.25))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _next_job(self) -> bool:
        lease = await asyncio.to_thread(self._store.take, self._rules.lease_s)
        if lease is not None:
            await self._attempt(lease)
        return lease is not None

    async def _attempt(self, lease: Lease) -> None:
        progress = Progress()
        work = asyncio.create_task(self._result(lease.job, progress))
        beat_s = min(self._rules.lease_s / BEATS_PER_LEASE, MAX_BEAT_S)
        try:
            while not (await asyncio.wait({work}, timeout=beat_s))[0]:
                if not await self._beat(lease, progress):
                    logger.info("job %s was cancelled or taken over", lease.job.id)
                    return
            await self._settle(lease, work)
        except asyncio.CancelledError:
            # Nobody's fault: the next worker begins at once, as if this one had not.
            await asyncio.to_thread(self._store.requeue, lease, 0.0, None, counted=False)
            raise
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _beat(self, lease: Lease, progress: Progress) -> bool:
        try:
            return await asyncio.to_thread(
                self._store.renew,
                lease,
                self._rules.lease_s,
                progress.stage,
                progress.seconds_done,
            )
        except Overloaded as error:
            # The store comes back or another worker takes over: completing tells which.
            logger.warning("job %s: no heartbeat: %s", lease.job.id, error)
            return True

    async def _result(self, job: Job, progress: Progress) -> str:
        if time.time() - job.created_at > self._rules.max_age_s:
            raise DeadlineExceeded(f"the job was not done within {self._rules.max_age_s:g} s")
        try:
            data = await asyncio.to_thread(self._audio.get, job.id)
        except FileNotFoundError:
            raise EngineFailed("the audio of the job is gone") from None
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
            await self._insist(lambda: self._store.complete(lease, result))

    async def _failed(self, lease: Lease, error: SpeechError) -> None:
        job, rules = lease.job, self._rules
        # Being turned away for the load of others is no failure of the job.
        busy = type(error) is Overloaded
        aged = time.time() - job.created_at > rules.max_age_s
        if (
            isinstance(error, NON_RETRYABLE)
            or aged
            or (job.attempts >= rules.attempts and not busy)
        ):
            logger.warning("job %s failed in attempt %d: %s", job.id, job.attempts, error)
            await self._insist(lambda: self._store.fail(lease, error))
            return
        logger.warning("job %s: attempt %d did not succeed: %s", job.id, job.attempts, error)
        delay_s = BUSY_PAUSE_S if busy else rules.backoff(job.attempts)
        await self._insist(lambda: self._store.requeue(lease, delay_s, error, counted=not busy))

    async def _insist(self, write: Callable[[], T]) -> T:
        """Write although the database may be away for a while; after a lease it is in vain."""
        gives_up_at = time.monotonic() + self._rules.lease_s
        while True:
            try:
                return await asyncio.to_thread(write)
            except Overloaded:
                if time.monotonic() > gives_up_at:
                    raise
                await asyncio.sleep(self._rules.poll_s)

    async def _next_lost(self) -> bool:
        lease = await asyncio.to_thread(self._store.take_expired, self._rules.lease_s)
        if lease is not None:
            await self._failed(lease, EngineFailed("the worker of this job died"))
        return lease is not None

    async def _next_webhook(self) -> bool:
        assert self._webhooks is not None
        rules = self._rules
        hold_s = 2 * self._webhooks.timeout_s
        job = await asyncio.to_thread(self._store.take_webhook, hold_s)
        if job is None:
            return False
        try:
            await self._webhooks.deliver(job)
        except Exception as error:  # whatever the URL of a client may lead to
            attempt = job.webhook_attempts
            logger.warning("webhook of %s, attempt %d: %r", job.id, attempt, error)
            retry = rules.backoff(attempt) if attempt < rules.webhook_attempts else None
            await asyncio.to_thread(self._store.webhook_failed, job.id, retry)
        else:
            await asyncio.to_thread(self._store.webhook_delivered, job.id)
        return True

    async def _tidy(self) -> bool:
        await asyncio.to_thread(self._forget)
        return False

    def _forget(self) -> None:
        for id in self._store.expired_audio(self._rules.audio_ttl_s):
            self._audio.remove(id)
            self._store.audio_removed(id)
        self._store.delete_expired(self._rules.result_ttl_s)

    async def _sweep(self) -> bool:
        await asyncio.to_thread(self._remove_orphans)
        return False

    def _remove_orphans(self) -> None:
        for id in set(self._audio.stored()) - self._store.with_audio():
            if self._audio.age_s(id) > ORPHAN_AGE_S:
                self._audio.remove(id)
