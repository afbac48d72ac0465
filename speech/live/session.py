"""A live stream as a state machine: audio and commands in, events out.

Everything is placed on the sample clock: what is recognised does not depend on how the audio was
chunked or how fast it came. One task hears (voice activity, utterances, partials), one finishes
utterances in their order; both are bounded, and what they cannot take waits in the inbox, which
refuses more than its bound. The session is the truth of the stream: recognisers may die and come
back behind their ports.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import SpeechError, StreamTooLong, TooFarAhead
from speech.live.agreement import Agreement, next_pass_s
from speech.live.audio_buffer import AudioBuffer
from speech.live.endpointing import (
    Endpointer,
    EndpointOptions,
    PauseCutter,
    Segmenter,
    SpeechEnd,
    SpeechStart,
    Utterance,
)
from speech.live.events import Event, EventLog, Kind
from speech.live.pcm import PcmFormat
from speech.live.speakers import OnlineSpeakers
from speech.live.stream_decoder import StreamDecoder
from speech.log_context import session_id
from speech.ports import (
    DecodedAudio,
    EmotionClassifier,
    EmotionOptions,
    RecognizerStream,
    SpeakerEmbedder,
    StreamingRecognizer,
    TranscribeOptions,
    Transcriber,
    VoiceActivity,
)
from speech.transcript import Scores, Span, Word

log = logging.getLogger(f"speechgraph.{__name__}")

Command = Literal["finalize", "commit", "clear", "drain", "end"]

BLOCK_S = 4.0
"""A stream that is behind is heard in blocks of this many seconds, with a partial for each."""
_BLOCK_BYTES = round(BLOCK_S * SAMPLE_RATE * 2)
_FRAME_BYTES = 200
"""What a frame in the inbox costs beside its audio, about."""
_CHANGE_BYTES = 20_000
"""What other options count for in the inbox: a prompt, hotwords, a resampler."""
MAX_TURN_S = 600.0
"""The longest turn; speech that knows no pause ends its turn then."""
WAITING_FINALS = 4
"""Utterances that wait to be finished; the stream is not heard further beyond that."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What one stream asks for.

    ``model`` makes the finals, and also the partials where no ``partial_model`` is named; the two
    flags say which of them are frame-synchronous. With ``cut_in_pauses`` nothing is endpointed:
    the whole audio is recognised in pieces of at most ``endpointing.max_utterance_s``.
    ``progress_s`` is how often, in seconds of the stream, it is said how far it was heard;
    ``pcm`` is None where the audio comes in a container.

    With ``turns`` it is told which utterances belong together, see :mod:`speech.live.turns`: a turn
    ends with the pause after it or only where the client commits it, and then nothing is said of
    the beginning and end of speech. Partials hold only what is never taken back, and an utterance
    that cannot be recognised does not end the stream.
    """

    model: str
    streaming: bool
    partial_model: str | None = None
    partials: bool = True
    cut_in_pauses: bool = False
    turns: Literal["pause", "commit"] | None = None
    endpointing: EndpointOptions = field(default_factory=EndpointOptions)
    transcribe: TranscribeOptions = field(default_factory=TranscribeOptions)
    emotion_model: str | None = None
    speakers: bool = False
    progress_s: float | None = None
    pcm: PcmFormat | None = None

    @property
    def stream_model(self) -> str | None:
        """The frame-synchronous model that hears the stream."""
        return self.model if self.streaming else self.partial_model


_Item = bytes | Command | StreamDecoder | tuple[SessionOptions, StreamDecoder]


@dataclass(slots=True)
class Pending:
    """Audio that waits in the inboxes of all streams of a process, bytes."""

    max_bytes: int
    used: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one stream; ``pending`` is shared with the others."""

    max_pending_bytes: int = 128 * 1024**2
    max_stream_s: float = 3 * 3600.0
    pending: Pending = field(default_factory=lambda: Pending(512 * 1024**2))


