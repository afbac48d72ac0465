"""The service behind the dialects: the graph on handles, and what its replicas report."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ReplicaState

from api.service import DeploymentState
from configs.catalogue import Catalogue, Family
from deployments.runtime import graph_service
from deployments.runtime.graph_service import GraphService
from deployments.runtime.model_access import ModelFiles
from speech.audio import Audio
from speech.pipeline import ProcessOptions, Stage
from speech.ports import DecodedAudio, TranscribeOptions
from speech.transcript import Recognition, Segment, Transcript
from tests.unit.deployments.fake_handles import FakeDeployment

DEFAULTS: Mapping[Family, str] = {
    "whisper": "demo-whisper",
    "onnx_asr": "demo-vosk",
    "emotion": "demo-gigaam-emo",
}
OPTIONS = ProcessOptions(frozenset({"transcribe"}), transcribe=TranscribeOptions(model="demo-vosk"))
HELLO = Segment(0.0, 1.0, " Hello")
Replica = Callable[[str], Awaitable[Any]]


async def decode(*_: object) -> AsyncIterator[object]:
    yield Audio(np.zeros(32_000, np.float32))
    yield DecodedAudio(None, 2.0)


async def recognise(*_: object) -> dict[str, Any]:
    return Recognition((HELLO,), "en", 0.9).pack()


async def recognise_in_parts(*_: object) -> AsyncIterator[object]:
    yield Recognition((HELLO,)).pack()
    yield Recognition((), "en", 0.9).pack()


def service(**replicas: list[Replica]) -> tuple[GraphService, dict[str, FakeDeployment]]:
    """A service whose families have these replicas; those not named have none."""
    methods: dict[str, Any] = {
        "decoder": {"decode": decode},
        "onnx_asr": {"transcribe": recognise, "stream": recognise_in_parts},
    }
    handles: dict[str, Any] = {
        name: FakeDeployment(replicas=replicas.get(name, ()), **methods.get(name, {}))
        for name in ("decoder", *DEFAULTS)
    }
    timeouts_s = dict.fromkeys(handles, 10.0)
    return GraphService(Catalogue.load(), handles, DEFAULTS, timeouts_s, "demo-whisper"), handles


def replica(**answers: Any) -> Replica:
    async def answer(method: str) -> Any:
        return answers[method]

    return answer


def failing(error: Exception) -> Replica:
    async def fail(method: str) -> Any:
        raise error

    return fail


async def silent(method: str) -> None:
    await asyncio.Event().wait()


async def test_a_file_is_decoded_and_recognised_on_the_handles() -> None:
    graph, handles = service()
    transcript = await graph.process(b"file", OPTIONS)
    assert transcript.segments == (HELLO,)
    assert transcript.duration == 2.0
    assert handles["onnx_asr"].transcribe.calls[0][-1] is None, "an interactive call"


async def test_the_calls_of_a_job_carry_its_id_and_report_their_stages() -> None:
    graph, handles = service()
    begun: list[Stage] = []
    await graph.process_job("job_1", b"file", OPTIONS, begun.append)
    calls = [*handles["decoder"].decode.calls, *handles["onnx_asr"].transcribe.calls]
    assert [arguments[-1] for arguments in calls] == ["job_1", "job_1"]
    assert begun == ["decode", "transcribe", "merge"]


async def test_a_stream_ends_with_its_transcript() -> None:
    graph, _ = service()
    events = [event async for event in graph.stream(b"file", OPTIONS)]
    assert events[0] == HELLO
    assert isinstance(events[-1], Transcript)


def test_each_task_has_the_default_model_of_a_family_that_runs() -> None:
    graph, _ = service()
    assert graph.families == {"whisper", "onnx_asr", "emotion"}
    assert graph.default_models == {"transcribe": "demo-whisper", "emotion": "demo-gigaam-emo"}


async def test_the_loaded_models_of_all_replicas_are_gathered() -> None:
    graph, _ = service(
        whisper=[replica(cache_stats=[{"model_name": "a"}]), replica(cache_stats=[])],
        emotion=[replica(cache_stats=[{"model_name": "b"}, {"model_name": "c"}])],
    )
    assert [entry["model_name"] for entry in await graph.cache_stats()] == ["a", "b", "c"]


async def test_models_of_live_replicas_and_of_this_process_are_gathered_too() -> None:
    _, handles = service(whisper=[replica(cache_stats=[{"model_name": "a"}])])
    handles["live"] = FakeDeployment(replicas=[replica(cache_stats=[{"model_name": "b"}])])
    graph = GraphService(
        Catalogue.load(),
        handles,
        DEFAULTS,
        {"decoder": 1.0},
        "x",
        local_stats=lambda: [{"model_name": "c"}],
    )
    assert [entry["model_name"] for entry in await graph.cache_stats()] == ["a", "b", "c"]


async def test_a_deployment_that_may_have_no_replica_is_not_kept_awake_by_a_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = {
        "Whisper": DeploymentState(running=True, required=True),
        "Emotion": DeploymentState(running=True, required=False),
    }
    graph, handles = service(
        whisper=[replica(cache_stats=[{"model_name": "a"}])],
        emotion=[replica(cache_stats=[{"model_name": "b"}])],
    )
    handles["whisper"].deployment_name, handles["emotion"].deployment_name = states
    monkeypatch.setattr(graph, "deployment_states", AsyncMock(return_value=states))
    assert await graph.cache_stats(required_only=True) == [{"model_name": "a"}]
    assert await graph.cache_stats() == [{"model_name": "a"}, {"model_name": "b"}]


@pytest.mark.parametrize(
    "broken",
    [failing(ActorDiedError()), failing(DeploymentUnavailableError(None)), silent],
    ids=["dead", "unavailable", "silent"],
)
async def test_a_family_that_does_not_answer_is_left_out(
    broken: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_service, "STATS_TIMEOUT_S", 0.05)
    loaded = replica(cache_stats=[{"model_name": "a"}], progress={"job_1": 1.0})
    graph, _ = service(whisper=[broken], onnx_asr=[loaded])
    assert await graph.cache_stats() == [{"model_name": "a"}]
    assert await graph.seconds_done() == {"job_1": 1.0}


@pytest.mark.parametrize("broken", [failing(ActorDiedError()), silent], ids=["dead", "silent"])
async def test_a_replica_that_does_not_answer_hides_no_other(
    broken: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_service, "STATS_TIMEOUT_S", 0.05)
    loaded = replica(cache_stats=[{"model_name": "a"}], progress={"job_1": 1.0})
    graph, _ = service(onnx_asr=[broken, loaded])
    assert await graph.cache_stats() == [{"model_name": "a"}]
    assert await graph.seconds_done() == {"job_1": 1.0}


async def test_the_progress_of_jobs_comes_from_all_recognisers() -> None:
    graph, _ = service(
        whisper=[replica(progress={"job_1": 1.0}), replica(progress={})],
        onnx_asr=[replica(progress={"job_2": 2.0})],
        emotion=[failing(AssertionError("an emotion model recognises nothing"))],
    )
    assert await graph.seconds_done() == {"job_1": 1.0, "job_2": 2.0}


async def test_the_states_of_the_deployments_are_queried_once_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries: list[str] = []

    def deployments_of(application: str) -> dict[str, Any]:
        queries.append(application)
        return {
            "Whisper": {
                "replicas": [{"state": ReplicaState.STARTING}, {"state": ReplicaState.RUNNING}],
                "deployment_config": {"num_replicas": 2},
            },
            "OnnxAsr": {
                "replicas": [{"state": ReplicaState.STARTING}],
                "deployment_config": {"autoscaling_config": {"min_replicas": 1}},
            },
            "Emotion": {
                "replicas": [],
                "deployment_config": {"autoscaling_config": {"min_replicas": 0}},
            },
        }

    context = SimpleNamespace(app_name="app")
    monkeypatch.setattr(graph_service.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(graph_service, "deployments_of", deployments_of)
    graph, _ = service()
    for _ in range(3):
        assert await graph.deployment_states() == {
            "Whisper": DeploymentState(running=True, required=True),
            "OnnxAsr": DeploymentState(running=False, required=True),
            "Emotion": DeploymentState(running=False, required=False),
        }
    assert queries == ["app"]
    monkeypatch.setattr(graph_service, "STATUS_AGE_S", -1.0)
    await graph.deployment_states()
    assert queries == ["app", "app"]


async def test_the_states_from_before_an_update_count_while_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then, and after its build has failed, Serve lists no deployments; the old ones run."""
    replicas = {"replicas": [{"state": "RUNNING"}], "deployment_config": {"num_replicas": 1}}
    reports: list[dict[str, Any]] = [{"OnnxAsr": replicas}, {}]
    context = SimpleNamespace(app_name="app")
    monkeypatch.setattr(graph_service.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(graph_service, "deployments_of", lambda _: reports.pop(0))
    monkeypatch.setattr(graph_service, "STATUS_AGE_S", -1.0)
    graph, _ = service()
    running = {"OnnxAsr": DeploymentState(running=True, required=True)}
    assert await graph.deployment_states() == running
    assert await graph.deployment_states() == running
    assert reports == []


async def test_the_models_whose_files_are_here_are_known_without_loading_any(
    tmp_path: Path,
) -> None:
    (tmp_path / "whisper-tiny").mkdir()
    files = ModelFiles(Catalogue.load(), tmp_path, offline=True)
    graph = GraphService(Catalogue.load(), service()[1], DEFAULTS, {"decoder": 1.0}, "x", files)
    assert {"whisper-tiny", "demo-whisper"} <= await graph.present_models()
    assert "whisper-base" not in await graph.present_models()
