"""``WS /ws``, the socket of server B, as its clients know it; section B of the protocols."""

import asyncio

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.errors import EngineFailed
from tests.unit.api.compat.vosk_client import (
    EOF,
    LAST,
    LONGEST_S,
    SECOND,
    SILENT,
    converse,
    results,
    text,
    times,
    words,
)
from tests.unit.fake_models import FakeModels
from tests.unit.fake_service import client_of
from tests.unit.live_audio import exact, frames, silence, speak
from tests.unit.live_service import STREAMING, serving

# Server B: one conversation


async def test_a_recognised_piece_has_words_and_their_text(quick):
    (answer,) = await converse(quick, exact(silence(1), speak(7, 8)), config={"sample_rate": 16000})
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
    [
        b"",
        exact(silence(40)),
        exact(speak(*range(1, 100))),
        exact(silence(20), speak(1), silence(20)),
    ],
    ids=["nothing", "silence", "speech", "both"],
)
async def test_exactly_one_message_is_the_last_then_the_server_closes(quick, audio, wait):
    answers = await converse(quick, audio, config={"wait_null_answers": wait})
    results(answers)
    silent = [answer for answer in answers if answer["silence"]]
    if not wait:
        assert silent in ([], [LAST])


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
    assert quick.models.recognised == []


async def test_without_a_configuration_the_rate_is_that_of_the_models(quick):
    assert times(words(await converse(quick, exact(silence(3), speak(5))))) == [3.0, 3.3]


async def test_the_end_may_come_first(quick):
    assert await converse(quick, b"") == [LAST]
    assert await converse(quick, b"", config={"sample_rate": 8000}) == [LAST]


@pytest.mark.parametrize("end", ['{"eof": 1}', '{"eof" : true}', "eof"])
async def test_any_text_with_eof_is_the_end(quick, end):
    async with quick.connect("/ws") as client:
        await client.send(exact(speak(1)), end)
        assert text(await client.rest()) == "1"


@pytest.mark.parametrize("end", [b'{"eof" : 1}', b' {"eof":true}\n'])
async def test_the_end_may_come_in_a_binary_frame(quick, end):
    async with quick.connect("/ws") as client:
        await client.send(exact(speak(1)), end)
        assert text(await client.rest()) == "1"
    async with quick.connect("/ws") as client:
        await client.send(end)
        assert await client.rest() == [LAST]
    async with quick.connect("/vosk") as client:
        await client.send({"config": {"sample_rate": 16_000}}, exact(speak(1)), end)
        partial, last = await client.rest()
    assert ("partial" in partial, last["text"]) == (True, "1")


# Server B: the cut in a pause


@pytest.mark.parametrize("frame", [640, 6401, 8 * SECOND, 100 * SECOND])
async def test_the_model_never_gets_more_than_15_seconds_and_every_word_once(quick, frame):
    numbers = [str(n) for n in range(1, 200)]
    answers = await converse(quick, exact(speak(*range(1, 200))), frame=frame)
    assert text(answers).split() == numbers
    assert quick.models.longest_s <= LONGEST_S
    assert len(results(answers)) < 80 / 10


async def test_speech_without_a_pause_is_cut_all_the_same_and_no_sample_is_lost(quick):
    audio = speak(*range(1, 134), gap_s=0.0)
    await converse(quick, exact(audio))
    assert quick.models.longest_s <= LONGEST_S
    assert np.array_equal(np.concatenate(quick.models.recognised), audio)


async def test_the_cut_lies_in_a_pause_between_speech(quick):
    spoken_s, pause_s = 3.6, 0.3
    sentences = [speak(*range(n, n + 12), gap_s=0.0) for n in range(1, 240, 12)]
    await converse(quick, exact(*[part for s in sentences for part in (s, silence(pause_s))]))
    ends_s = np.cumsum([len(samples) for samples in quick.models.recognised]) / SAMPLE_RATE
    assert len(ends_s) >= 5
    for end_s in ends_s[:-1]:
        assert spoken_s < end_s % (spoken_s + pause_s) < spoken_s + pause_s


async def test_word_times_do_not_drift(quick):
    minute = np.concatenate((speak(*range(1, 11)), silence(56)))
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
        await client.send(exact(silence(1), speak(3)), EOF)
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
        '{"config": {"sample_rate": NaN}}',
        '{"config": ' + "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("when", ["first", "later"])
