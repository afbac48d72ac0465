"""The live session: what becomes of audio and commands, as its events report it."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from speech.audio import SAMPLE_RATE
from speech.errors import EngineFailed, Overloaded, TooFarAhead
from speech.live.endpointing import EndpointOptions
from speech.live.events import RETAINED_EVENTS
from speech.live.finals import WAITING_FINALS
from speech.live.pcm import PcmFormat
from speech.live.pending_total import PendingTotal
from speech.live.session import LiveSession
from speech.live.session_options import (
    FrameSynchronous,
    Pieces,
    ResumeState,
    SessionLimits,
    SessionOptions,
    TwoPass,
    WholeUtterances,
)
from speech.live.stream_decoder import stream_decoder
from speech.log_context import session_id
from speech.ports import TranscribeOptions
from speech.transcript import Recognition
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, silence, speak

WORD_S, GAP_S = 0.5, 0.1


def phrase(*numbers, gap_s=GAP_S):
    return speak(*numbers, word_s=WORD_S, gap_s=gap_s)


STREAMING = SessionOptions(FrameSynchronous("fast"))
UTTERANCES = SessionOptions(WholeUtterances("full", partials=False))
PIECES = SessionOptions(Pieces("full"))


@pytest.fixture
def models():
    return FakeModels()


def session_of(models, options=STREAMING, limits=None, **more):
    return LiveSession("one", options, models.ports(), stream_decoder("pcm_s16le"), limits, **more)


async def events_of(session, audio, *, frame=None, end=True):
    """Every event of a session about some audio, sent at once or in frames of bytes."""
    running = asyncio.create_task(session.run())
    follower = asyncio.create_task(_collect(session))
    for first in range(0, len(audio), frame or len(audio)):
        session.offer(audio[first : first + frame] if frame else audio)
        await turns(30)
    if end:
        session.end()
    events = await follower
    await running
    return events


async def turns(count):
    """Let the tasks of the session run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    """Let the tasks of the session run until something has happened."""
    while not condition():  # noqa: ASYNC110  # the condition is a fake's, it has no event
        await asyncio.sleep(0)


def finals(events):
    return [event for event in events if event.kind == "final"]


def texts(events):
    return [event.text for event in finals(events)]


TWO = exact(silence(1), phrase(1, 2, 3), silence(1.5), phrase(4, 5), silence(1.5))


async def test_the_recogniser_gets_the_length_of_the_silence_at_the_end(models):
    await events_of(session_of(models), exact(silence(1), phrase(1, 2), silence(1.5), phrase(3)))
    paused, at_the_end = models.trailing_silence_s
    assert paused == pytest.approx(STREAMING.endpointing.silence_s, abs=0.05)
    assert at_the_end == pytest.approx(GAP_S, abs=0.05)


async def test_the_log_records_of_a_session_have_its_id(models, monkeypatch):
    seen = []

    async def transcribe(audio, options, channel):
        seen.append(session_id.get())
        return Recognition(())

    monkeypatch.setattr(models, "transcribe", transcribe)
    await events_of(session_of(models, UTTERANCES), TWO)
    assert seen == ["one", "one"]


@pytest.mark.parametrize("options", [STREAMING, UTTERANCES], ids=["streaming", "utterances"])
async def test_each_utterance_begins_ends_and_is_final_once(models, options):
    events = await events_of(session_of(models, options), TWO)
    assert texts(events) == ["1 2 3", "4 5"]
    for number, event in enumerate(finals(events)):
        order = [
            e.kind for e in events if e.utterance == number and e.kind not in ("partial", "done")
        ]
        assert order == [
            "speech_start",
            "speech_end",
            "final",
        ]
        assert event.start <= event.words[0].start
        assert event.words[-1].end <= event.end
    assert events[-1].kind == "done"
    assert [e.seq for e in events] == sorted({e.seq for e in events})


async def test_words_lie_where_they_were_spoken(models):
    events = await events_of(session_of(models), TWO)
    starts = [w.start for event in finals(events) for w in event.words]
    assert starts == pytest.approx([1.0, 1.6, 2.2, 4.3, 4.9], abs=0.01)


