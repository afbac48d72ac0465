"""The sockets of the two Vosk servers, as their clients know them; section B of the protocols."""

import asyncio
import itertools
import json

import numpy as np
import pytest
import soxr

from speech.audio import SAMPLE_RATE
from speech.errors import EngineFailed
from tests.unit.fake_service import client_of
from tests.unit.heldout import clips, conversation, plain, wer
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    Ears,
    exact,
    frames,
    pcm,
    say,
    serving,
    silence,
)

EOF = '{"eof" : 1}'
SECOND = 2 * SAMPLE_RATE
"""Bytes of PCM16 at the rate of the models."""
LONGEST_S = 15.0


@pytest.fixture(scope="module")
def spoken(demo_audio):
    """Sentences in two languages, each with a pause of a second behind it."""
    return clips(demo_audio)


@pytest.fixture(scope="module")
def speech(spoken):
    return conversation(spoken, seconds=20)


async def converse(service, audio, *, path="/ws", config=None, frame=8000):
    """All answers to a stream, from the configuration to the close."""
    async with service.connect(path) as client:
        if config is not None:
            await client.send({"config": config})
        await client.send(*frames(audio, frame), EOF)
        answers = await client.rest()
    assert client.closed[0] == 1000
    return answers


def results(answers):
    """What was recognised, of answers that are all as server B shapes them."""
    for answer in answers:
        assert list(answer) == ["silence", "data", "error", "last_message"]
        assert answer["silence"] is (answer["data"] == "" and answer["error"] is None)
    assert [a["last_message"] for a in answers] == [False] * (len(answers) - 1) + [True]
    return [a["data"] for a in answers if a["data"]]


def words(answers):
    found = [word for result in results(answers) for word in result["result"]]
    assert all(list(word) == ["conf", "start", "end", "word"] for word in found)
    return found


def text(answers):
    return " ".join(result["text"] for result in results(answers))


def times(found):
    return [edge for word in found for edge in (word["start"], word["end"])]


def errors(said, heard):
    return wer(" ".join(said), heard)


SILENT = {"silence": True, "data": "", "error": None, "last_message": False}
LAST = SILENT | {"last_message": True}


# Server B: one conversation


async def test_a_recognised_piece_has_words_and_their_text(quick):
    (answer,) = await converse(quick, exact(silence(1), say(7, 8)), config={"sample_rate": 16000})
    assert answer == {
        "silence": False,
        "data": {
            "result": [
                {"conf": 1.0, "start": 1.0, "end": 1.3, "word": "7"},
                {"conf": 1.0, "start": 1.4, "end": 1.7, "word": "8"},
            ],
            "text": "7 8",
        },
        "error": None,
        "last_message": True,
    }


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(
    "audio",
    [b"", exact(silence(40)), exact(say(*range(1, 100))), exact(silence(20), say(1), silence(20))],
    ids=["nothing", "silence", "speech", "both"],
)
async def test_exactly_one_message_is_the_last_then_the_server_closes(quick, audio, wait):
    answers = await converse(quick, audio, config={"wait_null_answers": wait})
    results(answers)
    quiet = [answer for answer in answers if answer["silence"]]
    if not wait:
        assert quiet in ([], [LAST])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"wait_null_answers": True}, [SILENT, SILENT, LAST]),
        ({"wait_null_answers": False}, [LAST]),
        ({}, [SILENT, SILENT, LAST]),
        (None, [SILENT, SILENT, LAST]),
    ],
)
async def test_silence_is_answered_only_if_the_client_waits_for_it(quick, config, expected):
    assert await converse(quick, exact(silence(40)), config=config) == expected
    assert quick.ears.heard == []


async def test_without_a_configuration_the_rate_is_that_of_the_models(quick):
    assert times(words(await converse(quick, exact(silence(3), say(5))))) == [3.0, 3.3]


async def test_the_end_may_come_first(quick):
    assert await converse(quick, b"") == [LAST]
    assert await converse(quick, b"", config={"sample_rate": 8000}) == [LAST]


