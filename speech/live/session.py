"""A live stream as a state machine: audio and commands in, events out.

Everything is placed on the sample clock: what is recognised does not depend on how the audio was
chunked or how fast it came. One task processes the inbox (voice activity, utterances, partials),
one finishes utterances in their order; both are bounded, and what they cannot take waits in the
inbox, which rejects more than its bound. The state of the stream is here alone: recognisers may
die and be replaced behind their ports.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import SpeechError, StreamTooLong
from speech.live.audio_buffer import AudioBuffer
from speech.live.emitter import EventEmitter
from speech.live.endpointing import (
    Endpointer,
    Mark,
    PauseCutter,
    Segmenter,
    SpeechEnd,
    SpeechStart,
    Utterance,
)
from speech.live.events import Event, EventLog
from speech.live.finals import Checkpoint, EndedUtterance, Finals
from speech.live.inbox import BLOCK_S, Change, Inbox
from speech.live.partials import NoPartials, Partials, partials_for
from speech.live.session_options import (
    LivePorts,
    Pieces,
    ResumeState,
    SessionLimits,
    SessionOptions,
)
from speech.live.speakers import OnlineSpeakers
from speech.live.stream_decoder import StreamDecoder
from speech.live.turn_tracker import TurnTracker
from speech.log_context import session_id as log_session_id
from speech.ports import RecognizerStream, VoiceActivity

log = logging.getLogger(f"speechgraph.{__name__}")

_BLOCK = round(BLOCK_S * SAMPLE_RATE)


class LiveSession:
    """One stream from its first byte to its last event.

    ``run`` is its life; ``offer``, the commands and the changes put into its inbox and never wait,
    but raise TooFarAhead when it is full; ``events`` follows it. Raises InvalidRequest for voices
    that no session gave.
    """

    def __init__(
        self,
        session_id: str,
        options: SessionOptions,
        ports: LivePorts,
        decoder: StreamDecoder,
        limits: SessionLimits | None = None,
        *,
        resume_from: ResumeState | None = None,
        owner: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        before = resume_from or ResumeState()
        self.id = session_id
        self.owner = owner
        self.options = options
        self.processed_frames = 0
        self._ports = ports
        self._decoder = decoder
        self._limits = limits or SessionLimits()
        self._inbox = Inbox(self._limits.max_pending_bytes, self._limits.pending, clock)
        self._offered_samples = self._offered_bytes = 0
        """Samples sent for the decoders before the present one, and bytes sent for that one."""
        self._log = EventLog(before.seq + 1)
        self._emitter = EventEmitter(self._log, before.end_s, clock)
        self._vad: VoiceActivity = ports.voice_activity(options.endpointing)
        self._buffer = AudioBuffer()
        self._stream: RecognizerStream | None = None
        self._segmenter = self._new_segmenter()
        self._partials: Partials = NoPartials()
        self._finals = Finals(ports, self._emitter, OnlineSpeakers(before.voices))
        self._tracker = TurnTracker(self._emitter, options.mode.turns, before.utterances)
        self._progress_at = 0
        self._error: SpeechError | None = None
        self._ending = False

    @property
    def audio_from_s(self) -> float:
        """Where in the stream the next audio belongs that the client sends."""
        pcm = self.options.pcm
        if pcm is None:
            return self._emitter.seconds(len(self._buffer))
        samples = self._offered_samples + self._offered_bytes // pcm.frame_bytes
        return self._emitter.offset_s + samples / pcm.sample_rate

    @property
    def last_seq(self) -> int:
        """Number of the last event."""
        return self._log.next_seq - 1

    @property
    def ending(self) -> bool:
        """Whether the client has declared that no audio follows."""
        return self._ending

    @property
    def finished(self) -> bool:
        """Whether the last event is out."""
        return self._log.closed

    def offer(self, data: bytes) -> None:
        """Take audio as the client sent it. Raises TooFarAhead, having taken nothing."""
        if self._inbox.put(data):
            self._offered_bytes += len(data)

    async def wait_for_room(self) -> None:
        """Wait until the stream may take more; for callers that can slow the client down."""
        await self._inbox.wait_for_room()

    def replace_decoder(self, decoder: StreamDecoder) -> None:
        """What follows is a new stream of bytes, in another encoding or after a dropped socket."""
        self._inbox.put(Change(decoder))
        if self.options.pcm is not None:
            self._offered_samples += self._offered_bytes // self.options.pcm.frame_bytes
        self._offered_bytes = 0

    def finalize(self) -> None:
        """End the utterance under way as if a pause had been detected."""
        self._inbox.put("finalize")

    def checkpoint(self) -> None:
        """As :meth:`finalize`; ``finalized`` is emitted behind the finals of all before it."""
        self._inbox.put("checkpoint")

    def change(self, options: SessionOptions, decoder: StreamDecoder) -> None:
        """What follows is processed under other options; an utterance under way ends here.

        ``endpointing.webrtc_mode`` stays.
        """
        self._inbox.put(Change(decoder, options))

    def commit(self) -> None:
        """End the turn here, also one without speech."""
        self._inbox.put("commit")

    def clear(self) -> None:
        """Drop the turn so far."""
        self._inbox.put("clear")

    def drain(self) -> None:
        """End as soon as all that was sent is processed and nobody speaks."""
        self._inbox.put("drain")

    def end(self) -> None:
        """No audio follows: finish what was sent, then emit ``done``."""
        if not self._ending:
            self._ending = True
            self._inbox.put("end")

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Events with a ``seq`` above ``after``, as they happen; ends with ``done``.

        A partial or progress that was overtaken before it could be taken is left out.
        Raises Overloaded when events that must not be lost were dropped.
        """
        async for event in self._log.follow(after):
            yield event

    async def run(self) -> None:
        """Process the stream until its end; a failure becomes an ``error`` event, then ``done``.

        Cancelling it frees everything that the stream holds.
        """
        log_session_id.set(self.id)
        finishing = asyncio.create_task(self._finals.run())
        try:
            await self._open_stream()
            self._partials = self._new_partials()
            processing = asyncio.create_task(self._process())
            try:
                await asyncio.wait({processing, finishing}, return_when=asyncio.FIRST_COMPLETED)
                if processing.done():
                    processing.result()
                await finishing
            finally:
                await _cancelled(processing)
        except SpeechError as error:
            self._error = error
        except Exception:
            log.exception("live session %s failed", self.id)
            self._error = SpeechError("internal error")
        finally:
            await _cancelled(finishing)
            await self._free()
        end = len(self._buffer)
        if self._error is not None:
            self._emitter.emit("error", end, end, text=self._error.message, code=self._error.code)
        self._emitter.emit("done", end, end)
        self._log.close()

    async def _free(self) -> None:
        self._inbox.close()
        await self._partials.stop()
        if self._stream is not None:
            with contextlib.suppress(SpeechError):
                await self._stream.close()
        await self._decoder.close()

    async def _process(self) -> None:
        draining = False
        while self._error is None and not (draining and self._at_rest):
            received = await self._inbox.get()
            arrived = received.arrived
            match received.item:
                case bytes(data):
                    await self._take(await self._decoder.feed(data), arrived)
                    self.processed_frames += received.frames
                    self._emit_progress()
                case Change(decoder, options):
                    await self._flush(arrived)
                    await self._decoder.close()
                    self._decoder = decoder
                    if options is not None:
                        await self._apply(options)
                case "finalize":
                    await self._finalize()
                case "checkpoint":
                    await self._flush(arrived)
                    await self._finalize()
                    await self._finals.put(Checkpoint(len(self._buffer)))
                case "commit":
                    await self._commit(arrived)
                case "clear":
                    await self._clear(arrived)
                case "drain":
                    draining = True
                case "end":
                    await self._flush(arrived)
                    break
        await self._finalize()
        if self._tracker.turns and self._tracker.has_utterances:
            self._tracker.end_turn("turn", len(self._buffer))
        await self._finals.end()

    @property
    def _at_rest(self) -> bool:
        """Whether nothing would be lost or cut if the stream ended here."""
        between = self._segmenter.begin is None or isinstance(self.options.mode, Pieces)
        return between and self._inbox.empty

    # Audio

    async def _flush(self, arrived: float) -> None:
        await self._take(await self._decoder.flush(), arrived)

    async def _take(self, samples: Samples, arrived: float) -> None:
        longest_s = self._limits.max_stream_s
        room = round(longest_s * SAMPLE_RATE) - len(self._buffer)
        if len(samples) > room:
            self._error = StreamTooLong(f"a stream has at most {longest_s:g} seconds")
            samples = samples[:room]
        for first in range(0, len(samples), _BLOCK):
            await self._take_block(samples[first : first + _BLOCK], arrived)

    async def _take_block(self, samples: Samples, arrived: float) -> None:
        self._buffer.append(samples)
        end = len(self._buffer)
        self._emitter.received(end, arrived)
        probabilities = await self._vad.feed(samples)
        for mark in self._segmenter.feed(probabilities.tolist()):
            await self._follow(mark)
        begin = self._segmenter.begin
        if begin is not None:
            await self._partials.grow(begin, end)
            if self._tracker.too_long(end):
                await self._finalize()
        self._forget()

    def _forget(self) -> None:
        """Drop the audio that no utterance can reach any more."""
        self._buffer.drop(self._segmenter.keep_from)
        self._emitter.forget(self._segmenter.keep_from)

    def _emit_progress(self) -> None:
        every_s, end = self.options.progress_s, len(self._buffer)
        if every_s is not None and end - self._progress_at >= round(every_s * SAMPLE_RATE):
            self._progress_at = end
            self._emitter.emit("progress", end, end)

    # Utterances

    async def _follow(self, mark: Mark) -> None:
        match mark:
            case SpeechStart(at, begin):
                self._tracker.speech_start(begin, at)
            case SpeechEnd(at, end):
                self._tracker.speech_end(at, end)
            case Utterance():
                await self._end_utterance(mark)
                if self._tracker.turns == "pause" and not mark.cut:
                    self._tracker.end_turn("turn", mark.end)

    async def _end_utterance(self, utterance: Utterance) -> None:
        draft = await self._partials.finish(utterance)
        turn, number = self._tracker.turn, self._tracker.end_utterance()
        samples = self._buffer.cut(utterance.begin, utterance.end)
        arrived = self._emitter.arrival(utterance.end)
        await self._finals.put(
            EndedUtterance(number, turn, utterance, samples, draft, arrived, self.options)
        )

    async def _finalize(self) -> None:
        for mark in self._segmenter.finish(len(self._buffer)):
            await self._follow(mark)
        self._forget()

    # Turns

    async def _commit(self, arrived: float) -> None:
        turn = self._tracker.turn
        await self._flush(arrived)
        await self._finalize()
        if self._tracker.turn == turn:
            self._tracker.end_turn("turn", len(self._buffer))

    async def _clear(self, arrived: float) -> None:
        await self._flush(arrived)
        if self._segmenter.finish(len(self._buffer)):
            await self._partials.discard()
            self._tracker.discard_utterance()
        self._tracker.end_turn("cleared", len(self._buffer))
        self._forget()

    # Options

    async def _apply(self, options: SessionOptions) -> None:
        await self._finalize()
        before, self.options = self.options, options
        self._tracker.turns = options.mode.turns
        if _stream_key(options) != _stream_key(before):
            stream, self._stream = self._stream, None
            if stream is not None:
                await stream.close()
            await self._open_stream()
        self._segmenter, self._partials = self._new_segmenter(), self._new_partials()

    async def _open_stream(self) -> None:
        model, hotwords = _stream_key(self.options)
        if model is not None:
            assert self._ports.streaming is not None, "a model is named where one is served"
            self._stream = await self._ports.streaming.open(model, hotwords)

    def _new_segmenter(self) -> Segmenter:
        if isinstance(self.options.mode, Pieces):
            return PauseCutter(self.options.endpointing.max_utterance_s)
        return Endpointer(self.options.endpointing, len(self._buffer))

    def _new_partials(self) -> Partials:
        recognise = partial(self._finals.recognise, options=self.options)
        return partials_for(
            self.options.mode, self._buffer, self._stream, recognise, self._tracker.partial
        )


def _stream_key(options: SessionOptions) -> tuple[str | None, str | None]:
    """What a stream is opened with: the model and its hotwords."""
    return options.streaming_model, options.transcribe.hotwords


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