@pytest.mark.parametrize("frame", [641, 3200, 16_000, 256_000])
@pytest.mark.parametrize(
    "options", [STREAMING, UTTERANCES, PIECES], ids=["streaming", "utterances", "pieces"]
)
async def test_the_size_of_frames_changes_no_final(models, options, frame):
    def essence(events):
        return [(e.text, round(e.start, 3), round(e.end, 3)) for e in finals(events)]

    at_once = await events_of(session_of(models, options), TWO)
    framed = await events_of(session_of(models, options), TWO, frame=frame)
    assert essence(at_once) == essence(framed)


async def test_partials_grow_and_stop_with_the_final(models):
    events = await events_of(
        session_of(models), exact(phrase(*range(1, 7)), silence(1)), frame=6400
    )
    partials = [e for e in events if e.kind == "partial"]
    assert partials[-1].text == "1 2 3 4 5 6"
    assert all(b.text.startswith(a.text) for a, b in itertools.pairwise(partials))
    assert max(e.seq for e in partials) < finals(events)[0].seq


async def test_two_passes_take_partials_from_one_model_and_finals_from_another(models):
    options = SessionOptions(TwoPass("full", "fast"))
    events = await events_of(session_of(models, options), TWO, frame=3200)
    assert texts(events) == ["1 2 3", "4 5"]
    assert any(e.kind == "partial" for e in events)
    assert [options.model for options in models.asked] == ["full", "full"]


async def test_an_utterance_model_gives_partials_by_recognising_again_at_bounded_cost(models):
    options = SessionOptions(WholeUtterances("full"))
    audio = exact(phrase(*range(1, 21)), silence(1))
    events = await events_of(session_of(models, options), audio, frame=3200)
    assert texts(events) == [" ".join(str(n) for n in range(1, 21))]
    assert [e for e in events if e.kind == "partial"]
    spoken_s = 20 * (WORD_S + GAP_S)
    assert sum(map(len, models.recognised)) / SAMPLE_RATE <= 5 * spoken_s + spoken_s


async def _collect(session):
    return [event async for event in session.events()]


@pytest.mark.parametrize(
    "options", [STREAMING, UTTERANCES, PIECES], ids=["streaming", "utterances", "pieces"]
)
async def test_speech_without_end_is_cut_and_no_word_is_lost_or_doubled(models, options):
    numbers = list(range(1, 101))
    events = await events_of(session_of(models, options), exact(phrase(*numbers), silence(1)))
    assert " ".join(texts(events)).split() == [str(n) for n in numbers]
    assert len(finals(events)) > 3
    assert all(e.end - e.start <= 15 for e in finals(events))
    assert all(len(samples) <= 15 * SAMPLE_RATE for samples in models.recognised)


async def test_finals_have_their_text_though_no_times_of_words_are_asked_for(models):
    options = replace(UTTERANCES, transcribe=TranscribeOptions(word_timestamps=False))
    assert texts(await events_of(session_of(models, options), TWO)) == ["1 2 3", "4 5"]


async def test_pieces_of_silence_are_final_without_a_call_of_the_model(models):
    events = await events_of(session_of(models, PIECES), exact(silence(40)))
    assert texts(events) == ["", "", ""]
    assert models.asked == []


async def test_an_hour_does_not_drift(models):
    session = session_of(models, SessionOptions(FrameSynchronous("fast", partials=False)))
    minute = exact(phrase(1, 2), silence(58.8))
    running = asyncio.create_task(session.run())
    events = asyncio.create_task(_collect(session))
    for _ in range(60):
        session.offer(minute)
    session.end()
    starts = [e.words[0].start for e in finals(await events)]
    await running
    assert starts == pytest.approx([60 * n for n in range(60)], abs=0.01)


async def test_finalize_closes_the_utterance_and_the_stream_continues(models):
    session = session_of(models)
    running = asyncio.create_task(session.run())
    session.offer(exact(phrase(1, 2)))
    session.finalize()
    first = [e async for e in _until(session, "final")][-1]
    assert first.text == "1 2"
    session.offer(exact(phrase(3), silence(1)))
    session.end()
    assert texts([e async for e in session.events(first.seq)]) == ["3"]
    await running


async def _until(session, kind):
    async for event in session.events():
        yield event
        if event.kind == kind:
            return


