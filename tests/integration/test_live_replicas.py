"""Live streams outlive their replicas: killed, scaled away or redeployed, no word is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from ray import serve

from configs.catalogue import REPOSITORY_ROOT, Catalogue
from configs.settings import LiveSettings
from deployments.live.lane_client import LaneRecognizer
from deployments.live.recogniser import Live, lane_directory, live_options
from deployments.runtime.model_access import ModelFiles
from speech.audio import SAMPLE_RATE, Samples
from tests.integration.test_faults import eventually, replica_pids
from tests.integration.test_scaling import QUICK, running
from tests.unit.heldout import clips

MODEL = "demo-vosk-streaming"
STREAMS = 20
CHUNK = SAMPLE_RATE // 10
Utterances = list[list[str]]
"""The words of each utterance."""


def deploy(app: str, **fields: object) -> None:
    """Start or replace an application that has live replicas and nothing else."""
    settings = LiveSettings.model_validate(
        {
            "default_model": MODEL,
            "placement": "replicas",
            "resources": {"num_cpus": 1},
            "lifecycle": {"health_check_period_s": 1.0},
            **fields,
        }
    )
    files = ModelFiles(Catalogue.load(), REPOSITORY_ROOT / "models" / "hub", offline=True)
    deployment = serve.deployment(Live, **live_options(settings, callers_drain_s=0))
    serve.run(deployment.bind(settings, files), name=app, route_prefix=None)


@contextmanager
def deployed(app: str, **fields: object) -> Iterator[None]:
    deploy(app, **fields)
    try:
        yield
    finally:
        serve.delete(app)


def replicas(count: int) -> dict[str, int]:
    """As many replicas, always."""
    return {"min_replicas": count, "max_replicas": count}


@asynccontextmanager
async def lanes(app: str) -> AsyncIterator[LaneRecognizer]:
    """The recogniser of an ingress, with a lane to each replica."""
    directory = lane_directory(serve.get_deployment_handle("Live", app))
    recognizer = LaneRecognizer(directory, tick_s=0.04, recover_s=30.0, max_utterance_s=20.0)
    try:
        yield recognizer
    finally:
        await recognizer.close()


async def recognise(
    recognizer: LaneRecognizer, utterances: list[Samples], pace: float
) -> Utterances:
    """The words of one stream, fed ``pace`` times as fast as spoken."""
    loop = asyncio.get_running_loop()
    stream = await recognizer.open(MODEL)
    words: Utterances = []
    due = loop.time()
    try:
        for samples in utterances:
            for first in range(0, len(samples), CHUNK):
                due += CHUNK / SAMPLE_RATE / pace
                await asyncio.sleep(due - loop.time())
                await stream.feed(samples[first : first + CHUNK])
            words.append([word.text for word in await stream.finish()])
    finally:
        await stream.close()
    return words


async def recognise_all(
    recognizer: LaneRecognizer, talks: list[list[Samples]], pace: float = 1.0
) -> list[Utterances]:
    return await asyncio.gather(*(recognise(recognizer, talk, pace) for talk in talks))


@pytest.fixture(scope="module")
def talks(demo_audio: Path) -> list[list[Samples]]:
    """The audio of each stream: two sentences, other ones than its neighbours."""
    spoken = [clip.samples for clip in clips(demo_audio, count=(STREAMS + 1) // 2 + 1)]
    return [list(pair) for pair in pairwise(spoken)][:STREAMS]


@pytest.fixture(scope="module")
def undisturbed(cluster: str, talks: list[list[Samples]]) -> list[Utterances]:
    """The words of every stream while no replica dies."""

    async def run() -> list[Utterances]:
        async with lanes("calm") as recognizer:
            return await recognise_all(recognizer, talks, pace=4.0)

    with deployed("calm", scaling=replicas(1)):
        words = asyncio.run(run())
    assert all(len(utterance) > 1 for stream in words for utterance in stream)
    return words


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, condition)


async def test_a_killed_replica_costs_a_pause_but_no_word(
    cluster: str, talks: list[list[Samples]], undisturbed: list[Utterances]
) -> None:
    with deployed("live", scaling=replicas(2)):
        async with lanes("live") as recognizer:
            streaming = asyncio.create_task(recognise_all(recognizer, talks))
            await asyncio.sleep(2.0)
            before = replica_pids("live", "Live")
            assert len(before) == 2
            os.kill(min(before), signal.SIGKILL)
            assert await streaming == undisturbed
            await until(lambda: running("live", "Live") == 2)
        assert len(before & replica_pids("live", "Live")) == 1


async def test_a_redeploy_costs_no_word(
    cluster: str, talks: list[list[Samples]], undisturbed: list[Utterances]
) -> None:
    with deployed("live", scaling=replicas(2)):
        async with lanes("live") as recognizer:
            before = replica_pids("live", "Live")
            # Slow enough to outlast the redeployment: a stopped replica exits after 3 s at least.
            streaming = asyncio.create_task(recognise_all(recognizer, talks, pace=0.2))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(deploy, "live", scaling=replicas(2))
            assert not streaming.done(), "it happened under the streams"
            assert await streaming == undisturbed
        assert not before & replica_pids("live", "Live")


async def again(
    recognizer: LaneRecognizer,
    talks: list[list[Samples]],
    undisturbed: list[Utterances],
    done: asyncio.Event,
) -> None:
    """Stream the talks again and again, with the words that they have undisturbed."""
    while not done.is_set():
        assert await recognise_all(recognizer, talks) == undisturbed


async def test_replicas_follow_the_streams_up_and_down_and_cost_no_word(
    cluster: str, talks: list[list[Samples]], undisturbed: list[Utterances]
) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, **QUICK}
    with deployed("live", scaling=scaling, target_streams=STREAMS * 0.75):
        async with lanes("live") as recognizer:
            grown, shrunk = asyncio.Event(), asyncio.Event()
            crowd = asyncio.create_task(again(recognizer, talks[4:], undisturbed[4:], grown))
            streaming = asyncio.create_task(again(recognizer, talks[:4], undisturbed[:4], shrunk))
            await until(lambda: running("live", "Live") == 2)
            grown.set()
            await crowd
            await until(lambda: running("live", "Live") == 1)
            shrunk.set()
            await streaming
