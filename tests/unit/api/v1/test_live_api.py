"""``WS /v1/ws`` in both forms: section D of the protocols, and the native stream."""

import asyncio
import contextlib
import itertools
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
import soxr
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.live import conversation as sockets
from api.live.websocket import FLOW_CONTROL
from speech.audio import SAMPLE_RATE
from speech.errors import EngineFailed
from speech.live import registry as sessions
from speech.live.endpointing import EndpointOptions
from tests.unit.heldout import clips, conversation, wer
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    WHISPER,
    WHISPERED,
    Ears,
    exact,
    frames,
    pcm,
    say,
    serving,
    silence,
)
from tests.unit.sound_files import encode

SECOND = 2 * SAMPLE_RATE
"""Bytes of PCM16 at 16 kHz."""
FRAME = SECOND // 10
END = {"type": "end"}


@pytest.fixture(scope="module")
def spoken(demo_audio):
    """Sentences in two languages."""
    return clips(demo_audio, count=2)


@pytest.fixture(scope="module")
def speech(spoken):
    """The sentences, each with a pause of a second behind it."""
    return conversation(spoken, seconds=1)


def errors(said, heard):
    return wer(" ".join(clip.text for clip in said), " ".join(heard))


# The v1 stream, section D


REFERENCE = {
    "settings": {
        "tasks": ["transcribe"],
        "tra": {
            "language": "auto",
            "language_detection_threshold": 0.5,
            "language_detection_segments": 1,
            "beam_size": 5,
            "no_speech_threshold": None,
            "word_timestamps": True,
            "vad_filter": False,
            "batch_size": 16,
            "task": "transcribe",
            "initial_prompt": None,
            "log_progress": False,
            "best_of": 10,
            "patience": 1.0,
            "length_penalty": 1.0,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "temperature": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            "compression_ratio_threshold": None,
            "log_prob_threshold": None,
            "condition_on_previous_text": True,
            "prompt_reset_on_temperature": 0.5,
            "prefix": None,
            "suppress_blank": True,
            "suppress_tokens": None,
            "without_timestamps": False,
            "max_initial_timestamp": 1.0,
            "prepend_punctuations": "\"'“¿([{-",
            "append_punctuations": "\"'.。,，!！?？:：”)]}、",
            "multilingual": False,
            "vad_parameters": None,
            "max_new_tokens": None,
            "chunk_length": None,
            "clip_timestamps": "0",
            "hallucination_silence_threshold": None,
            "hotwords": None,
        },
        "dia": None,
        "emo": None,
    },
    "format_output": "json",
    "async_process": False,
}
"""What the reference client sends first."""


async def chunks(service, audio, *, tra=None, end=b"", **settings):
    """What a v1 client is told about some audio, sent in frames of half a second as it does."""
    async with service.connect() as client:
        await client.send({"settings": {"tra": tra or {}, **settings}})
        await client.send(*frames(audio, SECOND // 2), end)
        told = await client.rest()
    assert client.closed == (1000, "")
    return told


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("hello", "First message must be a valid JSON string."),
        ("", "First message must be a valid JSON string."),
        (b'{"settings": {"tra": {}}}', "First message must be a valid JSON string."),
        (b"", "First message must be a valid JSON string."),
        ("{}", "Invalid settings in first message: "),
        ("null", "Invalid settings in first message: "),
        ("[1]", "Invalid settings in first message: "),
        ('{"settings": {}}', "Invalid settings in first message: "),
        ('{"settings": {"tra": null}}', "Invalid settings in first message: "),
        ('{"settings": {"tra": {"beam_size": 11}}}', "Invalid settings in first message: "),
        ('{"settings": {"tra": {"model": "nothing"}}}', "Failed to initialize streaming: "),
        (
            '{"settings": {"tra": {"model": "demo-gigaam-emo"}}}',
            "Failed to initialize streaming: ",
        ),
    ],
)
async def test_a_first_message_that_begins_nothing_is_answered_and_closed(quick, first, said):
    async with quick.connect() as client:
        await client.send(first)
        (answer,) = await client.rest()
    assert list(answer) == ["error"]
    assert answer["error"].startswith(said)
    assert len(answer["error"]) > len(said) or said.endswith("string.")
    assert client.closed[0] == 1000


async def test_a_chunk_has_the_shape_of_the_protocol(quick):
    (chunk,) = await chunks(quick, exact(silence(1), say(7, 8), silence(1)))
    assert chunk == {
        "start": pytest.approx(0.7, abs=0.04),
        "end": pytest.approx(1.95, abs=0.04),
        "text": "7 8",
        "words": [
            {"start": 1.0, "end": pytest.approx(1.3), "word": " 7", "confidence": None},
            {"start": 1.4, "end": pytest.approx(1.7), "word": " 8", "confidence": None},
        ],
        "emotional": None,
    }
    assert list(chunk) == ["start", "end", "text", "words", "emotional"]
    assert list(chunk["words"][0]) == ["start", "end", "word", "confidence"]


async def test_the_request_of_the_reference_client_is_understood(quick):
    async with quick.connect() as client:
        await client.send(REFERENCE, exact(say(1)), b"")
        assert [chunk["text"] for chunk in await client.rest()] == ["1"]
    (options,) = quick.ears.asked
    assert (options.model, options.language, options.best_of) == (WHISPER, None, 10)