@pytest.mark.parametrize("end", ['{"eof": 1}', '{"eof" : true}', "eof"])
async def test_any_text_with_eof_is_the_end(quick, end):
    async with quick.connect("/ws") as client:
        await client.send(exact(say(1)), end)
        assert text(await client.rest()) == "1"


# Server B: the cut in a pause


@pytest.mark.parametrize("frame", [640, 6401, 8 * SECOND, 100 * SECOND])
async def test_the_model_never_hears_more_than_15_seconds_and_every_word_once(quick, frame):
    numbers = [str(n) for n in range(1, 200)]
    answers = await converse(quick, exact(say(*range(1, 200))), frame=frame)
    assert text(answers).split() == numbers
    assert quick.ears.longest_s <= LONGEST_S
    assert len(results(answers)) < 80 / 10


async def test_speech_without_a_pause_is_cut_all_the_same_and_no_sample_is_lost(quick):
    audio = say(*range(1, 134), gap_s=0.0)
    await converse(quick, exact(audio))
    assert quick.ears.longest_s <= LONGEST_S
    assert np.array_equal(np.concatenate(quick.ears.heard), audio)


async def test_the_cut_lies_in_a_pause_between_speech(quick):
    spoken_s, pause_s = 3.6, 0.3
    sentences = [say(*range(n, n + 12), gap_s=0.0) for n in range(1, 240, 12)]
    await converse(quick, exact(*[part for s in sentences for part in (s, silence(pause_s))]))
    ends_s = np.cumsum([len(samples) for samples in quick.ears.heard]) / SAMPLE_RATE
    assert len(ends_s) >= 5
    for end_s in ends_s[:-1]:
        assert spoken_s < end_s % (spoken_s + pause_s) < spoken_s + pause_s


async def test_word_times_do_not_drift(quick):
    minute = np.concatenate((say(*range(1, 11)), silence(56)))
    found = words(await converse(quick, exact(np.tile(minute, 10)), frame=SECOND))
    assert times(found) == sorted(times(found))
    expected = [60 * n + 0.4 * word for n in range(10) for word in range(10)]
    assert [word["start"] for word in found] == pytest.approx(expected, abs=1e-3)


# Server B: what clients send that they should not


async def test_two_configurations_change_what_they_name_and_keep_the_rest(quick):
    async with quick.connect("/ws") as client:
        await client.send({"config": {"sample_rate": 8000}})
        await client.send({"config": {"wait_null_answers": False, "nonsense": 1}})
        await client.send(exact(silence(10)))  # 20 s at 8 kHz
        await client.send({"config": {"sample_rate": 16_000}})
        await client.send(exact(silence(1), say(3)), EOF)
        answers = await client.rest()
    assert times(words(answers)) == [21.0, 21.3]
    assert not any(answer["silence"] for answer in answers)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "config",
        '{"config": 1}',
        '{"config": {"sample_rate": "fast"}}',
        '{"config": {"sample_rate": 100}}',
        '{"config": {"sample_rate": NaN}}',
        '{"config": ' + "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("when", ["first", "later"])
async def test_what_cannot_be_read_is_told_and_the_stream_goes_on(quick, broken, when):
    async with quick.connect("/ws") as client:
        if when == "later":
            await client.send(exact(silence(1)))
        await client.send(broken)
        complaint = await client.receive()
        await client.send({"config": {"sample_rate": 16_000}}, exact(say(4)), EOF)
        answers = await client.rest()
    assert complaint["error"].startswith("Can`t parse message - ")
    assert complaint | {"error": None} == SILENT | {"silence": False}
    assert text(answers) == "4"


@pytest.mark.parametrize("garbage", ["hello", "{}", '{"confi": 1}', "null", "\0"])
async def test_a_text_that_is_nothing_is_not_answered(quick, garbage):
    async with quick.connect("/ws") as client:
        await client.send(garbage, {"config": {}}, garbage, exact(say(4)), garbage, EOF)
        assert text(await client.rest()) == "4"


