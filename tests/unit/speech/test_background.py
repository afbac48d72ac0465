"""A background task that fails is logged, and runs again where it should."""

import asyncio

import pytest

from speech import background
from speech.background import in_background


async def test_work_that_fails_is_logged_and_runs_again_until_it_returns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RESTART_S", 0.0)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise KeyError("deployments")

    await in_background(work, "watch", restart=True)
    assert runs == 3
    assert [record.getMessage() for record in caplog.records] == [
        "watch failed, it runs again",
        "watch failed, it runs again",
    ]
    assert "KeyError: 'deployments'" in caplog.text


async def test_work_that_must_not_run_again_is_logged_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        raise ValueError("a frame")

    await in_background(work, "lane", restart=False)
    assert runs == 1
    assert [record.getMessage() for record in caplog.records] == ["lane failed"]


async def test_a_cancelled_task_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    task = in_background(work, "watch", restart=True)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not caplog.records
