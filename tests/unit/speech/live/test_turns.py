"""The turns of a live stream: their deltas while they last, and their transcripts."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, TooFarAhead
from speech.live import turn_tracker
from speech.live.endpointing import EndpointOptions
from speech.live.pcm import PcmDecoder
from speech.live.session import LiveSession
from speech.live.session_options import (
    FrameSynchronous,
    Pieces,
    SessionLimits,
    SessionOptions,
    TurnEnd,
    WholeUtterances,
)
from speech.live.turns import Delta, TurnAssembler, TurnTranscript
from speech.transcript import Word
from tests.unit.fake_models import FakeModels, FakeStream
from tests.unit.live_audio import WHISPERED, exact, frames, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, WAIT_S

FAST = SessionOptions(FrameSynchronous(STREAMING, turns="pause"))
FULL = SessionOptions(WholeUtterances(UTTERANCES, turns="pause"))
WITHOUT_PARTIALS = SessionOptions(WholeUtterances(UTTERANCES, partials=False, turns="pause"))
MODELS = pytest.mark.parametrize("options", [FAST, FULL], ids=["streaming", "utterances"])
FRAME = SAMPLE_RATE // 10 * 2

Act = bytes | Callable[[LiveSession], Any]
Assembled = list[Delta | TurnTranscript]


def by_client(options: SessionOptions) -> SessionOptions:
    return with_turns(options, "commit")


def with_turns(options: SessionOptions, turns: TurnEnd) -> SessionOptions:
    assert not isinstance(options.mode, Pieces)
    return replace(options, mode=replace(options.mode, turns=turns))


def commit(session: LiveSession) -> None:
    session.commit()


def clear(session: LiveSession) -> None:
    session.clear()


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


def session_of(models: FakeModels, options: SessionOptions, **limits: Any) -> LiveSession:
    return LiveSession(
        "one",
        options,
        models.ports(),
        PcmDecoder("pcm_s16le", SAMPLE_RATE),
        SessionLimits(**limits),
    )


async def events_of(session: LiveSession, *acts: Act) -> list[Any]:
    """All events about audio, in frames of 0.1 s, and what the client does between."""
    running = asyncio.create_task(session.run())
    collecting = asyncio.create_task(_collected(session))
    for act in acts:
        if isinstance(act, bytes):
            for frame in frames(act, FRAME):
                session.offer(frame)
                await asyncio.sleep(0)
        else:
            act(session)
    session.end()
    async with asyncio.timeout(WAIT_S):
        await running
        return await collecting


async def _collected(session: LiveSession) -> list[Any]:
    return [event async for event in session.events()]


def assembled(events: list[Any]) -> Assembled:
    turns = TurnAssembler()
    return [item for event in events for item in turns.process(event)]


async def assembled_of(session: LiveSession, *acts: Act) -> Assembled:
    """Deltas and transcripts of the turns; the deltas of each are its text."""
    result = assembled(await events_of(session, *acts))
    for transcript in transcripts(result):
        deltas = [t for t in result if isinstance(t, Delta) and t.turn == transcript.turn]
        assert "".join(delta.text for delta in deltas) == transcript.text
        if transcript.failure is None:
            assert "".join(word.text for word in transcript.words).strip() == transcript.text
    return result


def transcripts(result: Assembled) -> list[TurnTranscript]:
    return [t for t in result if isinstance(t, TurnTranscript)]


def texts(result: Assembled) -> list[str]:
    return [transcript.text for transcript in transcripts(result)]


def numbers(first: int, last: int) -> str:
    return " ".join(str(n) for n in range(first, last + 1))


TWO = exact(speak(1, 2, 3), silence(1), speak(4, 5), silence(1))


@MODELS
async def test_a_pause_ends_a_turn(models: FakeModels, options: SessionOptions) -> None:
    events = await events_of(session_of(models, options), TWO)
    assert texts(assembled(events)) == ["1 2 3", "4 5"]
    ends = [e for e in events if e.kind == "turn"]
    finals = [e for e in events if e.kind == "final"]
    assert [(e.turn, e.start, e.end) for e in ends] == [(e.turn, e.start, e.end) for e in finals]
    for turn in (0, 1):
        kinds = [e.kind for e in events if e.turn == turn and e.kind.startswith(("speech", "turn"))]
        assert kinds == ["speech_start", "speech_end", "turn"]


@MODELS
async def test_a_client_that_commits_has_one_turn_of_all_that_is_marked(
    models: FakeModels, options: SessionOptions
) -> None:
    events = await events_of(session_of(models, by_client(options)), TWO, commit, TWO, commit)
    assert texts(assembled(events)) == ["1 2 3 4 5"] * 2
    assert not [e for e in events if e.kind.startswith("speech")]
    assert [t.seconds for t in transcripts(assembled(events))] == pytest.approx([4.0, 4.0])


@MODELS
async def test_deltas_come_while_one_speaks(models: FakeModels, options: SessionOptions) -> None:
    events = await events_of(
        session_of(models, by_client(options)), exact(speak(*range(1, 31))), commit
    )
    turns, before = TurnAssembler(), ""
    for event in events:
        if event.kind == "turn":
            break
        before += "".join(item.text for item in turns.process(event))
    assert numbers(1, 30).startswith(before)
    assert len(before.split()) > 10


@pytest.mark.parametrize("turns", ["pause", "commit"])
@MODELS
async def test_deltas_stay_though_speech_is_cut_and_words_are_misrecognised(
    models: FakeModels, options: SessionOptions, turns: TurnEnd
) -> None:
    models.unstable = True
    session = session_of(models, with_turns(options, turns))
    result = await assembled_of(session, exact(speak(*range(100, 200)), silence(1)), commit)
    assert " ".join(texts(result)).split() == numbers(100, 199).split()


class Fickle(FakeModels):
    """Marks each word with the number of the utterance in which it was recognised."""

    def __init__(self) -> None:
        super().__init__()
        self.utterances = 0

    def _marked(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        return tuple(replace(w, text=f"{w.text}/{self.utterances}") for w in words)

    async def open(self, model: str, hotwords: str | None = None) -> FakeStream:
        stream = await super().open(model, hotwords)
        feed, finish = stream.feed, stream.finish

        async def fed(samples: Samples) -> tuple[Word, ...]:
            return self._marked(await feed(samples))

        async def finished(trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
            words = self._marked(await finish(trailing_silence_s))
            self.utterances += 1
            return words

        stream.feed, stream.finish = fed, finished  # type: ignore[method-assign]
        return stream


async def test_deltas_stay_though_their_audio_is_recognised_again_after_a_cut() -> None:
    before, after = speak(*range(1, 11), gap_s=0), speak(*range(11, 51), gap_s=0)
    # The only pause is early: most of what was sent is behind the cut.
    result = await assembled_of(
        session_of(Fickle(), FAST), exact(before, silence(0.2), after, silence(1))
    )
    (transcript,) = transcripts(result)
    texts_so_far = [word.split("/") for word in transcript.text.split()]
    assert [word for word, _ in texts_so_far] == numbers(1, 50).split()
    assert [utterance for _, utterance in texts_so_far[:40]] == ["0"] * 40
    assert texts_so_far[-1][1] == "1"


async def test_deltas_stay_though_they_lie_behind_the_end_of_speech(models: FakeModels) -> None:
    whispers = speak(WHISPERED, WHISPERED + 1, word_s=0.1, gap_s=0)
    events = await events_of(
        session_of(models, FAST), exact(speak(1), silence(0.2), whispers, silence(1))
    )
    texts_so_far = [e.text for e in events if e.kind in ("partial", "final")]
    assert texts_so_far[-2] == f"1 {WHISPERED}"
    assert texts_so_far[-1].startswith(texts_so_far[-2])


async def test_the_last_word_waits_as_it_may_grow(models: FakeModels) -> None:
    running = exact(speak(1, gap_s=0), speak(2, word_s=1.0, gap_s=0))
    events = await events_of(session_of(models, FAST), running, exact(silence(1)))
    partials = [e.text for e in events if e.kind == "partial"]
    assert partials == ["1"]


async def test_a_commit_of_silence_is_a_turn_without_words(models: FakeModels) -> None:
    session = session_of(models, by_client(FAST))
    result = await assembled_of(session, exact(silence(1)), commit, exact(speak(1)), commit)
    assert [(t.turn, t.text) for t in transcripts(result)] == [(0, ""), (1, "1")]


@pytest.mark.parametrize("rate", [8000, 24_000, 48_000])
async def test_a_commit_has_all_the_audio_before_it_at_any_rate(
    models: FakeModels, rate: int
) -> None:
    session = session_of(models, by_client(FAST))
    audio = exact(np.full(rate, 0.15))
    session.change(session.options, PcmDecoder("pcm_s16le", rate))
    result = await assembled_of(session, audio, commit, audio, commit)
    assert [t.seconds for t in transcripts(result)] == pytest.approx([1.0, 1.0], abs=0.001)


@MODELS
async def test_what_is_cleared_has_no_transcript(
    models: FakeModels, options: SessionOptions
) -> None:
    session = session_of(models, by_client(options))
    one = exact(speak(*range(10)), silence(2), speak(*range(10, 20)))
    events = await events_of(session, one, clear, exact(speak(77, 78)), commit)
    result = assembled(events)
    assert [(t.turn, t.text) for t in transcripts(result)] == [(1, "77 78")]
    cleared = [e.kind for e in events].index("cleared")
    assert all(t.turn == 1 for t in assembled(events[cleared:]))


async def test_finals_that_come_after_a_clear_are_left_out(models: FakeModels) -> None:
    models.transcribing.shut()
    session = session_of(models, by_client(FULL))

    def open_gate(session: LiveSession) -> None:
        models.transcribing.open()

    late = (exact(speak(1), silence(2), speak(2)), clear, open_gate, exact(speak(3)), commit)
    assert texts(await assembled_of(session, *late)) == ["3"]


async def test_words_wait_until_all_before_them_are_final(models: FakeModels) -> None:
    session = session_of(models, by_client(FULL))
    running = asyncio.create_task(session.run())
    turns, result = TurnAssembler(), []
    session.offer(exact(speak(1, 2), silence(1.5)))
    models.transcribing.shut()
    session.offer(exact(speak(*range(3, 20))))
    await asyncio.wait_for(models.transcribing.reached.wait(), WAIT_S)
    models.transcribing.open()
    session.commit()
    session.end()
    async for event in session.events():
        result += turns.process(event)
    await running
    assert "".join(t.text for t in result if isinstance(t, Delta)) == numbers(1, 19)


async def test_an_utterance_that_fails_is_reported_and_the_stream_continues(
    models: FakeModels,
) -> None:
    models.failure = EngineFailed("broken")
    session = session_of(models, WITHOUT_PARTIALS)

    running = asyncio.create_task(session.run())
    session.offer(exact(speak(1), silence(1)))
    turns, result = TurnAssembler(), []
    async for event in session.events():
        result += turns.process(event)
        if event.kind == "failed":
            models.failure = None
            session.offer(exact(speak(2), silence(1)))
            session.end()
    await running
    one, other = transcripts(result)
    assert one.failure is not None
    assert (one.failure.code, one.failure.text, one.text) == ("engine_failed", "broken", "")
    assert (other.failure, other.text) == (None, "2")


async def test_other_options_are_for_what_follows(models: FakeModels) -> None:
    other = replace(by_client(FULL), transcribe=replace(FULL.transcribe, language="ru"))

    def change(session: LiveSession) -> None:
        session.change(other, PcmDecoder("pcm_s16le", SAMPLE_RATE))

    session = session_of(models, FAST)
    result = await assembled_of(
        session, exact(speak(1, 2)), change, exact(speak(3), silence(2), speak(4)), commit
    )
    assert texts(result) == ["1 2", "3 4"]
    assert {(asked.model, asked.language) for asked in models.asked} == {(UTTERANCES, "ru")}
    assert models.streams == 0


async def test_what_waits_is_recognised_with_the_options_it_was_sent_for(
    models: FakeModels,
) -> None:
    models.transcribing.shut()
    session = session_of(models, WITHOUT_PARTIALS)
    session.offer(exact(speak(1), silence(1)))
    other = replace(FULL, mode=replace(WITHOUT_PARTIALS.mode, model="other"))
    session.change(other, PcmDecoder("pcm_s16le", SAMPLE_RATE))
    session.offer(exact(speak(2), silence(1)))
    session.end()
    running = asyncio.create_task(session.run())
    await asyncio.wait_for(models.transcribing.reached.wait(), WAIT_S)
    models.transcribing.open()
    await running
    assert [asked.model for asked in models.asked] == [UTTERANCES, "other"]


async def test_a_stream_is_reopened_only_for_another_model_or_hotwords(models: FakeModels) -> None:
    def change(**fields: Any) -> Callable[[LiveSession], Any]:
        decoder = PcmDecoder("pcm_s16le", SAMPLE_RATE)
        return lambda s: s.change(replace(s.options, **fields), decoder)

    hotwords = replace(FAST.transcribe, hotwords="seven")
    endpointing = EndpointOptions(silence_s=2.0)
    acts = (change(endpointing=endpointing), change(transcribe=hotwords), exact(speak(1)))
    await assembled_of(session_of(models, FAST), exact(speak(5)), *acts)
    assert models.opened == [(STREAMING, None), (STREAMING, "seven")]
    assert models.streams == 0


async def test_speech_without_a_pause_ends_its_turn_in_time(
    models: FakeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_tracker, "MAX_TURN_S", 20.0)
    result = await assembled_of(
        session_of(models, FAST), exact(speak(*range(100, 200), gap_s=0), silence(1))
    )
    lengths = [t.seconds for t in transcripts(result)]
    assert len(lengths) == 2
    assert lengths[0] == pytest.approx(20.0, abs=0.2)


@pytest.mark.parametrize("last", [LiveSession.end, LiveSession.drain])
async def test_speech_before_the_end_of_the_stream_is_a_turn(models: FakeModels, last: Act) -> None:
    result = await assembled_of(session_of(models, by_client(FAST)), TWO, last)
    assert texts(result) == ["1 2 3 4 5"]
    result = await assembled_of(session_of(models, by_client(FAST)), exact(silence(2)), last)
    assert result == []


async def test_commands_and_options_that_wait_are_bounded(models: FakeModels) -> None:
    for act in (commit, clear, lambda s: s.change(s.options, PcmDecoder("pcm_s16le", 24_000))):
        session = session_of(models, FAST, max_pending_bytes=10**5)
        with pytest.raises(TooFarAhead):
            _repeat(act, session)


def _repeat(act: Callable[[LiveSession], Any], session: LiveSession) -> None:
    for _ in range(1000):
        act(session)
