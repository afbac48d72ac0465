"""The socket of the sherpa-onnx Vosk server, ``WS /ws``."""

from collections.abc import Sequence
from typing import Any

from api.compat.vosk_socket import VoskSocket, text_of, to_json, vosk_words
from api.live.connection import Frame
from api.live.conversation import Opening
from api.live.registry import LiveStreams
from configs.catalogue import ModelEntry
from speech.errors import SpeechError
from speech.live.events import Event
from speech.live.session_options import (
    FrameSynchronous,
)


class SherpaSocket(VoskSocket):
    """Server B. A full model gives one answer per piece of at most 15 s, cut in pauses; a streaming
    model sends the text so far whenever it grows, as a string.

    Exactly one message has ``last_message: true``, after the end; then the server closes.
    """

    def __init__(self, live: LiveStreams, model: str | None = None) -> None:
        super().__init__(live, model)
        self._streaming = False
        self._sent = ""
        self._held: Event | None = None
        self._failed = False

    def recogniser(self, name: str | None) -> ModelEntry:
        models = self._live.models
        return self._live.recogniser(name, models.utterance or models.streaming)

    def open(self, frame: Frame) -> Opening | Sequence[str]:
        opening = super().open(frame)
        if isinstance(opening, Opening):
            self._streaming = isinstance(opening.session.options.mode, FrameSynchronous)
        return opening

    def complaint(self, fault: str) -> str:
        return _envelope(error=f"Can`t parse message - {fault}")

    def render(self, event: Event) -> Sequence[str]:
        if event.kind == "error":
            self._failed = True
            held, self._held = self._held, None
            return [*(self._piece(held) if held else ()), _envelope(error=event.text, last=True)]
        if self._failed:
            return []
        return self._accumulate(event) if self._streaming else self._piecewise(event)

    def _piecewise(self, event: Event) -> Sequence[str]:
        """One answer per piece; after the end one is held back, as it may be the last."""
        if event.kind == "final":
            if not self.ended:
                return self._piece(event)
            held, self._held = self._held, event
            return self._piece(held) if held else []
        if event.kind == "done" and self.ended:
            held, self._held = self._held, None
            if held and held.text:
                return self._piece(held, last=True)
            return [_envelope(silence=True, last=True)]
        return []

    def _piece(self, event: Event, last: bool = False) -> Sequence[str]:
        if event.text:
            words = vosk_words(event.words)
            return [_envelope(data={"result": words, "text": text_of(words)}, last=last)]
        if self.config.wait_null_answers:
            return [_envelope(silence=True, last=last)]
        return []

    def _accumulate(self, event: Event) -> Sequence[str]:
        if event.kind in ("partial", "final"):
            self.transcript.add(event)
            so_far = " ".join(
                text for text in (*self.transcript.finals, self.transcript.partial) if text
            )
            if so_far != self._sent:
                self._sent = so_far
                return [_envelope(data=so_far)]
        elif event.kind == "progress" and not self._sent and self.config.wait_null_answers:
            return [_envelope(silence=True)]
        elif event.kind == "done" and self.ended:
            return [_envelope(silence=not self._sent, data=self._sent, last=True)]
        return []

    def render_error(self, error: SpeechError, begun: bool) -> Sequence[str]:
        return [_envelope(error=error.message, last=True)]


def _envelope(
    data: Any = "", *, silence: bool = False, error: str | None = None, last: bool = False
) -> str:
    return to_json({"silence": silence, "data": data, "error": error, "last_message": last})
