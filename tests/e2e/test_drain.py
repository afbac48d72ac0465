"""The launcher is stopped by a signal while clients of every kind are at work."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from infra.job_store import SqlJobStore
from tests.e2e.drained import DIALECTS, clients, talk
from tests.e2e.launched import eventually
from tests.unit.heldout import clips

pytestmark = pytest.mark.timeout(600)

STOP_S = 70.0
"""``drain_timeout_s`` of the ingress, and some seconds."""
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3900",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


@pytest.fixture
def config(repository: Path, tmp_path: Path) -> Path:
    """A small graph with jobs, whose runners give back at once what runs."""
    demo = yaml.safe_load((repository / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    args = demo["applications"][0]["args"]
    demo["applications"][0]["args"] = {
        "offline": True,
        "ingress": {**args["ingress"], "default_transcriber": "demo-vosk", "sessions": {}},
        "decoder": {**args["decoder"], "concurrency": 4},
        "onnx_asr": {**args["onnx_asr"], "preload": ["demo-vosk"], "concurrency": 2},
        "live": args["live"],
        "jobs": {
            "directory": str(tmp_path / "jobs"),
            "resources": {"num_cpus": 0.1},
            "lifecycle": {"drain_timeout_s": 5},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(demo), encoding="utf-8")
    return path


@contextmanager
def launcher(
    config: Path, repository: Path, environment: Mapping[str, str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "graphs.launch", str(config)],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    try:
        found = (re.match(r"\s+service\s+(\S+)", line) for line in process.stdout)
        yield next(match[1] for match in found if match), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.mark.parametrize("environment", [{}, HAPROXY], ids=["serve-proxy", "haproxy"])
async def test_sigterm_lets_streams_and_requests_end_and_releases_jobs(
    config: Path, repository: Path, demo_audio: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with launcher(config, repository, environment) as (url, process):
        async with clients(url, demo_audio) as at_work, httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/ready")).status_code == 200
            process.send_signal(signal.SIGTERM)
            stopped = asyncio.create_task(asyncio.to_thread(process.wait, STOP_S))
            await asyncio.to_thread(
                eventually, lambda: httpx.get(f"{url}/ready").status_code != 200, within_s=10
            )
            ready = await http.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            refused = await http.post(
                "/v1/process", files={"audio": b"x"}, data={"request_json": '{"settings": {}}'}
            )
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            await at_work.assert_served()
            assert await stopped == 0
        store = SqlJobStore(f"sqlite:///{tmp_path / 'jobs' / 'jobs.sqlite3'}")
        job = store.find("", at_work.job)
        store.close()
        assert job is not None
        assert job.state in ("queued", "completed")


async def test_a_second_sigterm_stops_at_once(
    config: Path, repository: Path, demo_audio: Path
) -> None:
    clip = clips(demo_audio, count=1)[0]
    unfinished = clip.samples[: len(clip.samples) // 2]
    begun = asyncio.Event()
    with launcher(config, repository, {}) as (url, process):
        stream = asyncio.create_task(talk(url, DIALECTS["native"], unfinished, begun))
        async with asyncio.timeout(60):
            await begun.wait()
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, STOP_S) == 0
        _, code = await stream
    assert code != 1001
