"""``WS /vosk``, the socket of the classic vosk-server."""

import json

import pytest

from tests.unit.api.compat.vosk_client import EOF, SECOND, converse, errors
from tests.unit.live_audio import exact, frames, pcm, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES


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


TWO = exact(silence(0.5), speak(1, 2, 3), silence(1.5), speak(4, 5))


async def test_each_frame_has_one_answer_and_the_end_has_the_last(quick):
    answers, last = await lockstep(quick, TWO, config={"sample_rate": 16_000})
    assert len(answers) == -(-len(TWO) // (SECOND // 5))
    received = [a for a in answers if "text" in a]
    assert [a["text"] for a in received] == ["1 2 3"]
    assert received[0]["result"][0] == {"conf": 1.0, "start": 0.5, "end": 0.8, "word": "1"}
    assert last["text"] == "4 5"
    partials = [a["partial"] for a in answers if "text" not in a]
    assert all(list(a) == ["partial"] for a in answers if "text" not in a)
    assert {"", "1", "1 2", "1 2 3", "4"} <= set(partials)


async def test_a_client_that_does_not_wait_gets_as_many_answers(quick):
    answers = await converse(quick, TWO, path="/vosk", frame=1000)
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
        await client.send({"config": {"phrase_list": given}})
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
        await client.send(exact(speak(1)), EOF)
        assert (await client.rest())[-1]["text"] == "1"


async def test_a_full_model_makes_the_results_and_the_streaming_one_the_partials(quick):
    answers, last = await lockstep(quick, TWO, config={"model": UTTERANCES})
    received = [a["text"] for a in (*answers, last) if "text" in a]
    assert " ".join(received) == "1 2 3 4 5"
    assert {"1", "1 2"} <= {a["partial"] for a in answers if "partial" in a}
    assert [options.model for options in quick.models.asked] == [UTTERANCES] * 2


async def test_a_classic_client_of_the_demo_models(demo, spoken, speech):
    answers, last = await lockstep(demo, pcm(speech), config={"sample_rate": 16_000})
    received = [a["text"] for a in (*answers, last) if "text" in a]
    assert len(received) >= len(spoken)
    assert errors([clip.text for clip in spoken], " ".join(received)) < 0.3