@pytest.mark.parametrize(
    "options", [STREAMING, UTTERANCES, PIECES], ids=["streaming", "utterances", "pieces"]
)
async def test_a_checkpoint_is_reported_when_all_before_it_is_final(models, options):
    session = session_of(models, options)
    session.checkpoint()
    session.offer(exact(phrase(1, 2)))
    session.checkpoint()
    session.offer(exact(phrase(3)))
    session.end()
    await session.run()
    seen = [event async for event in session.events() if event.kind in ("final", "finalized")]
    assert [event.text or event.kind for event in seen] == ["finalized", "1 2", "finalized", "3"]
    assert [event.end for event in seen[::2]] == [0.0, pytest.approx(2 * (WORD_S + GAP_S))]


async def test_the_end_may_come_twice_and_audio_after_it_is_ignored(models):
    session = session_of(models)
    session.offer(exact(phrase(1)))
    session.end()
    session.end()
    running = asyncio.create_task(session.run())
    assert texts([e async for e in session.events()]) == ["1"]
    await running
    session.offer(b"\0" * 100)
    assert session.finished


async def test_a_session_continues_where_another_ended(models):
    events = await events_of(session_of(models, resume_from=ResumeState(100.0, 41, 7)), TWO)
    assert min(e.seq for e in events) == 42
    assert [e.utterance for e in finals(events)] == [7, 8]
    assert finals(events)[0].words[0].start == pytest.approx(101, abs=0.01)


async def test_a_late_follower_gets_every_event_but_overtaken_partials(models):
    session = session_of(models)
    live = await events_of(session, TWO, frame=3200)
    late = await _collect(session)
    assert [e for e in late if e.kind != "partial"] == [e for e in live if e.kind != "partial"]
    assert not [e for e in late if e.kind == "partial"]
    seq = finals(live)[0].seq
    assert [e.seq for e in await _after(session, seq)] == [e.seq for e in late if e.seq > seq]


async def _after(session, seq):
    return [event async for event in session.events(seq)]


async def test_events_that_were_dropped_are_an_error_to_who_reads_late(models):
    session = session_of(models, replace(STREAMING, endpointing=EndpointOptions(silence_s=0.2)))
    count = RETAINED_EVENTS // 3 + 1
    await events_of(session, exact(phrase(*range(1, count + 1), gap_s=0.4)))
    with pytest.raises(Overloaded):
        await _after(session, 1)


@pytest.mark.parametrize("options", [STREAMING, UTTERANCES], ids=["streaming", "utterances"])
async def test_a_failure_is_an_event_and_frees_everything(models, options):
    models.failure = EngineFailed("broken")
    if options is STREAMING:
        options = SessionOptions(TwoPass("full", "fast"))
    limits = SessionLimits(pending=PendingTotal(10**8, max_streams=10**6))
    events = await events_of(session_of(models, options, limits), TWO, end=False)
    assert [(e.code, e.text) for e in events if e.kind == "error"] == [("engine_failed", "broken")]
    assert events[-1].kind == "done"
    assert models.streams == 0
    assert limits.pending.lent == 0


async def test_an_unknown_failure_does_not_leak_its_text(models):
    models.failure = ValueError("secret")
    events = await events_of(session_of(models, UTTERANCES), TWO)
    (error,) = [e for e in events if e.kind == "error"]
    assert (error.code, error.text) == ("internal_error", "internal error")


async def test_cancelling_a_session_frees_everything(models):
    before = asyncio.all_tasks()
    models.feeding.shut()
    limits = SessionLimits(pending=PendingTotal(10**8, max_streams=10**6))
    session = session_of(models, limits=limits)
    running = asyncio.create_task(session.run())
    session.offer(TWO)
    session.offer(TWO)
    await until(lambda: models.streams)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert models.streams == 0
    assert limits.pending.lent == 0
    assert asyncio.all_tasks() == before


async def test_what_waits_to_be_processed_is_bounded(models):
    models.feeding.shut()
    limits = SessionLimits(max_pending_bytes=len(TWO) + 1000)
    session = session_of(models, limits=limits)
    session.offer(TWO)
    with pytest.raises(TooFarAhead):
        session.offer(b"\0" * 1001)
    session.offer(b"\0" * 100)
    session.end()


