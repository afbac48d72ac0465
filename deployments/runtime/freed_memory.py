"""Return of the memory of ended requests to the system.

The frames of a cut request are a reference cycle in Ray Serve 2.60 and keep what was received of it
until the next full collection, which a quiet process never reaches. And glibc keeps a freed block
below its top of the heap: one small block above that lives on keeps it resident.
"""

import asyncio
import ctypes
import gc

RETURN_S = 10.0
"""Time between two returns, seconds."""


async def return_freed_memory() -> None:
    """Collect cycles and ask glibc for its free pages every RETURN_S, in a thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(RETURN_S)
        await asyncio.to_thread(gc.collect)
        if trim is not None:
            await asyncio.to_thread(trim, 0)