@pytest.mark.parametrize("end", ["END_STREAM", "end_stream", "End_Stream", b""])
async def test_every_end_brings_the_last_words_and_closes(quick, end):
    told = await chunks(quick, exact(say(1), silence(1), say(2)), end=end)
    assert [chunk["text"] for chunk in told] == ["1", "2"]


async def test_a_stream_may_be_longer_than_what_whisper_hears_at_once(quick):
    told = await chunks(quick, exact(say(*range(1, 200))))
    assert " ".join(chunk["text"] for chunk in told) == numbers(1, 199)
    assert told[-1]["end"] > 60
    assert quick.ears.longest_s <= 15


async def test_other_texts_are_nothing(quick):
    async with quick.connect() as client:
        await client.send({"settings": {"tra": {}}}, "hello", exact(say(1)), "{}", b"")
        assert [chunk["text"] for chunk in await client.rest()] == ["1"]


async def test_words_are_left_out_when_they_are_not_wanted(quick):
    (chunk,) = await chunks(quick, exact(say(1, 2)), tra={"word_timestamps": False})
    assert (chunk["text"], chunk["words"]) == ("1 2", [])


@pytest.mark.parametrize("audio", [b"", exact(silence(40))], ids=["nothing", "silence"])
async def test_of_silence_nothing_is_told(quick, audio):
    assert await chunks(quick, audio) == []


async def test_any_model_of_words_may_be_named(quick):
    for model in (STREAMING, UTTERANCES):
        (chunk,) = await chunks(quick, exact(say(1)), tra={"model": model})
        assert chunk["text"] == "1"
    assert [model for model, _ in quick.ears.opened] == [STREAMING]
    assert [options.model for options in quick.ears.asked] == [UTTERANCES]


async def test_a_failure_is_told_and_closes(quick):
    quick.ears.failure = EngineFailed("broken")
    assert await chunks(quick, exact(say(1))) == [{"error": "Streaming error: broken"}]


async def test_the_whisper_of_the_demo_is_sure_of_its_words_in_degrees(demo, spoken, speech):
    told = await chunks(demo, pcm(speech))
    assert errors(spoken, [chunk["text"] for chunk in told]) < 0.3
    sure = [word["confidence"] for chunk in told for word in chunk["words"]]
    assert all(0 <= confidence <= 1 for confidence in sure)
    assert len(set(sure)) > len(sure) / 2
    (first,) = await chunks(demo, pcm(spoken[0].samples), tra={"word_timestamps": False})
    assert (first["text"], first["words"]) == (told[0]["text"], [])
    for chunk in told:
        assert "".join(word["word"] for word in chunk["words"]).strip() == chunk["text"]
        times = [edge for word in chunk["words"] for edge in (word["start"], word["end"])]
        assert times == sorted(times)
        assert chunk["start"] <= times[0]
        assert times[-1] <= chunk["end"]


async def test_the_emotion_of_each_chunk_is_told_when_it_is_asked(demo, speech):
    told = await chunks(
        demo, pcm(speech[: 5 * SAMPLE_RATE]), tra={"model": UTTERANCES}, tasks=["emotion"]
    )
    assert told
    for chunk in told:
        assert set(chunk["emotional"]) == {"angry", "sad", "neutral", "positive"}
        assert sum(chunk["emotional"].values()) == pytest.approx(1, abs=1e-3)


# The native stream: what it says


@asynccontextmanager
async def native(service, **start):
    """A native socket and how it was greeted."""
    async with service.connect() as client:
        await client.send({"type": "start", **start})
        yield client, await client.receive()


async def stream(service, audio, *, frame=FRAME, **start):
    """All events about some audio that is poured in."""
    async with native(service, **start) as (client, _):
        await client.send(*frames(audio, frame), END)
        events = await client.rest()
    assert client.closed == (1000, "")
    assert_sound(events)
    return events


