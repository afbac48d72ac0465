"""Live streams for the dialects: model names become catalogue entries, options become sessions."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from api.capabilities import check_capabilities, ignored_hints
from api.service import SpeechService
from configs.catalogue import ModelEntry
from configs.settings import SessionSettings
from speech.errors import InvalidRequest, ModelNotFound, NotEnabled
from speech.live.pending_total import PendingTotal
from speech.live.registry import SessionRegistry, YieldingRecognizer
from speech.live.session import LiveSession
from speech.live.session_options import LivePorts, ResumeState, SessionLimits, SessionOptions
from speech.live.stream_decoder import StreamDecoder


@dataclass(frozen=True, slots=True)
class LiveModels:
    """Catalogue ids of the default models of live streams; None where no such model is served.

    ``streaming`` is frame-synchronous, ``utterance`` recognises whole utterances, ``general`` is
    the model of ``POST /v1/process``.
    """

    streaming: str | None
    utterance: str | None
    general: str | None
    speaker: str | None = None


class LiveStreams:
    """Opens sessions on the models of the graph."""

    def __init__(
        self,
        service: SpeechService,
        ports: LivePorts,
        settings: SessionSettings,
        models: LiveModels,
        observe_sessions: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._service = service
        self.settings = settings
        self.models = models
        self.sessions = SessionRegistry(
            settings.max_sessions, settings.retention_s, observe_sessions
        )
        self._ports = ports
        if ports.streaming is not None:
            yielding = YieldingRecognizer(ports.streaming, self.sessions)
            self._ports = replace(ports, streaming=yielding)
        self._limits = SessionLimits(
            settings.max_pending_mb * 1024**2,
            settings.max_stream_s,
            PendingTotal(settings.max_pending_total_mb * 1024**2, settings.max_sessions),
        )

    def recogniser(self, name: str | None, default: str | None) -> ModelEntry:
        """The model of an id or alias. Raises ModelNotFound, NotEnabled, InvalidRequest."""
        name = name or default
        if name is None:
            raise NotEnabled("This service runs no model for live streams of this kind.")
        entry = self._service.catalogue.find(name)
        if entry is None or not self._serves(entry):
            raise ModelNotFound(f"Model '{name}' is not served here.")
        if entry.family not in ("whisper", "onnx_asr"):
            raise InvalidRequest(
                f"Model '{name}' is a {entry.family} model, it transcribes nothing."
            )
        return entry

    def lists(self, name: str | None) -> bool:
        """Whether the catalogue has a model of that name, served or not."""
        return name is not None and self._service.catalogue.find(name) is not None

    def check(self, options: SessionOptions) -> None:
        """Raise InvalidRequest where a model cannot do what the options ask of it."""
        for entry in self._recognisers(options):
            check_capabilities(
                entry, options.transcribe, self._service.catalogue, self._service.families
            )

    def warnings(self, options: SessionOptions) -> list[str]:
        """The hints that a model does not use."""
        return [
            warning
            for entry in self._recognisers(options)
            for warning in ignored_hints(entry, options.transcribe)
        ]

    def _recognisers(self, options: SessionOptions) -> list[ModelEntry]:
        names = (options.mode.model, options.partial_model)
        found = map(self._service.catalogue.find, filter(None, names))
        return [entry for entry in found if entry is not None]

    def recogniser_of_language(self, language: str) -> ModelEntry:
        """The model for an ISO 639-1 code: a default one that knows it, else any.

        Models that know many languages come after those that name this one. Raises ModelNotFound.
        """
        defaults = (self.models.streaming, self.models.utterance, self.models.general)
        served = [
            *(self.recogniser(name, None) for name in defaults if name),
            *(
                entry
                for entry in self._service.catalogue.models
                if entry.family == "onnx_asr" and self._serves(entry)
            ),
        ]
        for entry in served:
            if language in entry.languages:
                return entry
        for entry in served:
            if not entry.languages:
                return entry
        raise ModelNotFound(f"No model for the language '{language}' is served here.")

    def knows(self, model: str, language: str | None) -> bool:
        """Whether a model recognises a language; None is any."""
        entry = self._service.catalogue.find(model)
        return language is None or (entry is not None and entry.knows(language))

    def _serves(self, entry: ModelEntry) -> bool:
        if entry.streaming:
            return self.models.streaming is not None
        return entry.family in self._service.families

    def emotion_model(self) -> str:
        """The model that classifies the emotion of utterances. Raises NotEnabled."""
        model = self._service.default_models.get("emotion")
        if model is None:
            raise NotEnabled("This service runs no model for emotions.")
        return model

    def open(
        self,
        options: SessionOptions,
        decoder: StreamDecoder,
        *,
        session_id: str | None = None,
        owner: str = "",
        max_of_owner: int | None = None,
        resume_from: ResumeState | None = None,
    ) -> LiveSession:
        """Start a session; ``owner`` alone may resume it.

        It takes the place of a session that waits to be resumed where all places are taken, those
        of its owner included. Raises Overloaded, NotEnabled, InvalidRequest.
        """
        self.check(options)
        if options.speakers and self.models.speaker is None:
            raise NotEnabled("This service runs no speaker model.")
        session = LiveSession(
            session_id or uuid.uuid4().hex,
            options,
            self._ports,
            decoder,
            self._limits,
            owner=owner,
            resume_from=resume_from,
        )
        self.sessions.start(session, max_of_owner)
        return session
