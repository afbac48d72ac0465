"""`python -m tests.e2e.chaos_worker DATABASE DIRECTORY`: a worker that the test kills.

Every attempt has a unique result, so that two results of one job cannot be equal.
"""

import asyncio
import hashlib
import json
import sys
import uuid

from infra.job_audio import JobAudio
from infra.job_store import SqlJobStore
from speech.jobs.job_worker import JobRules, JobWorker, Progress
from speech.jobs.states import Job

RULES = JobRules(
    attempts=50,
    backoff_s=0.05,
    max_backoff_s=0.2,
    max_age_s=600.0,
    lease_s=1.0,
    poll_s=0.05,
    audio_ttl_s=600.0,
    result_ttl_s=600.0,
    webhook_attempts=1,
)


async def work(job: Job, data: bytes, progress: Progress) -> str:
    """Take a while; the result names its audio and is unique to its attempt."""
    await asyncio.sleep(0.4)
    return json.dumps({"audio": hashlib.sha256(data).hexdigest(), "attempt": uuid.uuid4().hex})


async def main(database: str, directory: str) -> None:
    """Work until killed."""
    worker = JobWorker(SqlJobStore(database), JobAudio(directory), work, RULES, 2, None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