def repeat(action, count):
    for _ in range(count):
        action()


async def test_frames_without_audio_and_commands_count_too(models):
    session = session_of(models, limits=SessionLimits(max_pending_bytes=1000))
    for again in (lambda: session.offer(b""), session.finalize):
        with pytest.raises(TooFarAhead):
            repeat(again, 1000)
    session.end()


async def test_what_waits_in_all_streams_together_is_bounded(models):
    limits = SessionLimits(pending=PendingTotal(max_bytes=1000, max_streams=2))
    one, other = session_of(models, limits=limits), session_of(models, limits=limits)
    one.offer(b"\0" * 600)
    with pytest.raises(TooFarAhead):
        other.offer(b"\0" * 600)


async def test_utterances_that_wait_for_a_slow_model_are_bounded(models):
    models.transcribing.shut()
    session = session_of(models, UTTERANCES)
    running = asyncio.create_task(session.run())
    for n in range(1, 21):
        session.offer(exact(phrase(n), silence(1)))
    await turns(2000)
    assert session.processed_frames <= WAITING_FINALS + 5
    models.transcribing.open()
    session.end()
    assert texts(await _collect(session)) == [str(n) for n in range(1, 21)]
    await running


async def test_the_longest_stream_is_finished_then_refused(models):
    limits = SessionLimits(max_stream_s=3 * (WORD_S + GAP_S))
    events = await events_of(
        session_of(models, limits=limits), exact(phrase(1, 2, 3, 4, 5)), end=False
    )
    assert texts(events) == ["1 2 3"]
    assert [e.code for e in events if e.kind == "error"] == ["stream_too_long"]


@pytest.mark.parametrize("options", [STREAMING, PIECES], ids=["streaming", "pieces"])
async def test_a_drained_stream_ends_when_nobody_speaks(models, options):
    session = session_of(models, options)
    running = asyncio.create_task(session.run())
    session.offer(exact(phrase(1, 2)))
    session.drain()
    if options is STREAMING:
        session.offer(exact(phrase(3), silence(1)))
    expected = ["1 2 3"] if options is STREAMING else ["1 2"]
    assert texts(await _collect(session)) == expected
    await running


async def test_lag_is_the_time_since_the_last_sample_of_an_event_came(models):
    now = [1000.0]
    models.transcribing.shut()
    session = session_of(models, UTTERANCES, clock=lambda: now[0])
    running = asyncio.create_task(session.run())
    session.offer(exact(phrase(1), silence(1)))
    await until(lambda: models.asked)
    now[0] += 7.0
    models.transcribing.open()
    session.end()
    (final,) = finals(await _collect(session))
    await running
    assert final.lag_s == pytest.approx(7.0)


async def test_all_times_of_events_are_whole_milliseconds(models):
    session = session_of(models, STREAMING, resume_from=ResumeState(10.0000001))
    running = asyncio.create_task(session.run())
    session.offer(exact(phrase(3), silence(1)))
    session.end()
    events = await _collect(session)
    await running
    words = [word for event in events for word in event.words]
    times = [time for item in (*events, *words) for time in (item.start, item.end)]
    times += [event.lag_s for event in events]
    assert words
    assert times == [round(time, 3) for time in times]


async def test_the_place_of_the_next_audio_counts_whole_samples(models):
    pcm_format = PcmFormat(16_000, 2)
    session = session_of(models, replace(STREAMING, pcm=pcm_format), resume_from=ResumeState(10.0))
    session.offer(b"\0" * 32_001)
    assert session.audio_from_s == 11.0
    session.replace_decoder(stream_decoder("pcm_s16le"))
    session.offer(b"\0" * 3200)
    assert session.audio_from_s == pytest.approx(11.1)


async def test_progress_is_reported_after_each_second_wherever_the_stream_is_resumed(models):
    options = replace(STREAMING, progress_s=1.0)
    # In binary floating point 1.001 - 0.001 is less than 1.
    session = session_of(models, options, resume_from=ResumeState(0.001))
    events = await events_of(session, exact(silence(3)), frame=32_000)
    progress = [event.end for event in events if event.kind == "progress"]
    assert progress == pytest.approx([1.001, 2.001, 3.001])