@dataclass(frozen=True, slots=True)
class LivePorts:
    """The models behind live streams; ``observe_lag`` is told how late each final was."""

    voice_activity: Callable[[EndpointOptions], VoiceActivity]
    streaming: StreamingRecognizer | None
    transcriber: Transcriber
    emotions: EmotionClassifier | None = None
    embedder: SpeakerEmbedder | None = None
    observe_lag: Callable[[float], None] = lambda seconds: None


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a session that is gone has told of a stream which goes on in another one.

    The finals of its ``utterances`` reach to ``end_s``, its last event was ``seq``. ``voices`` has
    the last ``voice`` of each ``speaker``.
    """

    end_s: float = 0.0
    seq: int = 0
    utterances: int = 0
    voices: Mapping[str, bytes] = field(default_factory=dict)


class LiveSession:
    """One stream from its first byte to its last event.

    ``run`` is its life; ``offer``, ``finalize`` and ``end`` feed it and never wait; ``events``
    follows it. Raises InvalidRequest for voices that were never told.
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
        resume_from = resume_from or ResumeState()
        self.id = session_id
        self.owner = owner
        self.options = options
        self._ports = ports
        self._decoder = decoder
        self._limits = limits or SessionLimits()
        self._offset_s = resume_from.end_s
        self._clock = clock
        self._inbox: deque[tuple[float, _Item]] = deque()
        self._pending_bytes = 0
        self._offered = (resume_from.end_s, 0)
        self._arrived = asyncio.Event()
        self._log = EventLog(resume_from.seq + 1)
        self._vad = ports.voice_activity(options.endpointing)
        self._buffer = AudioBuffer()
        self._segmenter = self._new_segmenter()
        self._arrivals: deque[tuple[int, float]] = deque()
        self._stream: RecognizerStream | None = None
        self._fed = 0
        self._told_s = resume_from.end_s
        self.processed_frames = 0
        self._refused: SpeechError | None = None
        self._freed = False
        self._ending = False
        self._utterance = self._turn_utterance = resume_from.utterances
        self._turn = 0
        self._turn_begin = 0
        self._partial_text = ""
        self._agreement = Agreement()
        self._rerecognition: _Rerecognition | None = None
        self._finals: asyncio.Queue[Callable[[], Any] | None] = asyncio.Queue(WAITING_FINALS)
        self._speakers = OnlineSpeakers(resume_from.voices)

    def _new_segmenter(self) -> Segmenter:
        if self.options.cut_in_pauses:
            return PauseCutter(self.options.endpointing.max_utterance_s)
        return Endpointer(self.options.endpointing, len(self._buffer))

    @property
    def received_s(self) -> float:
        """Seconds of the stream that were heard, those before this session included."""
        return self._offset_s + len(self._buffer) / SAMPLE_RATE

    @property
    def audio_from_s(self) -> float:
        """Where in the stream the next audio belongs that the client sends."""
        if self.options.pcm is None:
            return self.received_s
        from_s, size = self._offered
        return from_s + self.options.pcm.seconds(size)

    @property
    def last_seq(self) -> int:
        """Number of the last event."""
        return self._log.next_seq - 1

    @property
    def ending(self) -> bool:
        """Whether the client has said that no audio follows."""
        return self._ending

    @property
    def finished(self) -> bool:
        """Whether the last event is out."""
        return self._log.closed

    def offer(self, data: bytes) -> None:
        """Take audio as the client sent it. Raises TooFarAhead, having taken nothing."""
        if self._put(data):
            self._offered = (self._offered[0], self._offered[1] + len(data))

    async def wait_for_room(self) -> None:
        """Wait until less than half of what may wait does; for who can slow the client down."""
        bounds = self._limits
        while (
            2 * self._pending_bytes > bounds.max_pending_bytes
            or 2 * bounds.pending.used > bounds.pending.max_bytes
        ):
            bounds.pending.freed.clear()
            await bounds.pending.freed.wait()

    def replace_decoder(self, decoder: StreamDecoder) -> None:
        """What follows begins anew, in another encoding or after a dropped socket."""
        self._offered = (self.audio_from_s, 0)
        self._put(decoder)

    def finalize(self) -> None:
        """End the utterance that is going on as if a pause had been heard."""
        self._put("finalize")

    def change(self, options: SessionOptions, decoder: StreamDecoder) -> None:
        """What follows is heard in another way; an utterance that is going on ends here.

        ``endpointing.webrtc_mode`` stays.
        """
        self._put((options, decoder))

    def commit(self) -> None:
        """End the turn here, also one in which nothing was said."""
        self._put("commit")

    def clear(self) -> None:
        """Forget the turn so far."""
        self._put("clear")

    def drain(self) -> None:
        """End as soon as all was heard that came, and nobody speaks."""
        self._put("drain")

    def end(self) -> None:
        """No audio follows: finish what was heard, then say ``done``."""
        if not self._ending:
            self._ending = True
            self._put("end")

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Events with a ``seq`` above ``after``, as they happen; ends with ``done``.

        A partial or progress that was overtaken before it could be taken is left out.
        Raises Overloaded when events that must not be lost are gone.
        """
        async for event in self._log.follow(after):
            yield event

    async def run(self) -> None:
        """Hear the stream until its end; a failure becomes an ``error`` event, then ``done``.

        Cancelling it frees everything that the stream holds.
        """
        session_id.set(self.id)
        finisher = asyncio.create_task(self._finish_utterances())
        try:
            await self._open_stream()
            hearing = asyncio.create_task(self._hear())
            try:
                await asyncio.wait({hearing, finisher}, return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    hearing.result()
                await finisher
            finally:
                await _cancelled(hearing)
        except SpeechError as error:
            self._refused = error
        except Exception:
            log.exception("live session %s failed", self.id)
            self._refused = SpeechError("internal error")
        finally:
            await _cancelled(finisher)
            await self._free()
        end = len(self._buffer)
        if self._refused is not None:
            self._say("error", end, end, text=self._refused.message, code=self._refused.code)
        self._say("done", end, end)
        self._log.close()

    async def _open_stream(self) -> None:
        if self.options.stream_model is not None:
            assert self._ports.streaming is not None, "a model is named where one is served"
            self._stream = await self._ports.streaming.open(
                self.options.stream_model, self.options.transcribe.hotwords
            )

    async def _free(self) -> None:
        self._freed = True
        self._inbox.clear()
        self._waits(-self._pending_bytes)
        if self._rerecognition is not None:
            await self._rerecognition.stop()
        if self._stream is not None:
            with contextlib.suppress(SpeechError):
                await self._stream.close()
        await self._decoder.close()

    def _put(self, item: _Item) -> bool:
        """Whether it is in the inbox; nothing is taken after the end. Raises TooFarAhead."""
        if self._freed:
            return False
        bounds, size = self._limits, _size(item)
        if self._pending_bytes + size > bounds.max_pending_bytes:
            raise TooFarAhead(
                f"more than {bounds.max_pending_bytes} bytes of this stream wait to be recognised"
            )
        if bounds.pending.used + size > bounds.pending.max_bytes:
            raise TooFarAhead("too much audio of all streams waits to be recognised")
        self._waits(size)
        self._inbox.append((self._clock(), item))
        self._arrived.set()
        return True

    async def _hear(self) -> None:
        draining = False
        while not (draining and self._at_rest):
            arrived, item, frames = await self._next()
            if item == "finalize":
                await self._finalize()
            elif item == "commit":
                await self._commit(arrived)
            elif item == "clear":
                await self._clear(arrived)
            elif item == "drain":
                draining = True
            elif item == "end":
                await self._take(await self._decoder.flush(), arrived)
                break
            elif isinstance(item, bytes):
                await self._take(await self._decoder.feed(item), arrived)
                self.processed_frames += frames
                self._say_progress()
            elif isinstance(item, tuple):
                options, decoder = item
                await self._replace_decoder(decoder, arrived)
                await self._change(options)
            else:
                await self._replace_decoder(item, arrived)
            if self._refused is not None:
                break
        await self._finalize()
        if self.options.turns and self._utterance > self._turn_utterance:
            self._end_turn("turn")
        await self._finals.put(None)

    async def _replace_decoder(self, decoder: StreamDecoder, arrived: float) -> None:
        await self._take(await self._decoder.flush(), arrived)
        await self._decoder.close()
        self._decoder = decoder

    async def _change(self, options: SessionOptions) -> None:
        await self._finalize()
        before, self.options = self.options, options
        self._segmenter = self._new_segmenter()
        heard_by = (options.stream_model, options.transcribe.hotwords)
        if heard_by != (before.stream_model, before.transcribe.hotwords):
            stream, self._stream = self._stream, None
            if stream is not None:
                await stream.close()
            await self._open_stream()

    async def _commit(self, arrived: float) -> None:
        turn = self._turn
        await self._take(await self._decoder.flush(), arrived)
        await self._finalize()
        if self._turn == turn:
            self._end_turn("turn")

    async def _clear(self, arrived: float) -> None:
        await self._take(await self._decoder.flush(), arrived)
        if self._segmenter.finish(len(self._buffer)):
            if self._stream is not None:
                await self._stream.finish()
            await self._stop_rerecognition()
            self._partial_text, self._agreement = "", Agreement()
        self._end_turn("cleared")
        self._forget()

    def _end_turn(self, kind: Literal["turn", "cleared"], end: int | None = None) -> None:
        end = len(self._buffer) if end is None else end
        self._say(kind, self._turn_begin, end, turn=self._turn, utterance=self._utterance)
        self._turn, self._turn_begin, self._turn_utterance = self._turn + 1, end, self._utterance

    @property
    def _at_rest(self) -> bool:
        """Whether nothing would be lost or cut if the stream ended here."""
        silent = self._segmenter.begin is None or self.options.cut_in_pauses
        return silent and not self._inbox

    async def _next(self) -> tuple[float, _Item, int]:
        """What the client sent next; audio that waits comes in one piece, up to a block.

        Also when it came, and how many frames of the client it is.
        """
        while not self._inbox:
            self._arrived.clear()
            await self._arrived.wait()
        arrived, item = self._inbox.popleft()
        self._waits(-_size(item))
        if not isinstance(item, bytes):
            return arrived, item, 0
        pieces, size = [item], len(item)
        while self._inbox and size < _BLOCK_BYTES:
            following = self._inbox[0][1]
            if not isinstance(following, bytes):
                break
            arrived = self._inbox.popleft()[0]
            pieces.append(following)
            self._waits(-_size(following))
            size += len(following)
        return arrived, b"".join(pieces), len(pieces)

    def _say_progress(self) -> None:
        every_s = self.options.progress_s
        if every_s is not None and self.received_s - self._told_s >= every_s:
            self._told_s = self.received_s
            self._say("progress", len(self._buffer), len(self._buffer))

    def _waits(self, size: int) -> None:
        self._pending_bytes += size
        self._limits.pending.used += size
        if size < 0:
            self._limits.pending.freed.set()

    async def _take(self, samples: Samples, arrived: float) -> None:
        room = round(self._limits.max_stream_s * SAMPLE_RATE) - len(self._buffer)
        if len(samples) > room:
            longest = self._limits.max_stream_s
            self._refused = StreamTooLong(f"a stream has at most {longest:g} seconds")
            samples = samples[:room]
        block = round(BLOCK_S * SAMPLE_RATE)
        for first in range(0, len(samples), block):
            piece = samples[first : first + block]
            self._buffer.append(piece)
            self._arrivals.append((len(self._buffer), arrived))
            probabilities = await self._vad.feed(piece)
            for mark in self._segmenter.feed(probabilities.tolist()):
                await self._follow(mark)
            await self._hear_utterance()
            too_long = len(self._buffer) - self._turn_begin >= MAX_TURN_S * SAMPLE_RATE
            if too_long and self.options.turns == "pause" and self._segmenter.begin is not None:
                await self._finalize()
            self._forget()

    async def _finalize(self) -> None:
        for mark in self._segmenter.finish(len(self._buffer)):
            await self._follow(mark)
        self._forget()

    def _forget(self) -> None:
        """Drop what no utterance can reach any more."""
        self._buffer.drop(self._segmenter.keep_from)
        while self._arrivals and self._arrivals[0][0] <= self._segmenter.keep_from:
            self._arrivals.popleft()

    async def _follow(self, mark: SpeechStart | Utterance | SpeechEnd) -> None:
        match mark:
            case SpeechStart(at, begin):
                self._fed = begin
                if self.options.turns == "pause" and self._utterance == self._turn_utterance:
                    self._turn_begin = begin
                self._say_speech("speech_start", begin, at)
            case SpeechEnd(at, end):
                self._say_speech("speech_end", at, end)
            case Utterance():
                await self._end_utterance(mark)
                if self.options.turns == "pause" and not mark.cut:
                    self._end_turn("turn", mark.end)

    def _say_speech(self, kind: Kind, start: int, end: int) -> None:
        if self.options.turns != "commit":
            self._say(kind, start, end, utterance=self._utterance, turn=self._turn)

    async def _hear_utterance(self) -> None:
        """Partials of the utterance that is going on."""
        begin = self._segmenter.begin
        if begin is None or self.options.cut_in_pauses:
            return
        if self._stream is not None:
            until = len(self._buffer)
            if until == self._fed:
                return
            words = await self._stream.feed(self._buffer.cut(self._fed, until))
            self._fed = until
            if self.options.turns:
                # The last word may still grow.
                words, _ = self._agreement.update(words[:-1])
            if self.options.partials:
                self.say_partial(self._utterance, begin, until, words)
        elif self.options.partials:
            if self._rerecognition is None:
                self._rerecognition = _Rerecognition(self, self._utterance, begin, self._agreement)
            self._rerecognition.heard(len(self._buffer))

    async def _end_utterance(self, mark: Utterance) -> None:
        number, self._utterance = self._utterance, self._utterance + 1
        self._partial_text = ""
        agreement = self._agreement
        cut_s = (mark.end - mark.begin) / SAMPLE_RATE
        self._agreement = agreement.behind(cut_s) if mark.cut else Agreement()
        heard: tuple[Word, ...] | None = None
        if self._stream is not None and not self.options.cut_in_pauses:
            # To where the end was known, so that the size of frames changes no word.
            if self._fed < mark.detected_at:
                await self._stream.feed(self._buffer.cut(self._fed, mark.detected_at))
            words = await self._stream.finish(mark.trailing_silence / SAMPLE_RATE)
            self._fed = mark.end
            if self.options.streaming:
                heard = _before(agreement.final(words), mark, agreement)
        await self._stop_rerecognition()
        samples = self._buffer.cut(mark.begin, mark.end)
        arrived, turn, options = self._arrival(mark.end), self._turn, self.options

        async def finish() -> None:
            try:
                await self._final(number, turn, mark, samples, heard, agreement, arrived, options)
            except SpeechError as error:
                if not options.turns:
                    raise
                log.warning("live session %s: utterance lost: %s", self.id, error)
                self._say(
                    "failed",
                    mark.begin,
                    mark.end,
                    arrived,
                    utterance=number,
                    turn=turn,
                    text=error.message,
                    code=error.code,
                )

        await self._finals.put(finish)

    async def _stop_rerecognition(self) -> None:
        if self._rerecognition is not None:
            await self._rerecognition.stop()
            self._rerecognition = None

    async def _finish_utterances(self) -> None:
        while (job := await self._finals.get()) is not None:
            await job()

    async def _final(
        self,
        number: int,
        turn: int,
        mark: Utterance,
        samples: Samples,
        heard: tuple[Word, ...] | None,
        agreement: Agreement,
        arrived: float,
        options: SessionOptions,
    ) -> None:
        words = heard
        if words is None:
            words = await self.recognise(samples, options) if mark.spoken else ()
            if agreement.committed:
                words = _before(agreement.final(words), mark, agreement)
        emotion, speaker = await self._colour(samples, options) if words else (None, None)
        self._say(
            "final",
            mark.begin,
            mark.end,
            arrived,
            utterance=number,
            turn=turn,
            text=_text(words),
            words=self._placed(words, mark.begin),
            emotion=emotion,
            speaker=speaker,
            voice=self._speakers.voice(speaker) if speaker else b"",
        )

    async def recognise(self, samples: Samples, asked: SessionOptions) -> tuple[Word, ...]:
        """Words of an utterance by the model of the finals, times in seconds of the utterance."""
        audio = DecodedAudio(Audio(samples), len(samples) / SAMPLE_RATE)
        # Finals are made of words, also for who does not want to be told their times.
        options = replace(asked.transcribe, model=asked.model, word_timestamps=True)
        recognition = await self._ports.transcriber.transcribe(audio, options, None)
        return tuple(word for segment in recognition.segments for word in segment.words)

    async def _colour(
        self, samples: Samples, asked: SessionOptions
    ) -> tuple[Scores | None, str | None]:
        """How the utterance sounded, and who spoke."""
        emotion: Scores | None = None
        speaker: str | None = None
        if asked.emotion_model is not None and self._ports.emotions is not None:
            seconds = len(samples) / SAMPLE_RATE
            audio = DecodedAudio(Audio(samples), seconds)
            (emotion,) = await self._ports.emotions.classify(
                audio, [Span(0.0, seconds)], EmotionOptions(asked.emotion_model, "sentence")
            )
        if asked.speakers and self._ports.embedder is not None:
            speaker = self._speakers.label(
                await self._ports.embedder.embed(samples), len(samples) / SAMPLE_RATE
            )
        return emotion, speaker

    def say_partial(self, utterance: int, begin: int, end: int, words: tuple[Word, ...]) -> None:
        """A partial of an utterance, if it still goes on and says something new."""
        text = _text(words)
        if utterance != self._utterance or text == self._partial_text:
            return
        self._partial_text = text
        placed = self._placed(words, begin)
        about = {"utterance": utterance, "turn": self._turn}
        self._say("partial", begin, end, **about, text=text, words=placed)

    def part(self, begin: int, end: int) -> Samples:
        """Samples of the stream that are still held."""
        return self._buffer.cut(begin, end)

    def _placed(self, words: tuple[Word, ...], begin: int) -> tuple[Word, ...]:
        at = self._offset_s + begin / SAMPLE_RATE
        return tuple(word.shifted(at) for word in words)

    def _say(
        self, kind: Kind, start: int, end: int, arrived: float | None = None, **more: Any
    ) -> None:
        if arrived is None:
            arrived = self._arrival(end)
        event = Event(
            kind,
            self._log.number(),
            self._offset_s + start / SAMPLE_RATE,
            self._offset_s + end / SAMPLE_RATE,
            lag_s=max(0.0, self._clock() - arrived),
            **more,
        )
        self._log.add(event)
        if kind == "final":
            self._ports.observe_lag(event.lag_s)

    def _arrival(self, position: int) -> float:
        """When the sample before ``position`` was received."""
        found = self._clock()
        for until, arrived in reversed(self._arrivals):
            if until < position:
                break
            found = arrived
        return found


class _Rerecognition:
    """Partials of one utterance by recognising it again as it grows, one pass at a time."""

    def __init__(
        self, session: LiveSession, utterance: int, begin: int, agreement: Agreement
    ) -> None:
        self._session = session
        self._utterance = utterance
        self._begin = begin
        self._agreement = agreement
        self._next_s = next_pass_s(0.0)
        self._pass: asyncio.Task[None] | None = None

    def heard(self, until: int) -> None:
        """Start another pass if the utterance has grown enough and none is running."""
        seconds = (until - self._begin) / SAMPLE_RATE
        if seconds < self._next_s or (self._pass is not None and not self._pass.done()):
            return
        self._next_s = next_pass_s(seconds)
        samples = self._session.part(self._begin, until)
        self._pass = asyncio.create_task(self._recognise(samples, until))

    async def _recognise(self, samples: Samples, until: int) -> None:
        options = self._session.options
        try:
            words = await self._session.recognise(samples, options)
        except SpeechError as error:
            # The final will say it if it stays so.
            log.warning("live session %s: no partial: %s", self._session.id, error)
            return
        committed, tentative = self._agreement.update(words)
        words = committed if options.turns else (*committed, *tentative)
        self._session.say_partial(self._utterance, self._begin, until, words)

    async def stop(self) -> None:
        """Give up a pass that is running."""
        if self._pass is not None:
            await _cancelled(self._pass)


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it is gone."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _before(words: tuple[Word, ...], mark: Utterance, agreement: Agreement) -> tuple[Word, ...]:
    """The words that begin inside the utterance, which may end before what was heard last.

    What is committed stays, unless a cut leaves it to the next utterance.
    """
    seconds = (mark.end - mark.begin) / SAMPLE_RATE
    kept = 0 if mark.cut else len(agreement.committed)
    return tuple(
        replace(w, start=min(w.start, seconds), end=min(w.end, seconds))
        for index, w in enumerate(words)
        if index < kept or w.start < seconds
    )


def _size(item: _Item) -> int:
    """What an item of the inbox counts for; "drain" and "end" come once and are always taken."""
    if item in ("drain", "end"):
        return 0
    if isinstance(item, tuple):
        return _CHANGE_BYTES
    return _FRAME_BYTES + (len(item) if isinstance(item, bytes) else 0)


def _text(words: tuple[Word, ...]) -> str:
    return "".join(word.text for word in words).strip()