@pytest.mark.parametrize(
    ("path", "config", "said"),
    [
        ("/ws?model=no-such-model", {}, "no-such-model"),
        ("/ws", {"model": "no-such-model"}, "no-such-model"),
        ("/ws", {"model": "demo-gigaam-emo"}, "hears no words"),
        ("/ws", {"model": "demo-pyannote"}, "not served"),
    ],
)
async def test_a_model_that_is_not_served_ends_the_stream_with_the_reason(
    quick, path, config, said
):
    async with quick.connect(path) as client:
        await client.send({"config": config}, exact(say(1)))
        (answer,) = await client.rest()
    assert said in answer["error"]
    assert answer | {"error": None} == LAST | {"silence": False}
    assert client.closed[0] == 1008


async def test_a_failure_of_the_model_is_the_last_message(quick):
    quick.ears.failure = EngineFailed("broken")
    async with quick.connect("/ws") as client:
        await client.send(exact(say(*range(1, 60))), EOF)
        answers = await client.rest()
    assert results(answers) == []
    assert answers[-1]["error"] == "broken"
    assert client.closed[0] == 1011


async def test_more_audio_than_may_wait_is_refused():
    ears = Ears()
    ears.activity.shut()
    async with serving(ears, max_pending_mb=1) as service:
        for path in ("/ws", "/vosk"):
            async with service.connect(path) as client:
                await client.send(bytes(1024**2 + 2))
                (answer,) = await client.rest()
            assert "wait to be recognised" in answer["error"]
            assert client.closed[0] == 1013
        await service.idle()
        service.assert_free()


async def test_the_configuration_may_come_long_before_the_audio():
    async with serving(Ears(), start_timeout_s=1.0) as service, service.connect("/ws") as client:
        await client.send({"config": {}})
        await asyncio.sleep(1.1)  # longer than the first frame is waited for
        await client.send(exact(say(1)), EOF)
        assert text(await client.rest()) == "1"


# Server B: clients that vanish


@pytest.mark.parametrize("path", ["/ws", f"/ws?model={STREAMING}", "/vosk"])
@pytest.mark.parametrize("moment", ["at once", "configured", "opening", "heard", "recognised"])
async def test_a_client_that_vanishes_leaves_nothing_behind(quick, path, moment):
    ears = quick.ears
    if moment == "opening":
        ears.opening.shut()
    if moment == "recognised":
        ears.transcribing.shut()
        ears.feeding.shut()
    async with quick.connect(path) as client:
        if moment != "at once":
            await client.send({"config": {"sample_rate": 16_000}})
        if moment in ("opening", "heard", "recognised"):
            await client.send(*frames(exact(say(*range(1, 60))), 8000))
            await ears.activity.reached.wait() if moment != "opening" or path == "/ws" else None
        if moment == "recognised":
            gate = ears.transcribing if path == "/ws" else ears.feeding
            await gate.reached.wait()
        client.drop()
    await quick.idle()
    quick.assert_free()


# Server B: the demo models


async def test_the_size_of_frames_changes_no_word(demo, speech):
    first, *others = [
        words(await converse(demo, pcm(speech), frame=frame))
        for frame in (SECOND // 50, 3201, 9999, 8 * SECOND)
    ]
    assert len(first) > 20
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("/ws", {}),
        ("/ws?model=demo-gigaam", {}),
        ("/ws", {"model": "demo-gigaam"}),
        ("/ws?model=demo-vosk", {"model": "demo-whisper"}),
    ],
)
async def test_any_model_of_words_may_be_chosen(demo, spoken, speech, path, config):
    asked = len(demo.ports.transcriber.seconds)
    answers = await converse(demo, pcm(speech), path=path, config=config)
    assert errors([clip.text for clip in spoken], text(answers)) < 0.3
    assert text(answers) == text(answers).lower()
    assert not set(".,!?") & set(text(answers))
    assert max(demo.ports.transcriber.seconds[asked:]) <= LONGEST_S


async def test_telephone_audio_is_recognised_at_its_own_rate(demo, spoken, speech):
    narrow = soxr.resample(speech, SAMPLE_RATE, 8000)
    answers = await converse(demo, pcm(narrow), config={"sample_rate": 8000})
    assert errors([clip.text for clip in spoken], text(answers)) < 0.3


