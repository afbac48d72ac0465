"""Bases of the model deployments: engines by model id, threads, metrics, and the hooks of Serve."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import ValidationError
from ray import serve
from ray.serve import metrics

from configs.engine_settings import ModelSettings, ReloadableSettings
from configs.reasons import reasons
from deployments.runtime.hold import Holdable
from deployments.runtime.metrics import count_out_of_memory, observe_devices
from deployments.runtime.model_access import ModelFiles, hardware
from deployments.runtime.worker import Call, Worker
from engines.cache import ModelCache
from engines.device import Loaded, WarmEngine, loaded_row
from engines.out_of_memory import free_caches, is_out_of_memory
from speech.audio import Audio, Samples
from speech.errors import OutOfMemory
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Segment

logger = logging.getLogger(f"speechgraph.{__name__}")

Engine = TypeVar("Engine", bound=WarmEngine)
Result = TypeVar("Result")


class EngineHost(Holdable, ABC, Generic[Engine]):
    """Loads engines by model id, keeps the most recently used, and runs calls on them in threads.

    A deployment derives from it, gives ``task_type`` and :meth:`load`, and adds its own methods.
    """

    task_type: ClassVar[str]
    """What its models do, for the statistics of the cache."""

    def __init__(self, settings: ModelSettings, files: ModelFiles) -> None:
        self._settings = settings
        self._files = files
        self._hardware = hardware(settings)
        self._worker = Worker(settings.concurrency)
        self._cache = ModelCache(
            self.load,
            settings.max_models,
            settings.idle_ttl_s,
            task_type=self.task_type,
            describe=loaded_row,
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
                pass

    @abstractmethod
    def load(self, model: str) -> Loaded[Engine]:
        """The engine of a model id, warmed up. Raises ModelNotFound, ModelUnavailable."""

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take new bounds of the cache; what is absent goes back to the arguments.

        Raises ValueError for an unknown name or a wrong value.
        """
        try:
            new = ReloadableSettings.model_validate(user_config)
        except ValidationError as error:
            raise ValueError("; ".join(reasons(error, "user_config"))) from None
        self._cache.configure(
            self._settings.max_models if new.max_models is None else new.max_models,
            self._settings.idle_ttl_s if new.idle_ttl_s is None else new.idle_ttl_s,
        )

    async def check_health(self) -> None:
        """Called by Serve before the first request and every few seconds.

        So this is where preloaded models are announced, and the clock of the idle TTL and of the
        gauge.
        """
        for entry in self._cache.stats():
            await self._announce(entry["model_name"])
        for model in self._cache.evict_idle():
            logger.info("model %s was idle and is unloaded", model)
        observe_devices(self._cache.stats())

    def progress(self) -> Mapping[str, float]:
        """Seconds of audio done so far, by job, of the calls that run here for one."""
        return self._worker.progress

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model."""
        return self._cache.stats()

    async def _run(
        self, model: str, work: Callable[[Engine, Call], Result], job: str | None
    ) -> Result:
        """Await ``work(engine, call)`` in a thread, with the engine of ``model``.

        ``job`` is the id of the job that the call is for, None for an interactive call.
        """
        # Serve routes a model id to the replicas that announced it, so every replica has to. Its
        # own cache holds ids only: it has no idle TTL and unloads models that are in use.
        await self._announce(model)
        return await self._worker.run(lambda call: self._with_engine(model, work, call), job)

    async def _run_without_model(self, work: Callable[[], Result], job: str | None) -> Result:
        """Await work that needs no model, in the same threads and behind the same bound."""

        def in_slot(call: Call) -> Result:
            with call.slot():
                return work()

        return await self._worker.run(in_slot, job)

    def _with_engine(
        self, model: str, work: Callable[[Engine, Call], Result], call: Call
    ) -> Result:
        """The result of the work; done once more after an out-of-memory that something helped.

        Raises what the work and the load of the model do, and OutOfMemory.
        """
        for _ in range(2):
            try:
                return self._attempt(model, work, call)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            # Outside of the handler: the traceback keeps the frames, and what they allocated.
            count_out_of_memory(model)
            evicted = self._cache.evict_unused(but=model)
            freed = free_caches()
            logger.warning(
                "model %s: out of memory; unloaded %s, freed %d MiB of caches: %s",
                model,
                ", ".join(evicted) or "nothing",
                freed // 1024**2,
                reason,
            )
            if not evicted and not freed:
                break
        raise OutOfMemory(f"the memory does not suffice for model {model} now", 5.0, reason)

    def _attempt(self, model: str, work: Callable[[Engine, Call], Result], call: Call) -> Result:
        with ExitStack() as stack:
            with call.without_demand():  # batch calls that yield may have all places of the cache
                loaded = stack.enter_context(self._cache.use(model))
            stack.enter_context(call.slot())
            started = time.perf_counter()
            try:
                return work(loaded.engine, call)
            finally:
                self._run_seconds.observe(time.perf_counter() - started, tags={"model": model})


async def _identity(model: str) -> str:
    return model


class RecognitionEngine(WarmEngine, Protocol):
    """An engine that recognises a whole file."""

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: Callable[[], bool],
        report: Callable[[float], None],
        emit: Callable[[Segment], None],
    ) -> Recognition:
        """Recognise mono float32 samples at 16 kHz, with a cancellation point between pieces.

        ``emit`` is called with each segment as soon as it is recognised.
        """
        ...


Recogniser = TypeVar("Recogniser", bound=RecognitionEngine)


class RecogniserHost(EngineHost[Recogniser]):
    """Base of the deployments that recognise speech."""

    task_type = "transcribe"

    def _recognise(
        self,
        engine: Recogniser,
        samples: Samples,
        options: TranscribeOptions,
        call: Call,
        emit: Callable[[Segment], None],
    ) -> Recognition:
        return engine.transcribe(samples, options, call.checkpoint, call.report, emit)

    async def transcribe(
        self, audio: Audio, options: TranscribeOptions, channel: int | None, job: str | None
    ) -> dict[str, Any]:
        """Recognise one channel; a packed :class:`speech.transcript.Recognition`."""
        samples = audio.track(channel)
        recognition = await self._run(
            str(options.model),
            lambda engine, call: self._recognise(
                engine, samples, options, call, lambda segment: None
            ),
            job,
        )
        return recognition.pack()

    async def stream(
        self, audio: Audio, options: TranscribeOptions
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Recognise the mono mix as an interactive call; the packed recognition in parts.

        See :meth:`speech.ports.FileTranscriber.stream`. What the caller has not taken yet waits
        here: at most the segments of one file. After an out-of-memory they come once more.
        """
        loop = asyncio.get_running_loop()
        recognised: asyncio.Queue[Segment | None] = asyncio.Queue()

        def emit(segment: Segment) -> None:
            loop.call_soon_threadsafe(recognised.put_nowait, segment)

        running = asyncio.create_task(
            self._run(
                str(options.model),
                lambda engine, call: self._recognise(engine, audio.mono, options, call, emit),
                None,
            )
        )
        running.add_done_callback(lambda _: recognised.put_nowait(None))
        try:
            while (segment := await recognised.get()) is not None:
                yield Recognition((segment,)).pack()
            yield replace(await running, segments=()).pack()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