async def paced(client, audio):
    """The events about some audio of which no second is sent before the last was heard."""
    events = []
    for second in frames(audio, SECOND):
        await client.send(*frames(second, SECOND // 50))
        if len(second) == SECOND:
            events += await client.until(type="progress")
    return events


SHAPES = {
    "speech_start": ["type", "seq", "utterance", "at"],
    "speech_end": ["type", "seq", "utterance", "at"],
    "progress": ["type", "seq", "processed_s", "lag_s"],
    "done": ["type", "seq"],
}
TOLD = ["type", "seq", "utterance", "start", "end", "text", "words", "lag_s"]


RESUME = {"session": "x", "seq": 0, "from_s": 0}


def assert_sound(events):
    """What holds of every whole stream."""
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert events[-1]["type"] == "done"
    for event in events:
        told = [name for name in event if name not in ("emotion", "speaker", "voice")]
        assert told == SHAPES.get(event["type"], TOLD)
        assert event.get("lag_s", 0) >= 0
        for word in event.get("words", []):
            assert list(word) == ["word", "start", "end", "probability"]
            assert event["start"] <= word["start"] <= word["end"] <= event["end"]
    last = finals(events)
    assert [final["utterance"] for final in last] == list(range(len(last)))
    assert all(a["end"] <= b["start"] for a, b in itertools.pairwise(last))
    for final in last:
        about = [e for e in events if e.get("utterance") == final["utterance"]]
        assert about[-1] is final
        assert {event["type"] for event in about[:-1]} <= {"speech_start", "partial", "speech_end"}


def finals(events):
    return [event for event in events if event["type"] == "final"]


def texts(events):
    return [final["text"] for final in finals(events)]


def numbers(first, last):
    return " ".join(str(n) for n in range(first, last + 1))


TWO = exact(silence(1), say(1, 2, 3), silence(1.5), say(4, 5), silence(1.5))


async def test_a_stream_is_greeted_told_and_ended(quick):
    async with native(quick) as (client, ready):
        assert ready == {
            "type": "ready",
            "session": ready["session"],
            "resumed": False,
            "seq": 0,
            "audio_from_s": 0.0,
            "model": STREAMING,
            "partial_model": None,
            "window_s": 30.0,
        }
        events = await paced(client, TWO)
        await client.send(END)
        events += await client.rest()
    assert client.closed == (1000, "")
    assert_sound(events)
    assert texts(events) == ["1 2 3", "4 5"]
    first, second = finals(events)
    assert first["start"] == pytest.approx(0.7, abs=0.04)  # the pre-roll
    assert first["end"] == pytest.approx(2.1 + 0.25, abs=0.04)  # the tail
    assert [word["start"] for word in first["words"]] == [1.0, 1.4, 1.8]
    assert [word["word"] for word in second["words"]] == ["4", "5"]
    marks = [(e["type"], e["utterance"]) for e in events if e["type"].startswith("speech")]
    assert marks == [(kind, n) for n in (0, 1) for kind in ("speech_start", "speech_end")]
    partials = [e["text"] for e in events if e["type"] == "partial" and e["utterance"] == 0]
    assert partials[-1] == "1 2 3"
    assert all(later.startswith(before) for before, later in itertools.pairwise(partials))
    processed = [e["processed_s"] for e in events if e["type"] == "progress"]
    assert processed[:5] == [1.0, 2.0, 3.0, 4.0, 5.0]


async def test_the_sockets_stand_in_the_web_app():
    async with serving(Ears(), whole=True) as service:
        assert texts(await stream(service, TWO)) == ["1 2 3", "4 5"]


@pytest.mark.parametrize("audio", [b"", exact(silence(5))], ids=["nothing", "silence"])
async def test_a_stream_without_speech_is_only_done(quick, audio):
    assert {event["type"] for event in await stream(quick, audio)} <= {"progress", "done"}


async def test_partials_may_be_left_out(quick):
    events = await stream(quick, TWO, partials=False)
    assert not [event for event in events if event["type"] == "partial"]


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES, WHISPER])
async def test_speech_without_end_is_cut_and_every_word_told_once(quick, model):
    events = await stream(quick, exact(say(*range(1, 120))), model=model, partials=False)
    assert " ".join(texts(events)) == numbers(1, 119)
    assert len(finals(events)) > 3
    assert all(final["end"] - final["start"] <= 15 for final in finals(events))


async def test_one_model_makes_the_partials_and_another_the_finals(quick):
    async with native(quick, model=UTTERANCES, partial_model=STREAMING) as (client, ready):
        assert (ready["model"], ready["partial_model"]) == (UTTERANCES, STREAMING)
        events = await paced(client, TWO)
        await client.send(END)
        events += await client.rest()
    assert_sound(events)
    assert texts(events) == ["1 2 3", "4 5"]
    partials = {event["text"] for event in events if event["type"] == "partial"}
    assert {"1 2 3", "4 5"} <= partials
    assert [model for model, _ in quick.ears.opened] == [STREAMING]
    assert [options.model for options in quick.ears.asked] == [UTTERANCES] * 2


def assert_nothing_committed_is_taken_back(events):
    """What two partials in a row agree on stays, in all that follow and in the final."""
    partials = [event["text"].split() for event in events if event["type"] == "partial"]
    told = [*partials, finals(events)[0]["text"].split()]
    for index, (one, other) in enumerate(itertools.pairwise(partials)):
        both = zip(one, other, strict=False)
        agreed = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
        assert all(later[: len(agreed)] == agreed for later in told[index + 2 :])


async def test_what_two_partials_of_an_utterance_model_agree_on_stays(quick):
    quick.ears.stumbles = True
    async with native(quick, model=UTTERANCES) as (client, _):
        events = await paced(client, exact(say(*range(1, 30)), silence(1)))
        await client.send(END)
        events += await client.rest()
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert len(partials) >= 4
    assert any("hm" in text for text in partials)
    assert_nothing_committed_is_taken_back(events)
    assert texts(events) == [numbers(1, 29)]


async def test_the_texts_of_whisper_stay_as_well(demo, spoken):
    (clip,) = [clip for clip in spoken if clip.language == "en"][:1]
    audio = np.concatenate((clip.samples, silence(0.2), clip.samples, silence(1)))
    async with native(demo, model=WHISPER, language="en") as (client, _):
        events = await paced(client, pcm(audio))
        await client.send(END)
        events += await client.rest()
    assert_sound(events)
    assert_nothing_committed_is_taken_back(events)
    assert errors([clip, clip], texts(events)) < 0.3


# The native stream: what the client says


async def test_finalize_ends_the_utterance_now(quick):
    async with native(quick) as (client, _):
        await client.send(exact(say(1, 2)), {"type": "finalize"})
        first = (await client.until(type="final"))[-1]
        await client.send({"type": "finalize"}, exact(say(3)), {"type": "finalize"}, END)
        rest = await client.rest()
    assert texts([first, *rest]) == ["1 2", "3"]
    assert first["end"] == 0.8


async def test_keepalive_is_not_answered(quick):
    async with native(quick) as (client, _):
        await client.send({"type": "keepalive"}, exact(say(1)), {"type": "keepalive"}, b"", END)
        assert texts(await client.rest()) == ["1"]