async def test_words_are_where_they_were_spoken_for_more_than_a_minute(demo, spoken):
    audio = conversation(spoken, seconds=65)
    found = words(await converse(demo, pcm(audio), frame=SECOND))
    assert times(found) == sorted(times(found))
    starts, begin = [], 0.0
    for clip in itertools.cycle(spoken):
        starts += [(plain(word), begin + start) for word, start, _ in clip.words]
        begin += len(clip.samples) / SAMPLE_RATE + 1.0
        if begin * SAMPLE_RATE >= len(audio):
            break
    late = [
        min((at - word["start"] for name, at in starts if name == word["word"]), key=abs, default=9)
        for word in found
    ]
    first, second = np.array_split([seconds for seconds in late if abs(seconds) < 1], 2)
    assert len(first) + len(second) > 0.7 * len(starts)
    assert abs(np.median(first)) < 0.2
    assert abs(np.median(second) - np.median(first)) < 0.05


async def test_noise_is_no_word_and_no_trouble(demo):
    noise = np.random.default_rng(1).normal(0, 0.01, 20 * SAMPLE_RATE).clip(-1, 1)
    results(await converse(demo, pcm(noise)))


# Server B: the small streaming model


async def test_a_streaming_model_sends_the_text_so_far_whenever_it_grows(quick):
    said = ""
    async with quick.connect(f"/ws?model={STREAMING}") as client:
        await client.send({"config": {"wait_null_answers": False}})
        for number, pause_s in ((1, 0.0), (2, 0.0), (3, 2.0), (4, 0.0), (5, 1.0), (6, 0.0)):
            await client.send(*frames(exact(say(number), silence(pause_s)), 3200))
            said = f"{said} {number}".strip()
            answer = SILENT | {"silence": False, "data": said}
            assert await client.receive() == answer
        await client.send(EOF)
        assert await client.rest() == [answer | {"last_message": True}]


async def test_poured_in_the_text_of_a_streaming_model_never_shrinks(quick):
    audio = exact(*[part for n in range(1, 40) for part in (say(n), silence(n % 3))])
    told = results(await converse(quick, audio, path=f"/ws?model={STREAMING}", frame=3200))
    assert all(later.startswith(before) for before, later in itertools.pairwise(told))
    assert told[-1].split() == [str(n) for n in range(1, 40)]


@pytest.mark.parametrize("wait", [True, False])
async def test_a_streaming_model_answers_silence_like_the_full_one(quick, wait):
    config = {"model": STREAMING, "wait_null_answers": wait}
    answers = await converse(quick, exact(silence(20)), config=config)
    assert answers[-1] == LAST
    assert set(map(json.dumps, answers[:-1])) == ({json.dumps(SILENT)} if wait else set())


async def test_the_streaming_demo_model_recognises(demo, spoken, speech):
    told = results(await converse(demo, pcm(speech), path=f"/ws?model={STREAMING}", frame=3200))
    assert errors([clip.text for clip in spoken], told[-1]) < 0.3


# The classic vosk-server


