"""The request routers of the model deployments.

Serve copies this module by value into each process that routes: it must have no state.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import RunningReplica

from deployments.runtime import router_state


class ModelRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's default router; it keeps the last replicas of an application that is deleted."""

    always_running: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._last: Sequence[RunningReplica] = ()
        router_state.register(self)
        self._observe()

    def update_replicas(self, replicas: Sequence[RunningReplica]) -> None:
        """Called by Serve, on the event loop of the router, with the replicas that run."""
        if replicas:
            self._last = replicas
        super().update_replicas(list(self._last if router_state.keeping() else replicas))
        self._observe()

    def restore(self) -> None:
        """Route to the last replicas again; those that have died are removed at the first call."""
        if not self.curr_replicas:
            self._event_loop.call_soon_threadsafe(self.update_replicas, self._last)

    def _observe(self) -> None:
        if self.always_running:
            router_state.observe_replicas(self._deployment_id.name, len(self.curr_replicas))


class ElasticModelRouter(ModelRouter):
    """Of a deployment that may have no replica: its first call waits for one."""

    always_running = False