@pytest.mark.parametrize(
    ("endpointing", "expected"),
    [
        ({}, ["1 2 3"]),
        ({"silence_s": 0.3}, ["1 2", "3"]),
        ({"silence_s": 0.3, "min_utterance_s": 2.0}, ["1 2 3"]),
        ({"post_speech_silence_duration": 0.3}, ["1 2", "3"]),
        ({"post_speech_silence_duration": 0.3, "min_length_of_recording": 2.0}, ["1 2 3"]),
        ({"profile": "realtime_stt"}, ["1 2 3"]),
        ({"profile": "default", "silence_s": 0.3}, ["1 2", "3"]),
    ],
)
async def test_where_an_utterance_ends_may_be_set(quick, endpointing, expected):
    audio = exact(say(1, 2), silence(0.35), say(3), silence(1))
    assert texts(await stream(quick, audio, endpointing=endpointing)) == expected


async def test_how_much_is_heard_around_the_speech_may_be_set(quick):
    audio = exact(silence(2), say(1), silence(2))
    (wide,) = finals(await stream(quick, audio, endpointing={"pre_roll_s": 1.0, "tail_s": 0.5}))
    (tight,) = finals(await stream(quick, audio, endpointing={"pre_roll_s": 0.0, "tail_s": 0.0}))
    assert wide["start"] == pytest.approx(1.0, abs=0.04)
    assert wide["end"] == pytest.approx(2.8, abs=0.04)
    assert tight["start"] == pytest.approx(2.0, abs=0.04)
    assert tight["end"] == pytest.approx(2.3, abs=0.04)


async def test_the_longest_utterance_may_be_set(quick):
    events = await stream(quick, exact(say(*range(1, 60))), endpointing={"max_utterance_s": 5})
    assert " ".join(texts(events)) == numbers(1, 59)
    assert all(final["end"] - final["start"] <= 5 for final in finals(events))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, EndpointOptions()),
        (
            {"profile": "realtime_stt"},
            EndpointOptions(
                threshold=0.95,
                end_threshold=0.95,
                silence_s=1.5,
                min_utterance_s=2.0,
                pre_roll_s=1.0,
                webrtc_mode=3,
            ),
        ),
        (
            {
                "profile": "realtime_stt",
                "silero_sensitivity": 0.25,
                "webrtc_sensitivity": 1,
                "post_speech_silence_duration": 0.7,
                "min_length_of_recording": 0.5,
            },
            EndpointOptions(
                threshold=0.75,
                end_threshold=0.75,
                silence_s=0.7,
                min_utterance_s=0.5,
                pre_roll_s=1.0,
                webrtc_mode=1,
            ),
        ),
        ({"threshold": 0.2}, EndpointOptions(threshold=0.2, end_threshold=0.2)),
        ({"threshold": 0.9}, EndpointOptions(threshold=0.9, end_threshold=0.35)),
        ({"webrtc_mode": 2}, EndpointOptions(webrtc_mode=2)),
    ],
)
async def test_the_names_of_realtime_stt_mean_what_they_mean_there(quick, given, taken):
    await stream(quick, b"", endpointing=given)
    assert quick.ears.endpointing == [taken]


async def test_hotwords_language_and_prompt_reach_the_models(quick):
    await stream(quick, exact(say(1)), hotwords="one, two")
    assert quick.ears.opened == [(STREAMING, "one, two")]
    wishes = {"language": "RU", "hotwords": "one", "initial_prompt": "Счёт."}
    await stream(quick, exact(say(1)), model=WHISPER, partials=False, **wishes)
    (options,) = quick.ears.asked
    assert (options.language, options.hotwords, options.initial_prompt) == ("ru", "one", "Счёт.")


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"model": "no-such-model"}, "model_not_found"),
        ({"model": "demo-gigaam-emo"}, "invalid_request"),
        ({"partial_model": "no-such-model"}, "model_not_found"),
        ({"model": UTTERANCES, "partial_model": WHISPER}, "invalid_request"),
        ({"model": STREAMING, "partial_model": STREAMING}, "invalid_request"),
        ({"encoding": "mp3"}, "invalid_request"),
        ({"sample_rate": 4000}, "invalid_request"),
        ({"sample_rate": 96_000}, "invalid_request"),
        ({"channels": 0}, "invalid_request"),
        ({"endpointing": {"threshold": 2}}, "invalid_request"),
        ({"endpointing": {"webrtc_mode": 4}}, "invalid_request"),
        ({"endpointing": {"silence_s": 0}}, "invalid_request"),
        ({"endpointing": {"profile": "other"}}, "invalid_request"),
        ({"endpointing": {"sensitivity": 1}}, "invalid_request"),
        ({"resume": {"session": "x y", "seq": 0, "from_s": 0}}, "invalid_request"),
        ({"resume": {"session": "x", "seq": -1, "from_s": 0}}, "invalid_request"),
        ({"resume": RESUME | {"utterances": -1}}, "invalid_request"),
        ({"resume": RESUME | {"voices": {"SPEAKER_00": "?"}}}, "invalid_request"),
        ({"resume": RESUME | {"voices": {"SPEAKER_01": "AAA="}}}, "invalid_request"),
        ({"modle": STREAMING}, "invalid_request"),
    ],
    ids=str,
)
async def test_a_start_that_cannot_be_met_is_refused_with_a_code(quick, start, code):
    async with native(quick, **start) as (client, answer):
        assert await client.rest() == []
    assert (answer["type"], answer["code"]) == ("error", code)
    assert answer["message"]
    assert client.closed[0] == 1008


