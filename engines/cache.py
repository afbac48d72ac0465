"""A bounded cache of loaded models with LRU and idle eviction."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from engines.out_of_memory import free_caches
from speech.errors import Overloaded

T = TypeVar("T")

NEVER = -1.0


@dataclass(eq=False)
class _Entry(Generic[T]):
    """A model that is loaded or loading; never evicted while it has users."""

    model: Future[T] = field(default_factory=Future)
    users: int = 0
    use_count: int = 0
    loaded_at: float = 0.0
    last_used: float = 0.0
    idle_since: float = 0.0
    memory_bytes: int = 0

    @property
    def evictable(self) -> bool:
        return self.users == 0


class ModelCache(Generic[T]):
    """At most ``max_models`` loaded models; evicts the least recently used of those not in use.

    For threads, not for an event loop: :meth:`use` blocks while a model loads. ``load`` runs
    outside the lock and once per key for all concurrent callers, so that a slow load does not
    delay users of other, loaded models. ``wait_s`` bounds the wait for room and for the load of
    another thread. ``idle_ttl_s``: seconds until :meth:`evict_idle` evicts an unused model,
    −1 never, 0 as soon as its last user is done. ``describe`` gives more fields of a model for
    :meth:`stats`.
    """

    def __init__(
        self,
        load: Callable[[str], T],
        max_models: int,
        idle_ttl_s: float,
        *,
        task_type: str = "",
        describe: Callable[[T], Mapping[str, Any]] = lambda model: {},
        wait_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._task_type = task_type
        self._describe = describe
        self._wait_s = wait_s
        self._clock = clock
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()  # least recently used first
        self._changed = threading.Condition()
        self._uncollected = False
        self._set_limits(max_models, idle_ttl_s)

    def _set_limits(self, max_models: int, idle_ttl_s: float) -> None:
        if max_models < 1:
            raise ValueError(f"max_models must be at least 1, not {max_models}")
        if idle_ttl_s < 0 and idle_ttl_s != NEVER:
            raise ValueError(f"idle_ttl_s must be -1, 0 or more, not {idle_ttl_s}")
        self._max_models = max_models
        self._idle_ttl_s = idle_ttl_s

    @contextmanager
    def use(self, key: str) -> Iterator[T]:
        """The model of ``key``, loaded if necessary, and not evicted while the block runs.

        Raises Overloaded when all models stay in use for ``wait_s`` seconds, and whatever ``load``
        raises (in all threads that waited for that load; the next use loads again).
        """
        entry = self._enter(key)
        try:
            yield self._model(key, entry)
        finally:
            self._leave(key, entry)

    def _enter(self, key: str) -> _Entry[T]:
        deadline = time.monotonic() + self._wait_s
        with self._changed:
            while (entry := self._entries.get(key)) is None:
                self._evict_down_to(self._max_models - 1)
                if len(self._entries) < self._max_models:
                    break
                if not self._changed.wait(deadline - time.monotonic()):
                    raise Overloaded(f"no room to load model {key}: all loaded ones are in use")
            if entry is not None:
                self._touch(key, entry)
                return entry
            entry = self._entries[key] = _Entry()
            self._touch(key, entry)
        self._collect()
        self._fill(key, entry)
        return entry

    def _fill(self, key: str, entry: _Entry[T]) -> None:
        before = _resident_bytes()
        try:
            model = self._load(key)
        except BaseException as error:
            with self._changed:
                self._forget(key, entry)
                self._changed.notify_all()
            entry.model.set_exception(error)
            return
        with self._changed:
            entry.memory_bytes = max(0, _resident_bytes() - before)
            entry.loaded_at = time.time()
        entry.model.set_result(model)

    def _model(self, key: str, entry: _Entry[T]) -> T:
        try:
            return entry.model.result(timeout=self._wait_s)
        except TimeoutError:
            if entry.model.done():  # the load itself raised a TimeoutError
                raise
            raise Overloaded(f"model {key} is still loading") from None

    def _touch(self, key: str, entry: _Entry[T]) -> None:
        entry.users += 1
        entry.use_count += 1
        entry.last_used = time.time()
        self._entries.move_to_end(key)

    def _leave(self, key: str, entry: _Entry[T]) -> None:
        with self._changed:
            entry.users -= 1
            entry.last_used = time.time()
            entry.idle_since = self._clock()
            if self._entries.get(key) is entry:
                self._entries.move_to_end(key)
                if self._idle_ttl_s == 0 and entry.evictable:
                    self._evict([key])
                else:
                    self._evict_down_to(self._max_models)
            self._changed.notify_all()

    def _forget(self, key: str, entry: _Entry[T]) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]

    def _evict(self, keys: list[str]) -> list[str]:
        for key in keys:
            del self._entries[key]
        self._uncollected |= bool(keys)
        return keys

    def _evict_down_to(self, count: int) -> None:
        surplus = max(0, len(self._entries) - count)
        idle = [key for key, entry in self._entries.items() if entry.evictable]
        self._evict(idle[:surplus])

    def _collect(self) -> None:
        # Torch modules are in reference cycles: their memory is freed by a collection only, and
        # that of a GPU is kept by torch's allocator until it is asked for it.
        # Not done when a user leaves: its frame still refers to the model.
        with self._changed:
            due, self._uncollected = self._uncollected, False
        if due:
            free_caches()

    def evict_idle(self) -> list[str]:
        """Evict the models unused for the idle TTL or longer; returns their keys."""
        with self._changed:
            ttl_s = math.inf if self._idle_ttl_s == NEVER else self._idle_ttl_s
            now = self._clock()
            dropped = self._evict(
                [
                    key
                    for key, entry in self._entries.items()
                    if entry.evictable and now - entry.idle_since >= ttl_s
                ]
            )
            self._changed.notify_all()
        self._collect()
        return dropped

    def evict_unused(self, but: str) -> list[str]:
        """Evict all models that are not in use, except one; returns their keys."""
        with self._changed:
            dropped = self._evict(
                [key for key, entry in self._entries.items() if entry.evictable and key != but]
            )
            self._changed.notify_all()
        self._collect()
        return dropped

    def configure(self, max_models: int, idle_ttl_s: float) -> None:
        """Change the limits; surplus models are evicted now, those in use after their use."""
        with self._changed:
            self._set_limits(max_models, idle_ttl_s)
            self._evict_down_to(max_models)
            self._changed.notify_all()
        self._collect()

    def stats(self) -> list[dict[str, Any]]:
        """The loaded models, least recently used first.

        ``loaded_at`` and ``last_used`` are unix seconds; ``estimated_mem_bytes`` is how much the
        resident memory of the process grew during the load: without GPU memory and memory that
        the allocator reused, and too much when two models load at once.
        """
        with self._changed:
            now = self._clock()
            return [
                {
                    "model_name": key,
                    "task_type": self._task_type,
                    "wrapper_class": type(entry.model.result()).__name__,
                    **self._describe(entry.model.result()),
                    "loaded_at": entry.loaded_at,
                    "last_used": entry.last_used,
                    "idle_seconds": 0.0 if entry.users else now - entry.idle_since,
                    "use_count": entry.use_count,
                    "in_use": entry.users,
                    "estimated_mem_bytes": entry.memory_bytes,
                }
                for key, entry in self._entries.items()
                if entry.model.done() and entry.model.exception() is None
            ]


_PAGE_BYTES = 4096
_STATM = Path("/proc/self/statm")


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not report it."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
