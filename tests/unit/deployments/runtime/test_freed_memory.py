import asyncio
import ctypes
import gc
import weakref
from pathlib import Path

import pytest

from deployments.runtime import freed_memory
from speech.background import in_background

MIB = 1024**2


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.fixture(autouse=True)
async def returned(monkeypatch):
    """Memory is returned every few milliseconds."""
    monkeypatch.setattr(freed_memory, "RETURN_S", 0.01)
    task = in_background(freed_memory.return_freed_memory, "return", restart=False)
    yield
    task.cancel()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the libc is not glibc")
async def test_freed_blocks_below_one_that_lives_are_returned():
    blocks = [b"x" * (64 * 1024) for _ in range(4000)]  # below glibc's threshold of a mapping
    last = b"y" * (64 * 1024)
    before = resident()
    blocks.clear()
    for _ in range(3000):
        if resident() < before - 200 * MIB:
            break
        await asyncio.sleep(0.01)
    assert resident() < before - 200 * MIB
    assert last


async def test_reference_cycles_are_collected_in_a_process_that_allocates_nothing():
    class Cycle:
        pass

    gc.disable()
    try:
        cycle = Cycle()
        cycle.itself = cycle
        kept = weakref.ref(cycle)
        del cycle
        for _ in range(3000):
            if kept() is None:
                break
            await asyncio.sleep(0.01)
        assert kept() is None
    finally:
        gc.enable()