@pytest.mark.parametrize(
    "frame", ["hello", "[]", "null", "{}", '{"type": "stop"}', '{"type": ' + "[" * 100_000]
)
async def test_a_frame_that_means_nothing_ends_the_socket_with_a_reason(quick, frame):
    async with native(quick) as (client, ready):
        await client.send(exact(say(1)), frame)
        error = (await client.rest())[-1]
    assert (error["type"], error["code"]) == ("error", "invalid_request")
    assert client.closed[0] == 1008
    await stream(quick, b"", resume={"session": ready["session"], "seq": 0, "from_s": 0.0})


async def test_a_failure_of_the_model_is_told_with_its_code(quick):
    quick.ears.failure = EngineFailed("broken")
    async with native(quick, model=UTTERANCES, partials=False) as (client, _):
        await client.send(exact(say(1), silence(1)))
        error, done = (await client.rest())[-2:]
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_failed", "broken")
    assert done["type"] == "done"
    assert client.closed[0] == 1011


# The native stream: encodings


async def test_floats_and_more_channels_are_taken_as_well(quick):
    samples = np.concatenate((say(1, 2), silence(1), say(3)))
    expected = finals(await stream(quick, exact(samples)))
    floats = samples.astype("<f4").tobytes()
    stereo = np.repeat(samples, 2).astype("<f4").tobytes()
    for audio, start in (
        (floats, {"encoding": "pcm_f32le"}),
        (stereo, {"encoding": "pcm_f32le", "channels": 2}),
    ):
        told = finals(await stream(quick, audio, frame=1001, **start))
        assert [final | {"seq": 0, "lag_s": 0} for final in told] == [
            final | {"seq": 0, "lag_s": 0} for final in expected
        ]


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
async def test_other_rates_are_recognised(demo, spoken, speech, rate):
    audio = pcm(soxr.resample(speech, SAMPLE_RATE, rate))
    told = finals(await stream(demo, audio, frame=4999, sample_rate=rate))
    assert errors(spoken, [final["text"] for final in told]) < 0.3
    assert told[-1]["end"] == pytest.approx(len(speech) / SAMPLE_RATE, abs=2.0)


@pytest.mark.parametrize("container", ["webm", "ogg"])
async def test_opus_as_a_browser_sends_it_is_recognised(demo, spoken, speech, container):
    wide = soxr.resample(speech, SAMPLE_RATE, 48_000)
    file = encode(container, "libopus", wide, 48_000, bit_rate=48_000)
    events = await stream(demo, file, frame=1000, encoding="opus", partials=False)
    assert errors(spoken, texts(events)) < 0.3


async def test_what_is_no_opus_is_refused(quick):
    async with native(quick, encoding="opus") as (client, _):
        await client.send(b"RIFF" + bytes(1000))
        error, _ = await client.rest()
    assert (error["code"], client.closed[0]) == ("unsupported_audio", 1008)


# The native stream: the demo models


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_poured_in_a_stream_is_cut_as_when_it_is_spoken(demo, spoken, speech, model):
    def essence(events):
        return [(f["text"], f["start"], f["end"], f["words"]) for f in finals(events)]

    audio = pcm(speech)
    poured = await stream(demo, audio, frame=len(audio), model=model)
    async with native(demo, model=model, partials=False) as (client, _):
        events = await paced(client, audio)
        await client.send(END)
        events += await client.rest()
    assert essence(events) == essence(poured)
    assert len(finals(poured)) >= len(spoken)
    assert errors(spoken, texts(poured)) < 0.3


async def test_no_word_of_a_final_ends_behind_it_however_the_audio_came(quick):
    speech, pause = exact(say(1, gap_s=0), say(WHISPERED, word_s=0.5)), exact(silence(1))
    (poured,) = finals(await stream(quick, speech + pause, frame=len(speech + pause)))
    async with native(quick) as (client, _):
        await client.send(speech)
        await client.until(type="partial")
        await client.send(pause, END)
        (spoken,) = finals(await client.rest())
    assert poured["words"][-1]["end"] <= poured["end"]
    assert spoken["words"] == poured["words"]


async def test_the_profile_of_realtime_stt_works_with_its_detectors(demo, spoken):
    audio = np.concatenate((silence(2), spoken[0].samples, silence(2), spoken[1].samples))
    events = await stream(demo, pcm(audio), endpointing={"profile": "realtime_stt"})
    starts = [event["at"] for event in events if event["type"] == "speech_start"]
    told = finals(events)
    assert len(told) == 2
    assert told[0]["start"] == pytest.approx(starts[0] - 1.0, abs=0.04)
    assert errors(spoken[:2], texts(events)) < 0.4


async def test_emotion_and_speaker_of_each_final_when_asked(demo, demo_audio):
    voices = [clip for clip in clips(demo_audio, count=16) if clip.language == "en"]
    one, other = voices[0], voices[3]
    audio = [part for clip in (one, other) * 3 for part in (clip.samples, silence(1))]
    told = finals(await stream(demo, pcm(*audio), emotion=True, speaker=True))
    assert len(told) == 6
    labels = [final["speaker"] for final in told]
    assert labels == ["SPEAKER_00", "SPEAKER_01"] * 3
    for final in told:
        assert set(final["emotion"]) == {"angry", "sad", "neutral", "positive"}
        assert sum(final["emotion"].values()) == pytest.approx(1, abs=1e-3)
    plain_told = finals(await stream(demo, pcm(*audio[:2])))
    assert not {"emotion", "speaker", "voice"} & set(plain_told[0])


