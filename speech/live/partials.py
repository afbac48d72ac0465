"""Partials of the utterance under way, by a streaming model or by recognising it again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from speech.audio import SAMPLE_RATE, Samples
from speech.background import in_background
from speech.errors import SpeechError
from speech.live.agreement import Agreement, next_pass
from speech.live.audio_buffer import AudioBuffer
from speech.live.endpointing import Utterance
from speech.live.session_options import FrameSynchronous, Mode, TwoPass, WholeUtterances
from speech.ports import RecognizerStream
from speech.transcript import Word

log = logging.getLogger(f"speechgraph.{__name__}")

EmitPartial = Callable[[int, int, tuple[Word, ...]], None]
"""Takes the beginning and the end of what was recognised, and its words."""
Recognise = Callable[[Samples], Awaitable[tuple[Word, ...]]]
"""Words of an utterance, times in seconds of it. Raises SpeechError."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What the partials of an utterance leave to its final.

    ``words`` are those of the final where the model of the partials makes the finals too.
    """

    agreement: Agreement = field(default_factory=Agreement)
    words: tuple[Word, ...] | None = None


class Partials(Protocol):
    """Follows one utterance after the other; positions are those of the buffer."""

    async def grow(self, begin: int, end: int) -> None:
        """The utterance that began at ``begin`` reaches to ``end`` by now."""
        ...

    async def finish(self, utterance: Utterance) -> Draft:
        """The utterance is over; no partial of it is emitted any more."""
        ...

    async def discard(self) -> None:
        """The utterance under way will have no final."""
        ...

    async def stop(self) -> None:
        """Give up what runs in the background."""
        ...


class NoPartials:
    """Finals are made from the audio of each utterance alone."""

    async def grow(self, begin: int, end: int) -> None:
        """See :class:`Partials`."""

    async def finish(self, utterance: Utterance) -> Draft:
        """See :class:`Partials`."""
        return Draft()

    async def discard(self) -> None:
        """See :class:`Partials`."""

    async def stop(self) -> None:
        """See :class:`Partials`."""


class StreamedPartials:
    """The utterance is fed to a frame-synchronous stream, which the caller opens and closes.

    With ``makes_finals`` the words of the stream are those of the final. With ``committed_only``
    a partial holds only words that are never taken back. ``emit`` is None where no partials are
    wanted.
    """

    def __init__(
        self,
        stream: RecognizerStream,
        buffer: AudioBuffer,
        emit: EmitPartial | None,
        *,
        makes_finals: bool,
        committed_only: bool,
    ) -> None:
        self._stream = stream
        self._buffer = buffer
        self._emit = emit
        self._makes_finals = makes_finals
        self._committed_only = committed_only
        self._agreement = Agreement()
        self._fed = 0

    async def grow(self, begin: int, end: int) -> None:
        """See :class:`Partials`. Raises what the stream raises."""
        words = await self._feed(begin, end)
        if words is None:
            return
        if self._committed_only:
            # The last word may still grow.
            words, _ = self._agreement.update(words[:-1])
        if self._emit is not None:
            self._emit(begin, end, words)

    async def finish(self, utterance: Utterance) -> Draft:
        """See :class:`Partials`. Raises what the stream raises."""
        # Up to where the end was detected, so that the size of frames changes no word.
        await self._feed(utterance.begin, utterance.detected_at)
        words = await self._stream.finish(utterance.trailing_silence / SAMPLE_RATE)
        self._fed = utterance.end
        agreement, self._agreement = self._agreement, _following(self._agreement, utterance)
        if not self._makes_finals:
            return Draft(agreement)
        return Draft(agreement, final_words(agreement, words, utterance))

    async def discard(self) -> None:
        """See :class:`Partials`."""
        self._agreement = Agreement()
        await self._stream.finish()

    async def stop(self) -> None:
        """See :class:`Partials`; nothing runs between two calls."""

    async def _feed(self, begin: int, end: int) -> tuple[Word, ...] | None:
        """The words so far; None where nothing is new."""
        self._fed = max(self._fed, begin)
        if self._fed >= end:
            return None
        samples = self._buffer.cut(self._fed, end)
        self._fed = end
        return await self._stream.feed(samples)


class RerecognisedPartials:
    """The utterance is recognised again as it grows, in the background, one pass at a time.

    With ``committed_only`` a partial holds only words that are never taken back.
    """

    def __init__(
        self,
        recognise: Recognise,
        buffer: AudioBuffer,
        emit: EmitPartial,
        *,
        committed_only: bool,
    ) -> None:
        self._recognise = recognise
        self._buffer = buffer
        self._emit = emit
        self._committed_only = committed_only
        self._agreement = Agreement()
        self._next_pass = next_pass(0)
        self._pass: asyncio.Task[None] | None = None

    async def grow(self, begin: int, end: int) -> None:
        """See :class:`Partials`; starts another pass when the utterance has grown enough."""
        if end - begin < self._next_pass or (self._pass is not None and not self._pass.done()):
            return
        self._next_pass = next_pass(end - begin)
        self._pass = in_background(
            partial(self._run_pass, begin, end), "a pass for partials", restart=False
        )

    async def finish(self, utterance: Utterance) -> Draft:
        """See :class:`Partials`; a pass that is running is given up."""
        await self.stop()
        agreement, self._agreement = self._agreement, _following(self._agreement, utterance)
        self._next_pass = next_pass(0)
        return Draft(agreement)

    async def discard(self) -> None:
        """See :class:`Partials`."""
        await self.stop()
        self._agreement, self._next_pass = Agreement(), next_pass(0)

    async def stop(self) -> None:
        """See :class:`Partials`."""
        if self._pass is not None:
            self._pass.cancel()
            await asyncio.gather(self._pass, return_exceptions=True)
            self._pass = None

    async def _run_pass(self, begin: int, end: int) -> None:
        try:
            words = await self._recognise(self._buffer.cut(begin, end))
        except SpeechError as error:
            log.warning("no partial: %s", error)  # a lasting failure is that of the final too
            return
        committed, tentative = self._agreement.update(words)
        self._emit(begin, end, committed if self._committed_only else (*committed, *tentative))


def partials_for(
    mode: Mode,
    buffer: AudioBuffer,
    stream: RecognizerStream | None,
    recognise: Recognise,
    emit: EmitPartial,
) -> Partials:
    """The partials of a mode; ``stream`` is that of its streaming model, if it has one."""
    committed_only = mode.turns is not None
    match mode:
        case FrameSynchronous() | TwoPass():
            assert stream is not None, "a streaming model has a stream"
            finals = isinstance(mode, FrameSynchronous)
            wanted = emit if isinstance(mode, TwoPass) or mode.partials else None
            return StreamedPartials(
                stream, buffer, wanted, makes_finals=finals, committed_only=committed_only
            )
        case WholeUtterances(partials=True):
            return RerecognisedPartials(recognise, buffer, emit, committed_only=committed_only)
    return NoPartials()


def final_words(
    agreement: Agreement, words: tuple[Word, ...], utterance: Utterance
) -> tuple[Word, ...]:
    """The words that begin inside the utterance; the recogniser may have got audio behind its end.

    What is committed stays, unless a cut leaves it to the next utterance.
    """
    seconds = (utterance.end - utterance.begin) / SAMPLE_RATE
    kept = 0 if utterance.cut else len(agreement.committed)
    return tuple(
        replace(word, start=min(word.start, seconds), end=min(word.end, seconds))
        for index, word in enumerate(agreement.final(words))
        if index < kept or word.start < seconds
    )


def _following(agreement: Agreement, utterance: Utterance) -> Agreement:
    """The agreement with which the utterance behind this one begins."""
    if not utterance.cut:
        return Agreement()
    return agreement.behind((utterance.end - utterance.begin) / SAMPLE_RATE)
