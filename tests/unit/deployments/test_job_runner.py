"""The deployment of a job worker, without Ray: its drain, and what Serve asks it meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from configs.catalogue import Catalogue
from configs.deployment_settings import Lifecycle
from configs.job_settings import JobSettings
from deployments import jobs as deployment
from deployments.jobs import LAST_WRITES_S, JobRunner, job_desk
from speech.jobs.job_worker import Progress
from speech.jobs.states import Job


class Runner(JobRunner):
    """Its work does not end; without the destructor, which is for Serve."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.begun = asyncio.Event()

    async def _work(self, job: Job, data: bytes, progress: Progress) -> str:
        self.begun.set()
        await asyncio.Event().wait()
        return ""

    def __del__(self) -> None:
        pass


class Decoder:
    """A deployment without replicas, which counts what it is asked nevertheless."""

    deployment_name = "Decoder"
    decode = None

    def __init__(self) -> None:
        self.holds = 0

    def broadcast(self, method: str) -> Any:
        self.holds += method == "hold"
        raise DeploymentUnavailableError(DeploymentID("Decoder", "app"))


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    """Of a runner that releases its jobs soon after it is drained."""
    return JobSettings(
        directory=str(tmp_path),
        lifecycle=Lifecycle(drain_timeout_s=LAST_WRITES_S + 1),
    )


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture
def runner(settings: JobSettings, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def never(then: Callable[[], Awaitable[None]]) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(deployment, "when_draining", never)
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [])
    handles: dict[str, Any] = {"decoder": decoder}
    return Runner(settings, Catalogue.load(), handles, {}, {"decoder": 1.0}, "whisper", None)


async def test_a_drained_runner_is_not_replaced_by_one_that_takes_its_jobs(
    runner: Runner, settings: JobSettings
) -> None:
    desk = job_desk(settings)
    job = await asyncio.to_thread(desk.submit, "", b"RIFF", "{}")
    await runner.check_health()
    await runner.begun.wait()
    await runner.drain()
    requeued = await asyncio.to_thread(desk.find, "", job.id)
    assert requeued is not None
    assert (requeued.state, requeued.attempts) == ("queued", 0)
    await runner.check_health()
    assert await runner.record_autoscaling_stats() == {"jobs": 0}


async def test_an_idle_runner_does_not_delay_the_end_of_the_models(
    runner: Runner, decoder: Decoder
) -> None:
    await runner.check_health()
    await asyncio.sleep(0.1)
    before = decoder.holds
    await runner.drain()
    assert decoder.holds == before
