"""The native stream of ``WS /v1/ws``: its events, and the frames of its clients."""

import itertools

import numpy as np
import pytest

from speech.errors import EngineFailed
from speech.live.endpointing import EndpointOptions
from tests.unit.api.native_client import (
    END,
    assert_sound,
    errors,
    finals,
    native,
    numbers,
    paced,
    stream,
    texts,
)
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, pcm, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, WHISPER, serving

RESUME = {"session": "x", "seq": 0, "from_s": 0}
TWO = exact(silence(1), speak(1, 2, 3), silence(1.5), speak(4, 5), silence(1.5))
# Events of the server


async def test_a_stream_is_greeted_reported_and_ended(quick):
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
    async with serving(FakeModels(), whole=True) as service:
        assert texts(await stream(service, TWO)) == ["1 2 3", "4 5"]


@pytest.mark.parametrize("audio", [b"", exact(silence(5))], ids=["nothing", "silence"])
async def test_a_stream_without_speech_is_only_done(quick, audio):
    assert {event["type"] for event in await stream(quick, audio)} <= {"progress", "done"}


async def test_partials_may_be_left_out(quick):
    events = await stream(quick, TWO, partials=False)
    assert not [event for event in events if event["type"] == "partial"]


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES, WHISPER])
async def test_speech_without_end_is_cut_and_every_word_is_sent_once(quick, model):
    events = await stream(quick, exact(speak(*range(1, 120))), model=model, partials=False)
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
    assert [model for model, _ in quick.models.opened] == [STREAMING]
    assert [options.model for options in quick.models.asked] == [UTTERANCES] * 2


def assert_committed_words_stay(events):
    """What two partials in a row agree on stays, in all that follow and in the final."""
    partials = [event["text"].split() for event in events if event["type"] == "partial"]
    received = [*partials, finals(events)[0]["text"].split()]
    for index, (one, other) in enumerate(itertools.pairwise(partials)):
        both = zip(one, other, strict=False)
        agreed = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
        assert all(later[: len(agreed)] == agreed for later in received[index + 2 :])


async def test_what_two_partials_of_an_utterance_model_agree_on_stays(quick):
    quick.models.unstable = True
    async with native(quick, model=UTTERANCES) as (client, _):
        events = await paced(client, exact(speak(*range(1, 30)), silence(1)))
        await client.send(END)
        events += await client.rest()
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert len(partials) >= 4
    assert any("hm" in text for text in partials)
    assert_committed_words_stay(events)
    assert texts(events) == [numbers(1, 29)]


async def test_the_texts_of_whisper_stay_as_well(demo, spoken):
    (clip,) = [clip for clip in spoken if clip.language == "en"][:1]
    audio = np.concatenate((clip.samples, silence(0.2), clip.samples, silence(1)))
    async with native(demo, model=WHISPER, language="en") as (client, _):
        events = await paced(client, pcm(audio))
        await client.send(END)
        events += await client.rest()
    assert_sound(events)
    assert_committed_words_stay(events)
    assert errors([clip, clip], texts(events)) < 0.3


# Frames of the client


async def test_finalize_ends_the_utterance_now(quick):
    async with native(quick) as (client, _):
        await client.send(exact(speak(1, 2)), {"type": "finalize"})
        first = (await client.until(type="final"))[-1]
        await client.send({"type": "finalize"}, exact(speak(3)), {"type": "finalize"}, END)
        rest = await client.rest()
    assert texts([first, *rest]) == ["1 2", "3"]
    assert first["end"] == 0.8


async def test_keepalive_is_not_answered(quick):
    async with native(quick) as (client, _):
        await client.send({"type": "keepalive"}, exact(speak(1)), {"type": "keepalive"}, b"", END)
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
    audio = exact(speak(1, 2), silence(0.35), speak(3), silence(1))
    assert texts(await stream(quick, audio, endpointing=endpointing)) == expected


async def test_the_audio_around_the_speech_may_be_set(quick):
    audio = exact(silence(2), speak(1), silence(2))
    (wide,) = finals(await stream(quick, audio, endpointing={"pre_roll_s": 1.0, "tail_s": 0.5}))
    (tight,) = finals(await stream(quick, audio, endpointing={"pre_roll_s": 0.0, "tail_s": 0.0}))
    assert wide["start"] == pytest.approx(1.0, abs=0.04)
    assert wide["end"] == pytest.approx(2.8, abs=0.04)
    assert tight["start"] == pytest.approx(2.0, abs=0.04)
    assert tight["end"] == pytest.approx(2.3, abs=0.04)


async def test_the_longest_utterance_may_be_set(quick):
    events = await stream(quick, exact(speak(*range(1, 60))), endpointing={"max_utterance_s": 5})
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
    assert quick.models.endpointing == [taken]


async def test_hotwords_language_and_prompt_reach_the_models(quick):
    await stream(quick, exact(speak(1)), hotwords="one, two")
    assert quick.models.opened == [(STREAMING, "one, two")]
    wishes = {"language": "RU", "hotwords": "one", "initial_prompt": "Счёт."}
    await stream(quick, exact(speak(1)), model=WHISPER, partials=False, **wishes)
    (options,) = quick.models.asked
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
        await client.send(exact(speak(1)), frame)
        error = (await client.rest())[-1]
    assert (error["type"], error["code"]) == ("error", "invalid_request")
    assert client.closed[0] == 1008
    await stream(quick, b"", resume={"session": ready["session"], "seq": 0, "from_s": 0.0})


async def test_a_failure_of_the_model_is_reported_with_its_code(quick):
    quick.models.failure = EngineFailed("broken")
    async with native(quick, model=UTTERANCES, partials=False) as (client, _):
        await client.send(exact(speak(1), silence(1)))
        error, done = (await client.rest())[-2:]
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_failed", "broken")
    assert done["type"] == "done"
    assert client.closed[0] == 1011
