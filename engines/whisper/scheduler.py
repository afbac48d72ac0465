"""Windows of all requests to a Whisper model, run in batches.

A GPU takes hardly longer for the windows of sixteen requests than for one, and a CPU is used better
by two windows side by side than by one on all of its cores.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engines.out_of_memory import in_parts_that_fit
from engines.whisper.finite import Encoded, FiniteWhisper
from engines.whisper.windows import Window, encode

LONGEST_WAIT_S = 0.005
"""How long a batch waits for windows of other requests that are in progress."""
_LONG_FILE = 16
_JOB = 64


@dataclass(eq=False)
class Request:
    """A request in progress, and how many calls it has submitted."""

    background: bool
    calls: int = 0


Run = Callable[[FiniteWhisper, Encoded, Sequence[Any]], Sequence[Any]]
"""One result for each window of a batch, from what the calls give beside their windows."""


@dataclass(eq=False)
class _Call:
    """What is to be computed of one window; calls of the same ``kind`` may share a batch."""

    request: Request
    window: Window
    argument: Any
    run: Run
    kind: Hashable
    due: int
    future: "Future[Any]" = field(default_factory=Future)


class Scheduler:
    """Runs calls of several requests on windows in batches of at most ``max_batch``.

    ``parallel`` batches run at once. The call that is due first decides what a batch computes, and
    others of its kind join in the order in which they are due. The n-th call of a request is due
    after n windows more than a first one, up to 16: so a short request does not wait for the rest
    of a long file. A call in the background is due 64 windows later still. A call is overtaken only
    by those that are submitted before that many windows have run, so none is starved.

    A batch that is not full waits up to :data:`LONGEST_WAIT_S` while other requests are in progress
    that have no call here. A batch that fails is run again window by window, so that an error is
    that of its own request alone. One that does not fit the memory is halved, and batches stay that
    small until no request is in progress.
    """

    def __init__(self, model: FiniteWhisper, max_batch: int, parallel: int) -> None:
        self._model = model
        self._max_batch = max_batch
        self._fitting_batch = max_batch
        # Its threads end with it: nothing has to be stopped when a model is unloaded.
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="whisper")
        self._changed = threading.Condition()
        self._waiting: list[_Call] = []
        self._requests = 0
        self._windows_run = 0

    @property
    def model(self) -> FiniteWhisper:
        """The model that the calls run on."""
        return self._model

    @contextmanager
    def request(self, *, background: bool) -> Iterator[Request]:
        """A request in progress, for batches to wait for; its calls that wait at its end never run.

        ``background``: nobody waits for the result, as with a job.
        """
        request = Request(background)
        with self._changed:
            self._requests += 1
        try:
            yield request
        finally:
            with self._changed:
                self._requests -= 1
                if not self._requests:
                    self._fitting_batch = self._max_batch
                for call in self._waiting:
                    if call.request is request:
                        call.future.cancel()
                self._changed.notify_all()

    def submit(
        self, request: Request, window: Window, argument: Any, run: Run, kind: Hashable
    ) -> "Future[Any]":
        """The result of ``run`` for a window; a future that is cancelled while it waits never runs.

        ``run`` is called with the windows of calls of the same ``kind``, which must be equal only
        where they may run together.
        """
        with self._changed:
            delay = min(request.calls, _LONG_FILE) + (_JOB if request.background else 0)
            call = _Call(request, window, argument, run, kind, self._windows_run + delay)
            request.calls += 1
            self._waiting.append(call)
            self._changed.notify_all()
        self._threads.submit(self._run_next)
        return call.future

    def _run_next(self) -> None:
        batch = self._next_batch()
        if batch:
            self._finish(batch)

    def _finish(self, calls: Sequence[_Call]) -> None:
        try:
            results = in_parts_that_fit(calls, self._run, self._halve)
        except Exception as error:
            if len(calls) == 1:
                calls[0].future.set_exception(error)
                return
            for call in calls:
                self._finish([call])
            return
        for call, result in zip(calls, results, strict=True):
            call.future.set_result(result)

    def _halve(self, size: int) -> None:
        self._fitting_batch = size

    def _run(self, calls: Sequence[_Call]) -> Sequence[Any]:
        encoded = encode(self._model, [call.window for call in calls])
        return calls[0].run(self._model, encoded, [call.argument for call in calls])

    def _next_batch(self) -> list[_Call]:
        deadline = time.monotonic() + LONGEST_WAIT_S
        with self._changed:
            while True:
                self._waiting = [call for call in self._waiting if not call.future.cancelled()]
                if not self._waiting:
                    return []
                kind = min(self._waiting, key=_due).kind
                alike = [call for call in self._waiting if call.kind == kind]
                batch = sorted(alike, key=_due)[: self._fitting_batch]
                left_s = deadline - time.monotonic()
                if len(batch) == self._fitting_batch or left_s <= 0 or not self._others():
                    break
                self._changed.wait(left_s)
            self._waiting = [call for call in self._waiting if call not in batch]
            self._windows_run += len(batch)
        running = [call for call in batch if call.future.set_running_or_notify_cancel()]
        return sorted(running, key=lambda call: call.window.row)

    def _others(self) -> bool:
        """Whether a request in progress has no call here."""
        return len({call.request for call in self._waiting}) < self._requests


def _due(call: _Call) -> int:
    return call.due
