"""``WS /vosk``, the socket of the classic vosk-server."""

import json

import pytest
from websockets.exceptions import InvalidStatus

from api.compat.vosk_socket import Config, changed
from speech.errors import EngineFailed
from tests.unit.api.compat.vosk_client import EOF, SECOND, converse, errors
from tests.unit.fake_models import FakeModels
from tests.unit.live_audio import exact, frames, pcm, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, serving

RATE = {"sample_rate": 16_000}


async def lockstep(service, audio, *, config=None, frame=SECOND // 5):
    """A classic client: each frame is answered before the next is sent, then the last answer."""
    answers = []
    async with service.connect("/vosk") as client:
        await client.send({"config": RATE | (config or {})})
        for piece in frames(audio, frame):
            await client.send(piece)
            answers.append(await client.receive())
        await client.send(EOF)
        last = await client.rest()
    assert len(last) == 1
    assert client.closed[0] == 1000
    return answers, last[0]


TWO = exact(silence(0.5), speak(1, 2, 3), silence(1.5), speak(4, 5))


async def test_each_frame_has_one_answer_and_the_end_has_the_last(quick):
    answers, last = await lockstep(quick, TWO)
    assert len(answers) == -(-len(TWO) // (SECOND // 5))
    received = [a for a in answers if "text" in a]
    assert [a["text"] for a in received] == ["1 2 3"]
    assert received[0]["result"][0] == {"conf": 1.0, "start": 0.5, "end": 0.8, "word": "1"}
    assert last["text"] == "4 5"
    partials = [a["partial"] for a in answers if "text" not in a]
    assert all(list(a) == ["partial"] for a in answers if "text" not in a)
    assert {"", "1", "1 2", "1 2 3", "4"} <= set(partials)


async def test_a_client_that_does_not_wait_gets_as_many_answers(quick):
    answers = await converse(quick, TWO, path="/vosk", config=RATE, frame=1000)
    assert len(answers) == -(-len(TWO) // 1000) + 1
    received = [answer["text"] for answer in answers if "text" in answer]
    assert " ".join(received) == "1 2 3 4 5"
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
    assert quick.models.opened == [(STREAMING, taken)]


@pytest.mark.parametrize("path", ["/ws", "/vosk"])
@pytest.mark.parametrize("given", ["5", "{}", '"one"', "[1]", "[" * 100_000, 5, [5], {}])
async def test_what_is_no_list_of_phrases_is_answered_with_an_error(quick, path, given):
    async with quick.connect(path) as client:
        await client.send({"config": RATE | {"phrase_list": given}})
        answer = await client.receive()
        assert answer["error"].startswith("Can`t parse message - ")
        await client.send(exact(speak(1)), EOF)
        assert "1" in json.dumps(await client.rest())


async def test_the_end_without_audio_has_an_empty_text(quick):
    assert await lockstep(quick, b"") == ([], {"text": ""})


async def test_a_configuration_that_cannot_be_read_is_answered_with_an_error(quick):
    async with quick.connect("/vosk") as client:
        await client.send('{"config": {"sample_rate": "fast"}}')
        assert list(await client.receive()) == ["error"]
        await client.send({"config": RATE})
        await client.send(exact(speak(1)), EOF)
        assert (await client.rest())[-1]["text"] == "1"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"max_alternatives": 20}, {"max_alternatives": 10}),
        ({"max_alternatives": -1}, {"max_alternatives": 0}),
        ({"max_alternatives": "3"}, {"max_alternatives": 3}),
        ({"max_alternatives": 2.5}, {"max_alternatives": 2}),
        ({"sample_rate": 4000}, {"sample_rate": 8000}),
        ({"sample_rate": 10**400}, {"sample_rate": 48_000}),
        ({"sample_rate": "16000"}, {"sample_rate": 16_000}),
        ({"words": 0}, {"words": False}),
        ({"words": 2}, {"words": True}),
        ({"sample_rate": None, "words": None, "phrase_list": None}, {}),
    ],
)
def test_a_value_out_of_bounds_becomes_the_nearest_and_the_others_stay(given, taken):
    before = Config(sample_rate=11_025, wait_null_answers=False)
    after, fault = changed(before, json.dumps({"config": given}))
    assert (after, fault) == (before.model_copy(update=taken), "")


def test_a_value_that_cannot_be_read_leaves_the_others_of_its_message():
    text = '{"config": {"max_alternatives": "many", "sample_rate": 11025, "words": 0}}'
    after, fault = changed(Config(), text)
    assert after == Config(sample_rate=11_025, words=False)
    assert "max_alternatives" in fault


async def test_the_rate_of_a_configuration_counts_beside_too_many_alternatives(quick):
    answers, last = await lockstep(quick, TWO, config={"max_alternatives": 20, "words": 0})
    texts = [a["alternatives"][0]["text"] for a in (*answers, last) if "alternatives" in a]
    assert texts == ["1 2 3", "4 5"]


