"""What every model deployment keeps around its engine: a model cache, threads, metrics, routing."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from ray import serve
from ray.serve import metrics

from configs.settings import ModelSettings, ReloadableSettings
from deployments.runtime.worker import Call, Worker
from engines.cache import ModelCache

logger = logging.getLogger(f"speechgraph.{__name__}")

Engine = TypeVar("Engine")
Result = TypeVar("Result")


class EngineHost(Generic[Engine]):
    """Loads engines by model id, keeps the most recently used, and runs work on them in threads."""

    def __init__(
        self, settings: ModelSettings, load: Callable[[str], Engine], task_type: str
    ) -> None:
        self._settings = settings
        self._worker = Worker(settings.concurrency)
        self._cache = ModelCache(
            load, settings.max_models, settings.idle_ttl_s, task_type=task_type
        )
        self._announce = serve.multiplexed(
            _identity, max_num_models_per_replica=settings.max_models
        )
        self._run_seconds = metrics.Histogram(
            "speechgraph_inference_seconds",
            "Seconds that an engine worked on a call.",
            boundaries=[0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300],
            tag_keys=("model",),
        )
        for model in settings.preloaded:
            with self._cache.use(model):
                logger.info("model %s is loaded", model)

    async def run(
        self, model: str, work: Callable[[Engine, Call], Result], job: str | None
    ) -> Result:
        """Await ``work(engine, call)`` in a thread, with the engine of ``model``.

        ``job`` is the id of the job that the call is for; those of clients who wait go first.
        """
        # Serve routes a model id to the replicas that announced it, so every replica has to. Its
        # own cache holds ids only: it has no idle TTL and unloads models that are in use.
        await self._announce(model)
        return await self._worker.run(lambda call: self._work(model, work, call), job)

    async def run_plain(self, work: Callable[[], Result], job: str | None) -> Result:
        """Await work that needs no model, in the same threads and behind the same bound."""

        def in_slot(call: Call) -> Result:
            with call.slot():
                return work()

        return await self._worker.run(in_slot, job)

    def _work(self, model: str, work: Callable[[Engine, Call], Result], call: Call) -> Result:
        with ExitStack() as stack:
            with call.without_demand():  # jobs that stand still may have all places of the cache
                engine = stack.enter_context(self._cache.use(model))
            stack.enter_context(call.slot())
            started = time.perf_counter()
            try:
                return work(engine, call)
            finally:
                self._run_seconds.observe(time.perf_counter() - started, tags={"model": model})

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take new bounds of the cache; what is absent goes back to the arguments.

        Raises pydantic.ValidationError for a name or value that cannot be.
        """
        live = ReloadableSettings.model_validate(user_config)
        self._cache.configure(
            self._settings.max_models if live.max_models is None else live.max_models,
            self._settings.idle_ttl_s if live.idle_ttl_s is None else live.idle_ttl_s,
        )

    async def check_health(self) -> None:
        """Called by Serve before the first request and every few seconds.

        That makes it the place to announce what was preloaded, and the clock of the idle TTL.
        """
        for entry in self._cache.stats():
            await self._announce(entry["model_name"])
        for model in self._cache.evict_idle():
            logger.info("model %s was idle and is unloaded", model)

    def progress(self) -> dict[str, float]:
        """Seconds of audio done so far, by job, of the calls that run here for one."""
        return dict(self._worker.progress)

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model."""
        return self._cache.stats()


async def _identity(model: str) -> str:
    return model
