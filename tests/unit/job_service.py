"""Jobs without Ray: a store in a directory, the desk, and a worker with short intervals."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.guarded_http import GuardedHttp, any_address
from infra.job_audio import JobAudio
from infra.job_store import SqlJobStore
from infra.webhooks import Webhooks
from speech.jobs.desk import JobBounds, JobDesk
from speech.jobs.job_worker import JobRules, JobWorker, Progress, Work
from speech.jobs.states import Job

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RULES = JobRules(
    attempts=3,
    backoff_s=0.01,
    max_backoff_s=0.02,
    max_age_s=60.0,
    lease_s=10.0,
    poll_s=0.01,
    audio_ttl_s=3600.0,
    result_ttl_s=3600.0,
    webhook_attempts=3,
)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def echo(job: Job, data: bytes, progress: Progress) -> str:
    """The size of the audio as its result."""
    return str(len(data))


@dataclass
class Jobs:
    """One store, and what uses it."""

    store: SqlJobStore
    audio: JobAudio
    desk: JobDesk
    webhooks: Webhooks

    @asynccontextmanager
    async def working(self, work: Work = echo, **rules: Any) -> AsyncIterator[JobWorker]:
        """A running worker; cancelled at the end."""
        worker = JobWorker(self.store, self.audio, work, replace(RULES, **rules), 2, self.webhooks)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until(self, id: str, condition: Callable[[Job], bool], owner: str = "") -> Job:
        """The job once the condition holds."""
        async with asyncio.timeout(20):
            while True:
                job = await asyncio.to_thread(self.store.find, owner, id)
                assert job is not None
                if condition(job):
                    return job
                await asyncio.sleep(0.01)

    async def ended(self, id: str) -> Job:
        """The job once it has ended."""
        return await self.until(id, lambda job: job.ended_at is not None)


def jobs_in(
    directory: Path, url: str | None = None, max_queued: int = 100, max_stored_bytes: int = 10_000
) -> Jobs:
    store = SqlJobStore(url or f"sqlite:///{directory / 'jobs.sqlite3'}")
    audio = JobAudio(str(directory / "audio"))
    webhooks = Webhooks(SECRET, timeout_s=10.0, http=GuardedHttp(any_address))
    bounds = JobBounds(max_queued, max_stored_bytes)
    return Jobs(store, audio, JobDesk(store, audio, bounds, webhooks.check), webhooks)