async def lockstep(service, audio, *, config=None, frame=SECOND // 5):
    """A classic client: each frame is answered before the next is sent, then the last answer."""
    answers = []
    async with service.connect("/vosk") as client:
        if config is not None:
            await client.send({"config": config})
        for piece in frames(audio, frame):
            await client.send(piece)
            answers.append(await client.receive())
        await client.send(EOF)
        last = await client.rest()
    assert len(last) == 1
    assert client.closed[0] == 1000
    return answers, last[0]


TWO = exact(silence(0.5), say(1, 2, 3), silence(1.5), say(4, 5))


async def test_each_frame_has_one_answer_and_the_end_has_the_last(quick):
    answers, last = await lockstep(quick, TWO, config={"sample_rate": 16_000})
    assert len(answers) == -(-len(TWO) // (SECOND // 5))
    told = [a for a in answers if "text" in a]
    assert [a["text"] for a in told] == ["1 2 3"]
    assert told[0]["result"][0] == {"conf": 1.0, "start": 0.5, "end": 0.8, "word": "1"}
    assert last["text"] == "4 5"
    partials = [a["partial"] for a in answers if "text" not in a]
    assert all(list(a) == ["partial"] for a in answers if "text" not in a)
    assert {"", "1", "1 2", "1 2 3", "4"} <= set(partials)


async def test_a_client_that_does_not_wait_gets_as_many_answers(quick):
    answers = await converse(quick, TWO, path="/vosk", frame=1000)
    assert len(answers) == -(-len(TWO) // 1000) + 1
    told = [answer["text"] for answer in answers if "text" in answer]
    assert " ".join(told) == "1 2 3 4 5"
    assert "text" in answers[-1]


async def test_results_may_be_asked_without_words(quick):
    answers, last = await lockstep(quick, TWO, config={"words": False})
    assert {"text": "1 2 3"} in answers
    assert last == {"text": "4 5"}


async def test_results_may_be_asked_with_alternatives(quick):
    answers, last = await lockstep(quick, TWO, config={"max_alternatives": 3, "words": False})
    assert {"alternatives": [{"confidence": 1.0, "text": "1 2 3"}]} in answers
    assert last == {"alternatives": [{"confidence": 1.0, "text": "4 5"}]}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["one two", "three", "[unk]"], "one two, three"),
        ('["one two", "three"]', "one two, three"),
        ("one two", "one two"),
        ([], None),
    ],
)
async def test_a_list_of_phrases_steers_the_model(quick, given, taken):
    await lockstep(quick, TWO, config={"phrase_list": given})
    assert quick.ears.opened == [(STREAMING, taken)]


@pytest.mark.parametrize("path", ["/ws", "/vosk"])
@pytest.mark.parametrize("given", ["5", "{}", '"one"', "[1]", "[" * 100_000, 5, [5], {}])
async def test_what_is_no_list_of_phrases_is_answered_with_an_error(quick, path, given):
    async with quick.connect(path) as client:
        await client.send({"config": {"phrase_list": given}})
        answer = await client.receive()
        assert answer["error"].startswith("Can`t parse message - ")
        await client.send(exact(say(1)), EOF)
        assert "1" in json.dumps(await client.rest())


async def test_the_end_without_audio_has_an_empty_text(quick):
    assert await lockstep(quick, b"") == ([], {"text": ""})


async def test_a_configuration_that_cannot_be_read_is_told(quick):
    async with quick.connect("/vosk") as client:
        await client.send('{"config": {"sample_rate": "fast"}}')
        assert list(await client.receive()) == ["error"]
        await client.send(exact(say(1)), EOF)
        assert (await client.rest())[-1]["text"] == "1"


async def test_a_full_model_makes_the_results_and_the_streaming_one_the_partials(quick):
    answers, last = await lockstep(quick, TWO, config={"model": UTTERANCES})
    told = [a["text"] for a in (*answers, last) if "text" in a]
    assert " ".join(told) == "1 2 3 4 5"
    assert {"1", "1 2"} <= {a["partial"] for a in answers if "partial" in a}
    assert [options.model for options in quick.ears.asked] == [UTTERANCES] * 2


async def test_a_classic_client_of_the_demo_models(demo, spoken, speech):
    answers, last = await lockstep(demo, pcm(speech), config={"sample_rate": 16_000})
    told = [a["text"] for a in (*answers, last) if "text" in a]
    assert len(told) >= len(spoken)
    assert errors([clip.text for clip in spoken], " ".join(told)) < 0.3


# The small HTTP routes of server B


async def test_the_routes_beside_the_socket_say_what_they_always_said():
    async with serving(Ears(), whole=True) as service, client_of(service.app) as client:
        alive = {"error": False, "error_description": None, "data": "is running"}
        assert (await client.get("/is_alive")).json() == alive
        root = (await client.get("/")).json()
        assert root["error"] is True
        assert root["data"] == "No_service_selected"
        assert root["comment"] == "try_addr: http://<host>:<port>/docs"
        advice = await client.post("/ws", json={"anything": 1})
        assert (advice.status_code, advice.json()) == (
            200,
            "Прочти инструкцию в Schemas - 'WebSocketModel'",
        )
        assert (await client.post("/ws", json=[1])).status_code == 422
        assert (await client.post("/ws")).status_code == 422
        document = (await client.get("/openapi.json")).text
    assert "last_message" in document