async def test_a_replica_that_takes_over_knows_the_speakers_and_counts_on(demo, demo_audio):
    voices = [clip for clip in clips(demo_audio, count=16) if clip.language == "en"]
    one, other = (pcm(voices[n].samples, silence(1)) for n in (0, 3))
    before = finals(await stream(demo, one + other, speaker=True))
    resume = {
        "session": "of-another-replica",
        "seq": before[-1]["seq"],
        "from_s": before[-1]["end"],
        "utterances": len(before),
        "voices": {final["speaker"]: final["voice"] for final in before},
    }
    async with native(demo, speaker=True, resume=resume) as (client, ready):
        assert not ready["resumed"]
        await client.send(other + one, END)
        after = finals(await client.rest())
    assert [(f["utterance"], f["speaker"]) for f in before + after] == [
        (0, "SPEAKER_00"),
        (1, "SPEAKER_01"),
        (2, "SPEAKER_01"),
        (3, "SPEAKER_00"),
    ]


async def test_noise_and_silence_are_no_trouble(demo):
    noise = np.random.default_rng(1).normal(0, 0.01, 10 * SAMPLE_RATE).clip(-1, 1)
    await stream(demo, pcm(noise, silence(5)))
    assert texts(await stream(demo, pcm(silence(20)))) == []


# A dropped socket


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
@pytest.mark.parametrize("sent_s", [1.7, 3.1, 5.0])
async def test_a_stream_goes_on_with_another_socket(quick, model, sent_s):
    audio = exact(say(1, 2, 3), silence(1), say(*range(4, 13)), silence(1), say(13))
    sent = round(sent_s * SAMPLE_RATE) * 2 + 1  # half a sample too much
    async with native(quick, model=model) as (client, ready):
        await client.send(*frames(audio[:sent], FRAME))
        before = await client.until(type="speech_start")
        if sent_s > 3:
            before += await client.until(type="final")
        client.drop()
    told = finals(before)
    resume = {"session": ready["session"], "seq": before[-1]["seq"]}
    resume["from_s"] = told[-1]["end"] if told else 0.0
    async with native(quick, model=model, resume=resume) as (client, again):
        assert again["resumed"]
        assert again["session"] == ready["session"]
        at = round(again["audio_from_s"] * SAMPLE_RATE) * 2
        assert at <= sent
        await client.send(*frames(audio[at:], FRAME), END)
        after = await client.rest()
    assert client.closed == (1000, "")
    assert_sound(before + after)
    assert texts(before + after) == ["1 2 3", numbers(4, 12), "13"]
    starts = [word["start"] for final in finals(before + after) for word in final["words"]]
    expected = [0.4 * n + (n > 2) + (n > 11) for n in range(13)]
    assert starts == pytest.approx(expected, abs=1e-3)


async def test_a_session_that_nobody_knows_begins_where_the_client_says(quick):
    resume = {"session": "from-another-replica", "seq": 41, "from_s": 7.5}
    async with native(quick, resume=resume) as (client, ready):
        assert not ready["resumed"]
        assert ready["session"] == resume["session"]
        assert (ready["seq"], ready["audio_from_s"]) == (41, 7.5)
        await client.send(exact(silence(1), say(1)), END)
        events = await client.rest()
    assert events[0]["seq"] == 42
    (final,) = finals(events)
    assert final["words"][0]["start"] == 8.5


async def test_a_session_that_is_behind_its_client_makes_room_for_another(quick):
    async with native(quick) as (client, ready):
        await client.send(exact(say(1)))
        await client.until(type="partial")
        client.drop()
    resume = {"session": ready["session"], "seq": 90, "from_s": 30.0}  # it has been elsewhere since
    async with native(quick, resume=resume) as (client, again):
        assert (again["resumed"], again["audio_from_s"]) == (False, 30.0)
        await client.send(exact(say(2)), END)
        events = await client.rest()
    assert [(f["text"], f["words"][0]["start"]) for f in finals(events)] == [("2", 30.0)]
    assert events[0]["seq"] == 91


async def test_a_stream_goes_on_in_the_encoding_it_had(quick):
    async with native(quick) as (client, ready):
        client.drop()
    resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
    async with native(quick, resume=resume, sample_rate=8000) as (client, refused):
        assert refused["code"] == "invalid_request"
        await client.rest()
        assert client.closed[0] == 1008
    await stream(quick, b"", resume=resume)


async def test_a_socket_that_is_still_open_gives_way_and_is_heard_no_more(quick):
    async with native(quick) as (old, ready):
        await old.send(*frames(exact(say(1), silence(1)), FRAME))
        seen = await old.until(type="final")
        pouring = asyncio.create_task(old.send(*frames(exact(say(*range(100, 200))), 1600)))
        resume = {"session": ready["session"], "seq": seen[-1]["seq"], "from_s": seen[-1]["end"]}
        async with native(quick, resume=resume) as (new, again):
            assert again["resumed"]
            await old.rest()
            assert old.closed[0] == 4001
            with contextlib.suppress(ConnectionClosed):
                await pouring
            await new.send(exact(silence(1), say(7777)), END)
            events = await new.rest()
    (late,) = [w for final in finals(events) for w in final["words"] if w["word"] == "7777"]
    assert late["start"] == pytest.approx(again["audio_from_s"] + 1.0, abs=1e-3)
    heard = " ".join(texts(events)).split()
    assert heard[:-1] == [str(n) for n in range(100, 100 + len(heard) - 1)]