@pytest.mark.parametrize(
    ("path", "seconds"),
    [
        ("/vosk", 1.0),
        ("/vosk?sample_rate=16000", 0.5),
        ("/vosk?sample_rate=1", 1.0),
        ("/vosk?sample_rate=", 1.0),
        ("/asr/ru?sample_rate=16000", 0.5),
    ],
)
async def test_the_rate_is_that_of_vosk_server_unless_the_url_names_one(quick, path, seconds):
    async with quick.connect(path) as client:
        await client.send(exact(silence(0.5), speak(1)), EOF)
        *_, last = await client.rest()
    assert last["result"][0]["start"] == pytest.approx(seconds, abs=0.01)


async def test_the_rate_of_clients_that_name_none_is_a_setting():
    async with serving(FakeModels(), vosk={"sample_rate": 16_000}) as service:
        answers = await converse(service, exact(speak(1, 2)), path="/vosk")
    assert answers[-1]["text"] == "1 2"


async def test_a_rate_in_the_url_that_is_no_number_is_refused_in_the_handshake(quick):
    with pytest.raises(InvalidStatus) as refused:
        async with quick.connect("/vosk?sample_rate=fast"):
            pass
    assert refused.value.response.status_code == 422
    assert json.loads(refused.value.response.body)["detail"].startswith("sample_rate: ")


@pytest.mark.parametrize("model", [STREAMING, UTTERANCES])
async def test_a_reset_is_answered_with_the_text_so_far_and_the_stream_continues(quick, model):
    async with quick.connect(f"/vosk?sample_rate=16000&model={model}") as client:
        await client.send(exact(speak(1, 2)))
        assert "partial" in await client.receive()
        await client.send({"reset": 1})
        assert (await client.receive())["text"] == "1 2"
        await client.send({"reset": 1})
        assert await client.receive() == {"text": ""}
        await client.send(exact(speak(3)))
        assert "partial" in await client.receive()
        await client.send(EOF)
        (last,) = await client.rest()
    assert last["text"] == "3"
    assert last["result"][0]["start"] == pytest.approx(0.8)
    assert client.closed[0] == 1000


async def test_answers_keep_the_order_of_the_messages_of_a_client_that_does_not_wait(quick):
    audio = exact(speak(1, 2))
    async with quick.connect("/vosk?sample_rate=16000") as client:
        await client.send(audio, '{"reset" : 1}', audio, audio, b'{"reset": 1}', audio, EOF)
        answers = await client.rest()
    assert [next(iter(a.keys() & {"partial", "text"})) for a in answers] == [
        *("partial", "text", "partial", "partial", "text", "partial", "text"),
    ]
    texts = [answer["text"] for answer in answers if "text" in answer]
    assert texts == ["1 2", "1 2 1 2", "1 2"]


@pytest.mark.parametrize(
    "message",
    [
        *(b"", b"\0", "hello", "{}", "null", "[1]", '{"reset": 1}', "", '{"config": 1}'),
        *('{"config": {"words": []}}', b"x" * 100_001),
    ],
    ids=lambda message: str(message[:20]),
)
@pytest.mark.parametrize("begun", [False, True])
async def test_every_message_has_exactly_one_answer_whatever_is_in_it(quick, message, begun):
    async with quick.connect("/vosk") as client:
        if begun:
            await client.send(b"\0\0")
            await client.receive()
        for _ in range(2):
            await client.send(message)
            await client.receive()
        await client.send(EOF)
        assert len(await client.rest()) == 1
    assert client.closed[0] == 1000


async def test_a_configuration_has_no_answer(quick):
    async with quick.connect("/vosk") as client:
        await client.send({"config": {}}, b'{"config": {"words": 0}}')
        await client.send(b"\0\0", {"config": {"max_alternatives": 99}}, EOF)
        partial, last = await client.rest()
    assert (partial, last) == ({"partial": ""}, {"alternatives": [{"confidence": 1.0, "text": ""}]})


async def test_a_failed_stream_has_one_error_and_no_text_after_it(quick):
    quick.models.failure = EngineFailed("broken")
    async with quick.connect(f"/vosk?sample_rate=16000&model={UTTERANCES}") as client:
        await client.send(exact(speak(1), silence(1), speak(2)))
        answers = await client.rest()
    assert answers[-1] == {"error": "broken"}
    assert [list(answer) for answer in answers[:-1]] in ([], [["partial"]])


async def test_a_full_model_makes_the_results_and_the_streaming_one_the_partials(quick):
    answers, last = await lockstep(quick, TWO, config={"model": UTTERANCES})
    received = [a["text"] for a in (*answers, last) if "text" in a]
    assert " ".join(received) == "1 2 3 4 5"
    assert {"1", "1 2"} <= {a["partial"] for a in answers if "partial" in a}
    assert [options.model for options in quick.models.asked] == [UTTERANCES] * 2


async def test_a_classic_client_of_the_demo_models(demo, spoken, speech):
    answers, last = await lockstep(demo, pcm(speech))
    received = [a["text"] for a in (*answers, last) if "text" in a]
    assert len(received) >= len(spoken)
    assert errors([clip.text for clip in spoken], " ".join(received)) < 0.3
