"""An application is deleted while clients of every kind are at work."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from infra.job_store import SqlJobStore
from tests.e2e.drained import clients
from tests.integration.conftest import Service
from tests.integration.test_live import LIVE_ONLY

pytestmark = pytest.mark.timeout(400)


async def test_a_deleted_application_lets_streams_and_requests_end_and_releases_jobs(
    application: Service, demo_audio: Path, tmp_path: Path
) -> None:
    """The streaming models are in a deployment of their own, which is deleted as well."""
    args: dict[str, Any] = {
        **LIVE_ONLY,
        "live": {**LIVE_ONLY["live"], "placement": "replicas"},
        "decoder": {**LIVE_ONLY["decoder"], "concurrency": 4},
        "onnx_asr": {**LIVE_ONLY["onnx_asr"], "concurrency": 2},
        "jobs": {
            "directory": str(tmp_path),
            "resources": {"num_cpus": 0.1},
            "lifecycle": {"drain_timeout_s": 6},
        },
    }
    with application("deleted", args) as url:
        await asyncio.to_thread(wait_for_health, url)
        async with clients(url, demo_audio) as at_work:
            deleted = asyncio.create_task(asyncio.to_thread(serve.delete, "deleted"))
            await at_work.assert_served()
            await deleted
    store = SqlJobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    job = store.find("", at_work.job)
    store.close()
    assert job is not None
    assert (job.state, job.error) in (("queued", None), ("completed", None))


def wait_for_health(url: str) -> None:
    assert httpx.get(f"{url}/health", timeout=30).status_code == 200