@pytest.mark.parametrize("finished", [False, True])
async def test_what_was_said_after_the_end_waits_for_a_socket(quick, finished):
    quick.ears.transcribing.shut()
    async with native(quick, model=UTTERANCES, partials=False) as (client, ready):
        await client.send(exact(say(1)), END)
        await quick.ears.transcribing.reached.wait()
        client.drop()
    await quick.idle()
    session = quick.streams.sessions.find(ready["session"])
    quick.ears.transcribing.open()
    if finished:
        assert [event.kind async for event in session.events()][-1] == "done"
    resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
    async with native(quick, model=UTTERANCES, resume=resume) as (client, again):
        assert (again["resumed"], again["audio_from_s"]) == (True, 0.4)
        await client.send(END)
        events = await client.rest()
    assert texts(events) == ["1"]
    assert client.closed == (1000, "")


async def test_a_session_waits_for_a_socket_only_so_long():
    async with serving(Ears(), retention_s=0.05) as service:
        async with native(service) as (client, ready):
            await client.send(exact(say(1)))
            await client.until(type="partial")
            client.drop()
        assert [await service.counts.get(), await service.counts.get()] == [1, 0]
        resume = {"session": ready["session"], "seq": 5, "from_s": 0.0}
        async with native(service, resume=resume) as (client, again):
            assert not again["resumed"]
            await client.send(exact(say(1)), END)
            assert texts(await client.rest()) == ["1"]


@pytest.mark.parametrize("retention_s", [0.0, 30.0])
@pytest.mark.parametrize("moment", ["at once", "opening", "heard", "recognised"])
async def test_a_client_that_vanishes_leaves_nothing_behind(moment, retention_s):
    ears = Ears()
    async with serving(ears, retention_s=retention_s) as service:
        ears.feeding.shut()
        gate = {"opening": ears.opening, "heard": ears.activity}.get(moment, ears.feeding)
        gate.shut()
        async with service.connect() as client:
            if moment != "at once":
                native_form = retention_s == 0
                v1 = {"settings": {"tra": {"model": STREAMING}}}
                await client.send({"type": "start"} if native_form else v1)
                await client.send(*frames(exact(say(*range(1, 60))), FRAME))
                await gate.reached.wait()
            client.drop()
        await service.idle()
        service.assert_free()


# Bounds


async def test_a_client_that_is_too_far_ahead_is_closed_and_loses_nothing():
    ears = Ears()
    async with serving(ears, max_pending_mb=1) as service:
        ears.activity.shut()
        audio = exact(*[part for n in range(1, 60) for part in (say(n), silence(0.8))])
        size = 700_000
        async with native(service, partials=False) as (client, ready):
            await client.send(audio[:size])
            await ears.activity.reached.wait()
            await client.send(audio[size : 2 * size], audio[2 * size :])
            (error,) = await client.rest()
        assert (error["type"], error["code"]) == ("error", "too_far_ahead")
        assert error["retry_after_s"] > 0
        assert client.closed[0] == 1013
        ears.activity.open()
        resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
        async with native(service, resume=resume) as (client, again):
            assert again["resumed"]
            assert again["audio_from_s"] == 2 * size / SECOND
            await client.send(audio[2 * size :], END)
            assert " ".join(texts(await client.rest())) == numbers(1, 59)


@pytest.mark.parametrize("slowed", [True, False])
async def test_a_client_that_pours_is_refused_unless_it_can_be_slowed_down(slowed):
    ears = Ears()
    ears.turns = 500
    async with serving(ears, max_pending_mb=1) as service:
        if slowed:
            service.app.extensions[FLOW_CONTROL] = {}
        audio = exact(*[part for n in range(1, 60) for part in (say(n), silence(1.6))])
        async with service.connect() as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send({"settings": {"tra": {}}}, *frames(audio, 200_000), b"")
            told = await client.rest()
    if slowed:
        assert " ".join(chunk["text"] for chunk in told) == numbers(1, 59)
    else:
        assert "wait to be recognised" in told[-1]["error"]


async def test_a_stream_that_is_too_long_is_finished_then_refused():
    async with serving(Ears(), max_stream_s=2.0) as service, native(service) as (client, _):
        await client.send(exact(say(*range(1, 11))))
        *_, final, error, done = await client.rest()
    assert final["text"] == numbers(1, 5)
    assert (error["code"], done["type"]) == ("stream_too_long", "done")
    assert client.closed[0] == 1008


@pytest.mark.parametrize("path", ["/v1/ws", "/ws", "/vosk"])
async def test_one_stream_too_many_is_refused_in_the_handshake(path):
    async with serving(Ears(), max_sessions=1) as service:
        async with service.connect(path):
            with pytest.raises(InvalidStatus) as refused:
                async with service.connect(path):
                    pass
            response = refused.value.response
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert json.loads(response.body)["code"] == "overloaded"
        await service.idle()
        async with service.connect(path):
            pass


