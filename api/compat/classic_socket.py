"""The socket of the classic vosk-server, ``WS /vosk``."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from api.compat.vosk_socket import Config, VoskSocket, is_config, text_of, to_json, vosk_words
from api.live.connection import Frame
from api.live.conversation import Opening
from api.live.registry import LiveStreams
from configs.catalogue import ModelEntry
from speech.errors import SpeechError
from speech.live.events import Event
from speech.live.session import LiveSession
from speech.live.session_options import (
    FrameSynchronous,
    Mode,
    TwoPass,
    WholeUtterances,
)
from speech.transcript import Word


class ClassicSocket(VoskSocket):
    """The vosk-server: one answer to each frame, a result where an utterance ended in it, else the
    partial; the rest of the text after the end, then the server closes.

    A reset is answered with the text until then. A configuration has no answer, any other text an
    error. ``language`` selects the model where none is named.
    """

    def __init__(
        self,
        live: LiveStreams,
        model: str | None = None,
        config: Config | None = None,
        language: str | None = None,
    ) -> None:
        super().__init__(live, model, config)
        self.language = language
        self._session: LiveSession | None = None
        self._received = self._answered = 0
        """Frames."""
        self._resets: deque[int] = deque()
        """How many frames came before each reset that is not answered."""
        self._finalized = 0
        """How many of these are done."""
        self._results: deque[Event] = deque()
        self._failed = False

    def recogniser(self, name: str | None) -> ModelEntry:
        if name is None and self.language is not None:
            return self._live.recogniser_of_language(self.language)
        return super().recogniser(name)

    def mode(self, entry: ModelEntry) -> Mode:
        """Utterances are endpointed also for models that recognise whole utterances."""
        if entry.streaming:
            return FrameSynchronous(entry.id)
        partial_model = self._live.models.streaming
        if partial_model is None or not self._live.knows(partial_model, self.language):
            return WholeUtterances(entry.id, partials=False)
        return TwoPass(entry.id, partial_model)

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        opening = super().open(frame)
        if isinstance(opening, Opening):
            self._session = opening.session
        return opening

    def take_audio(self, frame: bytes, session: LiveSession) -> None:
        super().take_audio(frame, session)
        self._received += 1

    def read_text(self, frame: str, session: LiveSession | None) -> Sequence[str]:
        if is_config(frame):
            return super().read_text(frame, session)
        if "reset" not in frame:
            return [self.complaint("it is no config, reset or eof")]
        if session is None:
            return [to_json(self._result(()))]
        session.checkpoint()
        self._resets.append(self._received)
        return []

    def render(self, event: Event) -> Sequence[str]:
        match event.kind:
            case "partial":
                self.transcript.add(event)
            case "final":
                self.transcript.add(event)
                if event.text:
                    self._results.append(event)
            case "progress":
                return self._answers()
            case "finalized":
                self._finalized += 1
                return self._answers()
            case "error":
                self._failed = True
                return [to_json({"error": event.text})]
            case "done" if not self._failed:
                return [self._rest()]
        return []

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        rest = [self._rest()] if self._results else []
        return [*rest, *super().render_error(error, begun)]

    def _rest(self) -> str:
        """The results that no frame was answered with."""
        words = [word for result in self._results for word in result.words]
        self._results.clear()
        return to_json(self._result(words))

    def _answers(self) -> list[str]:
        """The answers to what is processed, in the order in which it was sent."""
        assert self._session is not None
        answers: list[str] = []
        while True:
            if self._resets and self._resets[0] == self._answered:
                if not self._finalized:
                    return answers
                self._finalized -= 1
                self._resets.popleft()
                answers.append(self._rest())
            elif self._answered < self._session.processed_frames:
                self._answered += 1
                answers.append(self._answer())
            else:
                return answers

    def _answer(self) -> str:
        if self._results:
            return to_json(self._result(self._results.popleft().words))
        return to_json({"partial": self.transcript.partial})

    def _result(self, words: Sequence[Word]) -> dict[str, Any]:
        result = vosk_words(words)
        text = text_of(result)
        body = {"result": result, "text": text} if self.config.words and result else {"text": text}
        if not self.config.max_alternatives:
            return body
        values = [word["conf"] for word in result]
        confidence = sum(values) / len(values) if values else 1.0
        return {"alternatives": [{"confidence": confidence, **body}]}
