"""Log records of a replica: one each, in Serve's file of that replica, with their ids."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from deployments.runtime.worker import Call, Worker
from engines import device
from speech.errors import UnsupportedAudio
from speech.log_context import session_id

REFUSED = "Request failed. unsupported_audio: no audio track"
logger = logging.getLogger(f"speechgraph.{__name__}")


class Engine:
    """Computes nothing."""

    compute_type = "int8"

    def warm_up(self) -> None:
        """Nothing to run."""


class Model:
    """Loads a model as a replica does, and fails in a thread."""

    def __init__(self) -> None:
        device.load("m", device.Target("cpu"), "torch", lambda on: Engine())
        self._worker = Worker(1)

    async def transcribe(self, job: str) -> None:
        """Log a failure on behalf of a job."""
        await self._worker.run(self._fail, job)

    async def decode(self) -> None:
        """Refuse a file that is no audio."""
        raise UnsupportedAudio("no audio track")

    def _fail(self, call: Call) -> None:
        try:
            raise ValueError("the weights are broken")
        except ValueError:
            logger.exception("inference failed")


class Entry:
    """An ingress that logs on behalf of a session and calls the model."""

    def __init__(self, model: DeploymentHandle[Model]) -> None:
        self._model = model

    async def __call__(self, request: Request) -> str:
        """One request."""
        session_id.set("live-1")
        logger.info("a stream begins")
        await self._model.transcribe.remote("job-1")
        try:
            await self._model.decode.remote()
        except UnsupportedAudio as refused:
            return refused.code
        return "not refused"


@pytest.fixture(params=["TEXT", "JSON"])
def encoding(request: pytest.FixtureRequest) -> str:
    """The encoding of Serve's log files."""
    return str(request.param)


@pytest.fixture
def logged(cluster: str, encoding: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The log of each deployment's replica, after one request with the id ``req-1``."""
    name = f"logs-{encoding.lower()}"
    graph = serve.deployment(Entry).bind(serve.deployment(Model).bind())  # type: ignore[attr-defined]
    config = LoggingConfig(encoding=encoding, log_level="INFO", logs_dir=str(tmp_path))
    serve.run(graph, name=name, route_prefix=f"/{name}", logging_config=config)
    try:
        answer = httpx.get(f"{cluster}/{name}/", headers={"X-Request-ID": "req-1"}, timeout=30)
        assert answer.text == "unsupported_audio"
        yield {
            deployment: file.read_text(encoding="utf-8")
            for deployment in ("Entry", "Model")
            for file in tmp_path.glob(f"replica_*{deployment}*.log")
        }
    finally:
        serve.delete(name)


def test_the_records_of_a_replica_are_in_its_log_with_the_ids(
    logged: dict[str, str], encoding: str
) -> None:
    if encoding == "TEXT":
        (loaded,) = [line for line in logged["Model"].splitlines() if "asked for cpu" in line]
        assert loaded.startswith("INFO ")
        assert "logs-text_Model" in loaded
        (failed,) = [line for line in logged["Model"].splitlines() if "inference failed" in line]
        assert failed.startswith("ERROR ")
        assert "req-1 -- [job=job-1] inference failed" in failed
        after = logged["Model"].split(failed + "\n")[1]
        assert after.startswith("Traceback (most recent call last):\n")
        assert after.splitlines()[3] == "ValueError: the weights are broken"
        (refused,) = [line for line in logged["Model"].splitlines() if REFUSED in line]
        assert refused.startswith("INFO ")
        assert "Traceback" not in logged["Model"].split(refused)[1]
        (begun,) = [line for line in logged["Entry"].splitlines() if "a stream begins" in line]
        assert "req-1 -- [session=live-1] a stream begins" in begun
        return
    records = {
        record["message"]: record
        for text in logged.values()
        for record in map(json.loads, text.splitlines())
    }
    loaded = records["model m is loaded: device asked for cpu, using cpu, compute type int8"]
    assert (loaded["levelname"], loaded["deployment"]) == ("INFO", "logs-json_Model")
    assert loaded["replica"]
    failed = records["inference failed"]
    assert (failed["levelname"], failed["request_id"], failed["job"]) == ("ERROR", "req-1", "job-1")
    assert failed["exc_text"].endswith("ValueError: the weights are broken")
    refused = records[REFUSED]
    assert (refused["levelname"], refused["request_id"]) == ("INFO", "req-1")
    assert "exc_text" not in refused
    begun = records["a stream begins"]
    assert (begun["deployment"], begun["request_id"]) == ("logs-json_Entry", "req-1")
    assert begun["session"] == "live-1"
