"""Settings of ``WS /v1/realtime``, in today's form and in the beta's, and the page about them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api.openai import realtime as realtime_module
from api.openai.realtime_settings import BetaSessionUpdate, SessionUpdate
from tests.unit.api.openai.realtime_client import (
    LOGPROBS,
    QUERY,
    TRANSCRIPTION,
    Event,
    answer,
    base64_of,
    feed,
    items,
    sdk,
    session,
    socket,
    transcripts,
    update,
)
from tests.unit.live_audio import exact, pcm, silence, speak
from tests.unit.live_service import (
    STREAMING,
    UTTERANCES,
    WHISPER,
    LiveService,
)

# Settings


async def test_an_update_changes_what_it_has_and_shows_what_takes_effect(
    quick: LiveService,
) -> None:
    async with socket(quick) as client:
        await answer(client, update(transcription={"model": WHISPER, "prompt": "Hi"}))
        session = {"type": "transcription", "include": [LOGPROBS]}
        await answer(client, {"type": "session.update", "session": session})
        received = await answer(
            client,
            update(
                format={"type": "audio/pcmu"},
                transcription={"language": "ru"},
                turn_detection={"type": "semantic_vad", "eagerness": "high"},
                noise_reduction={"type": "near_field"},
            ),
        )
        shown = received["session"]
        assert shown["include"] == [LOGPROBS]
        assert shown["audio"]["input"] == {
            "format": {"type": "audio/pcmu"},
            "transcription": {"model": WHISPER, "language": "ru", "prompt": "Hi"},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": 500,
            },
            "noise_reduction": None,
        }
        received = await answer(
            client, update(format=None, transcription=None, turn_detection=None)
        )
        shown = received["session"]["audio"]["input"]
        assert shown["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert shown["transcription"] == {"model": STREAMING, "language": None, "prompt": ""}
        assert shown["turn_detection"] is None


async def test_the_settings_reach_the_models(quick: LiveService) -> None:
    whisper = {"model": WHISPER, "language": "RU", "prompt": "Hello", "keywords": ["Ray", "Vosk"]}
    streaming = {"model": STREAMING, "languages": ["en", "ru"], "prompt": "Hello"}
    endpoint = {
        "type": "server_vad",
        "threshold": 0.3,
        "prefix_padding_ms": 500,
        "silence_duration_ms": 900,
        "create_response": False,
    }
    async with session(quick, transcription=whisper, turn_detection=endpoint) as connection:
        await feed(connection, exact(speak(1), silence(1.2)))
        await items(connection, 1)
        asked = quick.models.asked[-1]
        assert (asked.model, asked.language) == (WHISPER, "ru")
        assert (asked.initial_prompt, asked.hotwords) == ("Hello", "Ray, Vosk")
        (endpointing,) = quick.models.endpointing
        assert (endpointing.threshold, endpointing.end_threshold) == (0.3, 0.3)
        assert (endpointing.pre_roll_s, endpointing.silence_s) == (0.5, 0.9)
    async with session(quick, transcription=streaming) as connection:
        await feed(connection, exact(speak(1), silence(1)))
        await items(connection, 1)
    assert quick.models.opened == [(STREAMING, "Hello")]


async def test_settings_may_change_while_one_speaks(quick: LiveService) -> None:
    async with session(quick) as connection:
        await feed(connection, exact(speak(1, 2)))
        await connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {"transcription": {"model": UTTERANCES}, "turn_detection": None}
                },
            }
        )
        await feed(connection, exact(speak(3), silence(1), speak(4)))
        await connection.input_audio_buffer.commit()
        received = await items(connection, 2)
    assert transcripts(received) == ["1 2", "3 4"]
    assert {asked.model for asked in quick.models.asked} == {UTTERANCES}


async def test_an_update_that_changes_nothing_cuts_nothing(quick: LiveService) -> None:
    async with session(quick) as connection:
        await feed(connection, exact(speak(1, 2)))
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": {"noise_reduction": None}}}
        )
        await feed(connection, exact(speak(3), silence(1)))
        assert transcripts(await items(connection, 1)) == ["1 2 3"]


BETA_SESSION = {
    "input_audio_format": "pcm16",
    "input_audio_transcription": {"model": "whisper-1", "language": "en"},
    "turn_detection": None,
    "input_audio_noise_reduction": {"type": "near_field"},
    "include": [LOGPROBS],
}
# The beta


async def test_the_client_of_the_beta(quick: LiveService) -> None:
    async with (
        sdk(quick) as client,
        client.beta.realtime.connect(model="whisper-1", extra_query=QUERY) as connection,
    ):
        created: Event = await connection.recv()
        await connection.transcription_session.update(session=BETA_SESSION)  # type: ignore[arg-type]
        updated: Event = await connection.recv()
        await connection.input_audio_buffer.append(audio=base64_of(pcm(silence(1))))
        await connection.input_audio_buffer.commit()
        received = [await connection.recv() for _ in range(3)]
    assert (created.type, created.session["object"]) == (
        "transcription_session.created",
        "realtime.transcription_session",
    )
    shown = {name: getattr(updated.session, name) for name in ("input_audio_format", "include")}
    assert updated.type == "transcription_session.updated"
    assert shown == {"input_audio_format": "pcm16", "include": [LOGPROBS]}
    assert updated.session.input_audio_transcription.language == "en"
    assert updated.session.turn_detection is None
    assert [event.type for event in received] == [
        "input_audio_buffer.committed",
        "conversation.item.created",
        f"{TRANSCRIPTION}.completed",
    ]


async def test_the_form_of_the_beta_is_answered_in_it_without_its_header(
    quick: LiveService,
) -> None:
    async with socket(quick) as client:
        wanted = {"input_audio_format": "g711_alaw"}
        received = await answer(client, {"type": "transcription_session.update", "session": wanted})
    assert received["type"] == "transcription_session.updated"
    assert received["session"]["input_audio_format"] == "g711_alaw"


# The page


def test_the_page_names_every_setting_and_every_event_that_is_refused(repository: Path) -> None:
    page = (repository / "docs/api/realtime.md").read_text(encoding="utf-8")

    def fields(model: Any) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    yield from fields(inner)

    named = {*fields(SessionUpdate), *fields(BetaSessionUpdate), *realtime_module.NOT_SERVED}
    assert [name for name in named if not re.search(rf"[`.\"]{name}[`\"]", page)] == []
