"""Out of memory, of a GPU or of the machine: how the libraries report it, and what then helps."""

import gc
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from speech.errors import EngineFailed, ModelUnavailable, OutOfMemory, SpeechError

logger = logging.getLogger(f"speechgraph.{__name__}")

R = TypeVar("R")


class _Batch(Protocol):
    """A list or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


B = TypeVar("B", bound=_Batch)

_REPORTS = re.compile(
    "|".join(
        (
            "out of memory",  # CTranslate2, torch and onnxruntime, of a call of the CUDA driver
            "(alloc|allocation)_failed",  # the states of cuBLAS and cuDNN
            "failed to allocated? memory",  # the arena of onnxruntime; CTranslate2 on the CPU
            "is smaller than requested bytes",  # the bound of the arena of onnxruntime
            "memory: you tried to allocate",  # torch on the CPU
            "cannot allocate memory",  # the system
            "bad.?alloc",  # C++
        )
    ),
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, reports that memory could not be allocated."""
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemory):
            return True
        # The texts of the other errors of the family may repeat what a client sent.
        of_engine = isinstance(error, EngineFailed | ModelUnavailable)
        if (of_engine or not isinstance(error, SpeechError)) and _REPORTS.search(str(error)):
            return True
        error = error.__cause__
    return False


def failure(message: str, error: Exception) -> EngineFailed | OutOfMemory:
    """What an engine reports of an error of its library."""
    kind = OutOfMemory if is_out_of_memory(error) else EngineFailed
    return kind(f"{message}: {error}")


def free_caches() -> int:
    """Free what is garbage, and the blocks that torch keeps of the GPU; bytes of the latter.

    To be called outside of the handler of an error, whose traceback keeps what was allocated.
    """
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    kept: int = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    return kept - int(torch.cuda.memory_reserved())


def in_smaller_batches(size: int, run: Callable[[int], R]) -> R:
    """``run(size)``, after an out-of-memory again with half the size, down to 1.

    Raises what ``run`` raises otherwise, or with 1.
    """
    while True:
        try:
            return run(size)
        except Exception as error:
            if size <= 1 or not is_out_of_memory(error):
                raise
            logger.warning("out of memory with a batch of %d, which is halved: %s", size, error)
        size //= 2
        free_caches()


def in_parts_that_fit(
    batch: B,
    run: Callable[[B], Iterable[R]],
    on_smaller: Callable[[int], None] = lambda size: None,
) -> list[R]:
    """The results of ``run(batch)``, one for each item, by parts as :func:`in_smaller_batches`.

    ``on_smaller`` receives the size of the parts each time that it is halved.
    """

    def in_parts(size: int) -> list[R]:
        if size < len(batch):
            on_smaller(size)
        parts = (batch[first : first + size] for first in range(0, len(batch), size))
        return [result for part in parts for result in run(part)]

    return in_smaller_batches(len(batch), in_parts)
