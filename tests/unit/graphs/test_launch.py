"""What the launcher reports when a deployment does not start, or is not drained."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from configs import legacy_environment
from engines import gpu
from graphs import launch
from graphs.launch import drain_deployment, root_cause

MESSAGE = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:speech:OnnxAsr.initialize_and_get_metadata() (pid=32720, ip=192.0.2.2)
  File "/x/replica.py", line 3521, in initialize_and_get_metadata
    await self._replica_impl.initialize(deployment_config, rank, gang_context)
RuntimeError: Traceback (most recent call last):
  File "/x/sherpa_models.py", line 83, in load
    _build(entry.format, settings),
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: Protobuf parsing failed.

The above exception was the direct cause of the following exception:

  File "/x/deployments/onnx_asr.py", line 22, in __init__
    self._host = EngineHost(settings, self._load, "transcribe")
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
speech.errors.ModelUnavailable: model 'demo-vosk' does not load:
    model.onnx: Protobuf parsing failed.
"""


def test_the_root_cause_is_the_exception_below_the_last_frame_in_one_line() -> None:
    assert root_cause(MESSAGE) == (
        "speech.errors.ModelUnavailable: model 'demo-vosk' does not load: "
        "model.onnx: Protobuf parsing failed."
    )


def test_a_message_without_a_traceback_is_its_own_cause() -> None:
    assert root_cause("no node\n has a GPU") == "no node has a GPU"


class Replicas:
    """A deployment whose replicas return or raise these when they are drained, round by round."""

    deployment_name = "Ingress"

    def __init__(self, *rounds: list[Exception | None] | Exception) -> None:
        self.rounds = list(rounds)
        self.open = True

    def broadcast(self, method: str) -> "Replicas":
        assert method == "drain"
        return self

    async def results_async(self, *, return_exceptions: bool) -> list[Any]:
        results = self.rounds.pop(0) if self.rounds else await asyncio.Future()
        if isinstance(results, Exception):
            raise results
        return results

    async def shutdown_async(self) -> None:
        self.open = False


async def test_replicas_that_start_during_a_drain_are_drained_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    replicas = Replicas([None], [None, None])
    await drain_deployment(replicas, 60)
    assert replicas.rounds == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rounds", "report"),
    [
        (
            [[None, RayActorError()], [None]],
            "Ingress was not drained: The actor experienced an error",
        ),
        ([RayActorError()], "Ingress was not drained: The actor experienced an error"),
        ([[None]], "Ingress was not drained: it took too long"),
        ([DeploymentUnavailableError(DeploymentID("Ingress", "speech"))], ""),
    ],
    ids=["a replica dies", "all replicas die", "endless", "no replica"],
)
async def test_a_replica_that_is_not_drained_is_reported(
    rounds: list[Any],
    report: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "DRAIN_SLACK_S", 0.05)
    replicas = Replicas(*rounds)
    await drain_deployment(replicas, 0)
    assert not replicas.open
    reported = capsys.readouterr().err
    assert reported.startswith(report)
    assert bool(reported) == bool(report)


def test_models_that_may_not_fit_the_gpu_are_named_before_anything_starts(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: Any) -> Any:
        raise RuntimeError("nothing starts in this test")

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(legacy_environment.log, "setLevel", lambda level: None)
    config = str(repository / "configs/gpu.yaml")
    for total_mb, warned in ((8000, True), (80_000, False)):
        card = gpu.Gpu("a card", total_mb, 0, total_mb)
        monkeypatch.setattr(gpu, "state", lambda card=card: card)
        assert launch.main([config]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1] == "the graph did not come up: nothing starts in this test"
        assert [line.startswith("warning: up to ") for line in lines[:-1]] == [True] * warned
