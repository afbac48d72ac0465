"""The service as the dialects use it; the ingress implements it, and a fake in tests."""

from collections.abc import AsyncGenerator, Mapping, Set
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from api.capabilities import check_capabilities
from configs.catalogue import Catalogue, Family, ModelEntry
from speech.errors import InvalidRequest, ModelNotFound, NotEnabled
from speech.pipeline import ProcessOptions, Task
from speech.transcript import Segment, Transcript

FAMILIES: Mapping[Task, Set[Family]] = {
    "transcribe": {"whisper", "onnx_asr"},
    "diarization": {"diarization"},
    "emotion": {"emotion"},
}
"""The families of models that can do a task."""


class DeploymentState(NamedTuple):
    """``running``: a replica runs with its models loaded. ``required``: one always should."""

    running: bool
    required: bool


class SpeechService(Protocol):
    """The graph as the dialects see it. Every call ends within a bound of the implementation."""

    @property
    def catalogue(self) -> Catalogue:
        """All models of the catalogue, served here or not."""
        ...

    @property
    def families(self) -> Set[Family]:
        """The families whose deployment runs in this graph."""
        ...

    @property
    def default_models(self) -> Mapping[Task, str]:
        """Catalogue id that does a task when the request names none; no entry: task not served."""
        ...

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        """Run the graph over one file. Raises the family of :mod:`speech.errors`."""
        ...

    def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        """The segments of one file as they are recognised, then its transcript.

        Raises what :meth:`process` raises. A caller that stops early closes the generator.
        """
        ...

    async def deployment_states(self) -> Mapping[str, DeploymentState]:
        """The state of every deployment of the graph, by its name."""
        ...

    async def present_models(self) -> Set[str]:
        """Ids of the models whose files are on this machine."""
        ...

    async def cache_stats(self, *, required_only: bool = False) -> list[dict[str, Any]]:
        """One row per loaded model copy, keyed as :class:`api.models.CacheEntry`.

        ``required_only``: not those of deployments that may have no replica. Who asks these again
        and again keeps them from having none.
        """
        ...


def with_max_duration(service: SpeechService, max_seconds: float | None) -> SpeechService:
    """The same service with a bound on the seconds of audio; None: no other bound."""
    return service if max_seconds is None else _WithMaxDuration(service, max_seconds)


class _WithMaxDuration:
    def __init__(self, service: SpeechService, max_seconds: float) -> None:
        self._service = service
        self._max_seconds = max_seconds

    @property
    def catalogue(self) -> Catalogue:
        return self._service.catalogue

    @property
    def families(self) -> Set[Family]:
        return self._service.families

    @property
    def default_models(self) -> Mapping[Task, str]:
        return self._service.default_models

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        return await self._service.process(data, replace(options, max_seconds=self._max_seconds))

    def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        return self._service.stream(data, replace(options, max_seconds=self._max_seconds))

    async def deployment_states(self) -> Mapping[str, DeploymentState]:
        return await self._service.deployment_states()

    async def present_models(self) -> Set[str]:
        return await self._service.present_models()

    async def cache_stats(self, *, required_only: bool = False) -> list[dict[str, Any]]:
        return await self._service.cache_stats(required_only=required_only)


def resolve_models(service: SpeechService, options: ProcessOptions) -> ProcessOptions:
    """The options with the catalogue id of every model that will be used, checked beforehand.

    Names may be ids, aliases, or None for the default. Raises NotEnabled if the graph runs nothing
    for a task, ModelNotFound if it does not serve the model, InvalidRequest if the model is of
    another kind or cannot do what it is asked.
    """

    def resolve(task: Task, needed: bool, name: str | None) -> str | None:
        return _resolve(service, task, name).id if needed else None

    transcribe, diarize, emotion = options.transcribe, options.diarize, options.emotion
    tasks = options.tasks
    if options.needs_words:
        recogniser = _resolve(service, "transcribe", transcribe.model)
        check_capabilities(recogniser, transcribe, service.catalogue, service.families)
    return replace(
        options,
        transcribe=replace(
            transcribe, model=resolve("transcribe", options.needs_words, transcribe.model)
        ),
        diarize=replace(
            diarize, model=resolve("diarization", "diarization" in tasks, diarize.model)
        ),
        emotion=replace(emotion, model=resolve("emotion", "emotion" in tasks, emotion.model)),
    )


def _resolve(service: SpeechService, task: Task, name: str | None) -> ModelEntry:
    default = service.default_models.get(task)
    if default is None:
        raise NotEnabled(f"This service runs no model for the task '{task}'.")
    entry = service.catalogue.find(default if name is None else name)
    if entry is None or entry.family not in service.families:
        raise ModelNotFound(
            f"Model '{name}' is not served here; GET /v1/models lists those that are."
        )
    if entry.family not in FAMILIES[task]:
        raise InvalidRequest(f"Model '{name}' is a {entry.family} model, it cannot do '{task}'.")
    return entry