async def test_a_configuration_that_cannot_be_read_is_answered_with_an_error(quick, broken, when):
    async with quick.connect("/ws") as client:
        if when == "later":
            await client.send(exact(silence(1)))
        await client.send(broken)
        complaint = await client.receive()
        await client.send({"config": {"sample_rate": 16_000}}, exact(speak(4)), EOF)
        answers = await client.rest()
    assert complaint["error"].startswith("Can`t parse message - ")
    assert complaint | {"error": None} == SILENT | {"silence": False}
    assert text(answers) == "4"


@pytest.mark.parametrize("garbage", ["hello", "{}", '{"confi": 1}', "null", "\0"])
async def test_a_text_that_is_nothing_is_not_answered(quick, garbage):
    async with quick.connect("/ws") as client:
        await client.send(garbage, {"config": {}}, garbage, exact(speak(4)), garbage, EOF)
        assert text(await client.rest()) == "4"


@pytest.mark.parametrize(
    ("path", "config", "expected"),
    [
        ("/ws?model=no-such-model", {}, "no-such-model"),
        ("/ws", {"model": "no-such-model"}, "no-such-model"),
        ("/ws", {"model": "demo-gigaam-emo"}, "transcribes nothing"),
        ("/ws", {"model": "demo-pyannote"}, "not served"),
    ],
)
async def test_a_model_that_is_not_served_ends_the_stream_with_the_reason(
    quick, path, config, expected
):
    async with quick.connect(path) as client:
        await client.send({"config": config}, exact(speak(1)))
        (answer,) = await client.rest()
    assert expected in answer["error"]
    assert answer | {"error": None} == LAST | {"silence": False}
    assert client.closed[0] == 1008


async def test_a_failure_of_the_model_is_the_last_message(quick):
    quick.models.failure = EngineFailed("broken")
    async with quick.connect("/ws") as client:
        await client.send(exact(speak(*range(1, 60))), EOF)
        answers = await client.rest()
    assert results(answers) == []
    assert answers[-1]["error"] == "broken"
    assert client.closed[0] == 1011


async def test_more_audio_than_may_wait_is_refused():
    models = FakeModels()
    models.activity.shut()
    async with serving(models, max_pending_mb=1) as service:
        for path in ("/ws", "/vosk"):
            async with service.connect(path) as client:
                await client.send(bytes(1024**2 + 2))
                (answer,) = await client.rest()
            assert "wait to be recognised" in answer["error"]
            assert client.closed[0] == 1013
        await service.idle()
        service.assert_free()


async def test_the_configuration_may_come_long_before_the_audio():
    async with (
        serving(FakeModels(), start_timeout_s=1.0) as service,
        service.connect("/ws") as client,
    ):
        await client.send({"config": {}})
        await asyncio.sleep(1.1)  # longer than the first frame is waited for
        await client.send(exact(speak(1)), EOF)
        assert text(await client.rest()) == "1"


# Server B: clients that vanish


@pytest.mark.parametrize("path", ["/ws", f"/ws?model={STREAMING}", "/vosk"])
@pytest.mark.parametrize("moment", ["at once", "configured", "opening", "received", "recognised"])
async def test_a_client_that_vanishes_leaves_nothing_behind(quick, path, moment):
    models = quick.models
    if moment == "opening":
        models.opening.shut()
    if moment == "recognised":
        models.transcribing.shut()
        models.feeding.shut()
    async with quick.connect(path) as client:
        if moment != "at once":
            await client.send({"config": {"sample_rate": 16_000}})
        if moment in ("opening", "received", "recognised"):
            await client.send(*frames(exact(speak(*range(1, 60))), 8000))
            await models.activity.reached.wait() if moment != "opening" or path == "/ws" else None
        if moment == "recognised":
            gate = models.transcribing if path == "/ws" else models.feeding
            await gate.reached.wait()
        client.drop()
    await quick.idle()
    quick.assert_free()


# The small HTTP routes of server B


async def test_the_routes_beside_the_socket_answer_as_those_of_server_b():
    async with serving(FakeModels(), whole=True) as service, client_of(service.app) as client:
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
