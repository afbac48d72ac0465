"""OpenAI's own client against the demo graph: real words, in every form that it asks for."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.unit.heldout import plain, wer

WHISPER = "whisper-1"


@pytest.fixture
def client(demo: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> dict[str, str]:
    """What is spoken in the two dialogues."""
    found = {}
    for language in ("ru", "en"):
        reference = json.loads((demo_audio / f"dialogue-{language}.json").read_text("utf-8"))
        found[language] = plain(" ".join(turn["text"] for turn in reference["turns"]))
    return found


def dialogue(demo_audio: Path, language: str) -> Path:
    return demo_audio / f"dialogue-{language}.flac"


@pytest.mark.parametrize("language", ["ru", "en"])
def test_the_words_of_a_dialogue(client: OpenAI, demo_audio, spoken, language: str) -> None:
    answer: Any = client.audio.transcriptions.create(
        file=dialogue(demo_audio, language),
        model=WHISPER,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert wer(spoken[language], answer.text) < 0.15
    assert answer.language == language
    starts = [word.start for word in answer.words]
    assert starts == sorted(starts)
    assert answer.words[-1].end <= answer.duration
    assert answer.usage.seconds == pytest.approx(answer.duration, abs=1)


@pytest.mark.parametrize(("form", "sign"), [("text", ""), ("srt", " --> "), ("vtt", "WEBVTT")])
def test_texts_and_subtitles(client: OpenAI, demo_audio, spoken, form: Any, sign: str) -> None:
    answer = client.audio.transcriptions.create(
        file=dialogue(demo_audio, "en"), model=WHISPER, response_format=form
    )
    assert sign in answer
    assert plain(answer).count(spoken["en"].split()[0]) >= 1


def test_a_stream_has_the_text_piece_by_piece(client: OpenAI, demo_audio, spoken) -> None:
    events = list(
        client.audio.transcriptions.create(
            file=dialogue(demo_audio, "en"), model=WHISPER, stream=True
        )
    )
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    (done,) = [event for event in events if event.type == "transcript.text.done"]
    assert events[-1] is done
    assert len(deltas) > 1
    assert plain("".join(deltas)) == plain(done.text)
    assert wer(spoken["en"], done.text) < 0.15


def test_the_segments_have_their_speakers(client: OpenAI, demo_audio) -> None:
    answer: Any = client.audio.transcriptions.create(
        file=dialogue(demo_audio, "ru"),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
    )
    assert len({segment.speaker for segment in answer.segments}) == 2
    assert answer.text


async def test_many_requests_at_once_of_the_asynchronous_client(
    demo: str, demo_audio, spoken
) -> None:
    async with AsyncOpenAI(base_url=f"{demo}/v1", api_key="none", max_retries=0) as client:
        calls = [
            client.audio.transcriptions.create(
                file=dialogue(demo_audio, "en"), model="demo-vosk", response_format="json"
            )
            for _ in range(4)
        ]
        answers = await asyncio.gather(*calls)
    assert len({answer.text for answer in answers}) == 1
    assert wer(spoken["en"], answers[0].text) < 0.25


def test_errors_are_those_that_the_client_knows(client: OpenAI, demo_audio) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.audio.transcriptions.create(file=dialogue(demo_audio, "en"), model="gpt-9")
    with pytest.raises(openai.BadRequestError, match="not a readable audio or video file"):
        client.audio.transcriptions.create(file=("a.wav", b"nothing of the kind"), model=WHISPER)
    assert client.models.retrieve("demo-whisper").id in {model.id for model in client.models.list()}