async def test_a_session_that_waits_for_its_socket_keeps_its_place():
    async with serving(Ears(), max_sessions=1) as service:
        async with native(service) as (client, ready):
            client.drop()
        await service.idle()
        async with native(service) as (client, answer):
            assert answer["code"] == "overloaded"
            assert await client.rest() == []
            assert client.closed[0] == 1013
        await service.idle()
        resume = {"session": ready["session"], "seq": 0, "from_s": 0.0}
        async with native(service, resume=resume) as (client, again):
            assert again["resumed"]
            await client.send(END)
            await client.rest()


@pytest.mark.parametrize(
    ("path", "first", "told", "code"),
    [
        ("/v1/ws", {"type": "start"}, "message", 1008),
        ("/v1/ws", {"settings": {"tra": {}}}, "error", 1000),
        ("/ws", b"\0\0", "error", 1008),
        ("/vosk", b"\0\0", "error", 1008),
        ("/v1/ws", None, "error", 1000),
        ("/ws", None, "error", 1008),
        ("/vosk", None, "error", 1008),
    ],
)
async def test_a_client_that_says_nothing_is_closed_with_the_reason(path, first, told, code):
    limits = {"start_timeout_s": 0.05} if first is None else {"idle_timeout_s": 0.05}
    async with serving(Ears(), **limits, retention_s=0) as service, service.connect(path) as client:
        if first is not None:
            await client.send(first)
        answers = await client.rest()
    assert "nothing was received for 0.05 seconds" in answers[-1][told]
    assert client.closed[0] == code


async def test_a_client_that_waits_for_a_slow_model_is_not_idle():
    ears = Ears()
    async with serving(ears, idle_timeout_s=0.5) as service:
        ears.transcribing.shut()
        asyncio.get_running_loop().call_later(1.2, ears.transcribing.open)
        assert texts(await stream(service, exact(say(1)), model=UTTERANCES)) == ["1"]


async def test_a_client_that_does_not_read_is_closed_with_the_reason(quick, monkeypatch):
    monkeypatch.setattr(sockets, "SEND_TIMEOUT_S", 0.05)
    says = iter(
        [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": '{"type": "start"}'},
            {"type": "websocket.receive", "bytes": exact(say(1))},
        ]
    )
    sent = []

    async def receive():
        return next(says, None) or await asyncio.Future()

    async def send(message):
        sent.append(message)
        if message["type"] == "websocket.send":
            await asyncio.Future()

    scope = {"type": "websocket", "path": "/v1/ws", "query_string": b"", "headers": []}
    await quick.app(scope, receive, send)
    reason = "the client does not read"
    assert sent[-1] == {"type": "websocket.close", "code": 1013, "reason": reason}
    (session,) = [json.loads(m["text"])["session"] for m in sent if m["type"] == "websocket.send"]
    await stream(quick, b"", resume={"session": session, "seq": 0, "from_s": 0.0})


# A replica that is being stopped


@asynccontextmanager
async def draining(service):
    """The service while it is being stopped; no socket is let in any more."""
    task = asyncio.create_task(service.streams.sessions.drain())
    with pytest.raises(InvalidStatus) as refused:
        async with service.connect():
            pass
    assert refused.value.response.status_code == 503
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("path", "first", "told"),
    [
        ("/v1/ws", {"type": "start"}, ["1 2 3"]),
        ("/v1/ws", {"settings": {"tra": {}}}, ["1 2 3"]),
        ("/ws", {"config": {}}, []),
        ("/vosk", {"config": {}}, ["1 2 3"]),
    ],
)
async def test_a_stream_ends_at_its_next_pause_and_goes_away(quick, path, first, told):
    ears = quick.ears
    async with quick.connect(path) as client:
        await client.send(first)
        await client.send(exact(say(1, 2)))
        await ears.activity.reached.wait()
        async with draining(quick):
            with contextlib.suppress(ConnectionClosed):
                await client.send(exact(say(3), silence(1)))
            messages = await client.rest()
    if path == "/ws":  # what waits in its buffer is recognised at once
        assert messages[-1]["data"]["text"] in ("1 2", "1 2 3")
        assert not messages[-1]["last_message"]
    else:
        said = [m["text"] for m in messages if m.get("text") and m.get("type") != "partial"]
        assert said == told
    assert not [m for m in messages if m.get("type") == "done"]
    assert client.closed[0] == 1001


async def test_an_utterance_without_end_is_waited_for_only_so_long(quick, monkeypatch):
    monkeypatch.setattr(sessions, "DRAIN_S", 0.0)
    async with native(quick) as (client, _):
        await client.send(exact(say(1, 2)))
        await client.until(type="partial", text="1 2")
        async with draining(quick):
            events = await client.rest()
    assert texts(events) == ["1 2"]
    assert client.closed[0] == 1001


@pytest.mark.parametrize(
    ("path", "first", "end", "last"),
    [
        ("/v1/ws", {"type": "start", "model": UTTERANCES}, END, ("type", "done")),
        ("/v1/ws", {"settings": {"tra": {}}}, b"", ("text", "1")),
        ("/ws", {"config": {}}, '{"eof": 1}', ("last_message", True)),
        ("/vosk", {"config": {"model": UTTERANCES}}, '{"eof": 1}', ("text", "1")),
    ],
)
async def test_a_client_that_has_said_all_gets_all(quick, path, first, end, last):
    quick.ears.transcribing.shut()
    async with quick.connect(path) as client:
        await client.send(first)
        await client.send(exact(say(1)), end)
        await quick.ears.transcribing.reached.wait()
        async with draining(quick):
            quick.ears.transcribing.open()
            messages = await client.rest()
    assert messages[-1][last[0]] == last[1]
    assert client.closed[0] == 1000
