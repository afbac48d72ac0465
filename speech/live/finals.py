"""Finals of a live stream: utterances that are over, finished one after the other."""

import asyncio
import logging
from dataclasses import dataclass, replace

from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import SpeechError
from speech.live.emitter import EventEmitter
from speech.live.endpointing import Utterance
from speech.live.partials import Draft, final_words
from speech.live.session_options import LivePorts, SessionOptions
from speech.live.speakers import OnlineSpeakers
from speech.ports import DecodedAudio, EmotionOptions
from speech.transcript import Scores, Span, Word

log = logging.getLogger(f"speechgraph.{__name__}")

WAITING_FINALS = 4
"""Utterances that wait to be finished; no more of the stream is processed beyond that."""


@dataclass(frozen=True, slots=True)
class EndedUtterance:
    """An utterance that is over, with the options it was recorded under.

    ``arrived`` is when its last sample was received.
    """

    number: int
    turn: int
    place: Utterance
    samples: Samples
    draft: Draft
    arrived: float
    options: SessionOptions


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``finalized`` is emitted behind the finals before it; ``end`` is its place in samples."""

    end: int


class Finals:
    """Emits ``final`` for each utterance in their order, or ``failed`` in a stream with turns."""

    def __init__(self, ports: LivePorts, emitter: EventEmitter, speakers: OnlineSpeakers) -> None:
        self._ports = ports
        self._emitter = emitter
        self._speakers = speakers
        self._waiting: asyncio.Queue[EndedUtterance | Checkpoint | None] = asyncio.Queue(
            WAITING_FINALS
        )

    async def put(self, item: EndedUtterance | Checkpoint) -> None:
        """Hand over an utterance or a checkpoint; waits while too many wait already."""
        await self._waiting.put(item)

    async def end(self) -> None:
        """No utterance follows."""
        await self._waiting.put(None)

    async def run(self) -> None:
        """Finish utterances until the end.

        Raises SpeechError for one that cannot be recognised, where the stream has no turns.
        """
        while (utterance := await self._waiting.get()) is not None:
            if isinstance(utterance, Checkpoint):
                self._emitter.emit("finalized", utterance.end, utterance.end)
                continue
            try:
                await self._finish(utterance)
            except SpeechError as error:
                if utterance.options.mode.turns is None:
                    raise
                log.warning("an utterance could not be recognised: %s", error)
                self._emitter.emit(
                    "failed",
                    utterance.place.begin,
                    utterance.place.end,
                    utterance.arrived,
                    utterance=utterance.number,
                    turn=utterance.turn,
                    text=error.message,
                    code=error.code,
                )

    async def recognise(self, samples: Samples, options: SessionOptions) -> tuple[Word, ...]:
        """Words of an utterance by the model of the finals, times in seconds of the utterance."""
        audio = DecodedAudio(Audio(samples), len(samples) / SAMPLE_RATE)
        # Finals are made of words, also for clients that want no times of words.
        asked = replace(options.transcribe, model=options.mode.model, word_timestamps=True)
        recognition = await self._ports.transcriber.transcribe(audio, asked, None)
        return tuple(word for segment in recognition.segments for word in segment.words)

    async def _finish(self, utterance: EndedUtterance) -> None:
        place, samples, options = utterance.place, utterance.samples, utterance.options
        words = utterance.draft.words
        if words is None:
            words = await self.recognise(samples, options) if place.spoken else ()
            if utterance.draft.agreement.committed:
                words = final_words(utterance.draft.agreement, words, place)
        emotion, speaker = await self._attributes(samples, options) if words else (None, None)
        event = self._emitter.emit_words(
            "final",
            place.begin,
            place.end,
            words,
            utterance.arrived,
            utterance=utterance.number,
            turn=utterance.turn,
            emotion=emotion,
            speaker=speaker,
            voice=self._speakers.voice(speaker) if speaker else b"",
        )
        self._ports.observe_lag(event.lag_s)

    async def _attributes(
        self, samples: Samples, options: SessionOptions
    ) -> tuple[Scores | None, str | None]:
        """Emotion and speaker of an utterance, each where it is asked for."""
        emotion: Scores | None = None
        speaker: str | None = None
        seconds = len(samples) / SAMPLE_RATE
        if options.emotion_model is not None and self._ports.emotions is not None:
            audio = DecodedAudio(Audio(samples), seconds)
            (emotion,) = await self._ports.emotions.classify(
                audio, [Span(0.0, seconds)], EmotionOptions(options.emotion_model, "sentence")
            )
        if options.speakers and self._ports.embedder is not None:
            speaker = self._speakers.label(await self._ports.embedder.embed(samples), seconds)
        return emotion, speaker
