"""The socket of the classic vosk-server, ``WS /vosk``."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from api.compat.vosk_socket import VoskSocket, text_of, to_json, vosk_words
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
    """

    def __init__(self, live: LiveStreams, model: str | None) -> None:
        super().__init__(live, model)
        self._session: LiveSession | None = None
        self._answered = 0
        self._results: deque[Event] = deque()

    def mode(self, entry: ModelEntry) -> Mode:
        """Utterances are endpointed also for models that recognise whole utterances."""
        if entry.streaming:
            return FrameSynchronous(entry.id)
        partial_model = self._live.models.streaming
        if partial_model is None:
            return WholeUtterances(entry.id, partials=False)
        return TwoPass(entry.id, partial_model)

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        opening = super().open(frame)
        if isinstance(opening, Opening):
            self._session = opening.session
        return opening

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
            case "error":
                return [to_json({"error": event.text})]
            case "done":
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
        assert self._session is not None
        answers = []
        while self._answered < self._session.processed_frames:
            self._answered += 1
            if self._results:
                answers.append(to_json(self._result(self._results.popleft().words)))
            else:
                answers.append(to_json({"partial": self.transcript.partial}))
        return answers

    def _result(self, words: Sequence[Word]) -> dict[str, Any]:
        result = vosk_words(words)
        text = text_of(result)
        body = {"result": result, "text": text} if self.config.words and result else {"text": text}
        if not self.config.max_alternatives:
            return body
        values = [word["conf"] for word in result]
        confidence = sum(values) / len(values) if values else 1.0
        return {"alternatives": [{"confidence": confidence, **body}]}
