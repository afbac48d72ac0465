"""The v1 stream of ``WS /v1/ws``, section D of the protocols."""

import pytest

from speech.audio import SAMPLE_RATE
from speech.errors import EngineFailed
from tests.unit.api.native_client import SECOND, errors, numbers
from tests.unit.live_audio import exact, frames, pcm, silence, speak
from tests.unit.live_service import STREAMING, UTTERANCES, WHISPER

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
    """The chunks for some audio, sent in frames of half a second as v1 clients do."""
    async with service.connect() as client:
        await client.send({"settings": {"tra": tra or {}, **settings}})
        await client.send(*frames(audio, SECOND // 2), end)
        received = await client.rest()
    assert client.closed == (1000, "")
    return received


@pytest.mark.parametrize(
    ("first", "expected"),
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
async def test_a_first_message_that_begins_nothing_is_answered_and_closed(quick, first, expected):
    async with quick.connect() as client:
        await client.send(first)
        (answer,) = await client.rest()
    assert list(answer) == ["error"]
    assert answer["error"].startswith(expected)
    assert len(answer["error"]) > len(expected) or expected.endswith("string.")
    assert client.closed[0] == 1000


async def test_a_chunk_has_the_shape_of_the_protocol(quick):
    (chunk,) = await chunks(quick, exact(silence(1), speak(7, 8), silence(1)))
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
        await client.send(REFERENCE, exact(speak(1)), b"")
        assert [chunk["text"] for chunk in await client.rest()] == ["1"]
    (options,) = quick.models.asked
    assert (options.model, options.language, options.best_of) == (WHISPER, None, 10)


@pytest.mark.parametrize("end", ["END_STREAM", "end_stream", "End_Stream", b""])
async def test_every_end_brings_the_last_words_and_closes(quick, end):
    received = await chunks(quick, exact(speak(1), silence(1), speak(2)), end=end)
    assert [chunk["text"] for chunk in received] == ["1", "2"]


async def test_a_stream_may_be_longer_than_a_window_of_whisper(quick):
    received = await chunks(quick, exact(speak(*range(1, 200))))
    assert " ".join(chunk["text"] for chunk in received) == numbers(1, 199)
    assert received[-1]["end"] > 60
    assert quick.models.longest_s <= 15


async def test_other_texts_are_nothing(quick):
    async with quick.connect() as client:
        await client.send({"settings": {"tra": {}}}, "hello", exact(speak(1)), "{}", b"")
        assert [chunk["text"] for chunk in await client.rest()] == ["1"]


async def test_words_are_left_out_when_they_are_not_wanted(quick):
    (chunk,) = await chunks(quick, exact(speak(1, 2)), tra={"word_timestamps": False})
    assert (chunk["text"], chunk["words"]) == ("1 2", [])


@pytest.mark.parametrize("audio", [b"", exact(silence(40))], ids=["nothing", "silence"])
async def test_silence_makes_no_chunk(quick, audio):
    assert await chunks(quick, audio) == []


async def test_any_model_of_words_may_be_named(quick):
    for model in (STREAMING, UTTERANCES):
        (chunk,) = await chunks(quick, exact(speak(1)), tra={"model": model})
        assert chunk["text"] == "1"
    assert [model for model, _ in quick.models.opened] == [STREAMING]
    assert [options.model for options in quick.models.asked] == [UTTERANCES]


async def test_a_failure_is_reported_and_closes(quick):
    quick.models.failure = EngineFailed("broken")
    assert await chunks(quick, exact(speak(1))) == [{"error": "Streaming error: broken"}]


async def test_the_whisper_of_the_demo_has_probabilities_of_words(demo, spoken, speech):
    received = await chunks(demo, pcm(speech))
    assert errors(spoken, [chunk["text"] for chunk in received]) < 0.3
    sure = [word["confidence"] for chunk in received for word in chunk["words"]]
    assert all(0 <= confidence <= 1 for confidence in sure)
    assert len(set(sure)) > len(sure) / 2
    (first,) = await chunks(demo, pcm(spoken[0].samples), tra={"word_timestamps": False})
    assert (first["text"], first["words"]) == (received[0]["text"], [])
    for chunk in received:
        assert "".join(word["word"] for word in chunk["words"]).strip() == chunk["text"]
        times = [edge for word in chunk["words"] for edge in (word["start"], word["end"])]
        assert times == sorted(times)
        assert chunk["start"] <= times[0]
        assert times[-1] <= chunk["end"]


async def test_each_chunk_has_its_emotion_on_request(demo, speech):
    received = await chunks(
        demo, pcm(speech[: 5 * SAMPLE_RATE]), tra={"model": UTTERANCES}, tasks=["emotion"]
    )
    assert received
    for chunk in received:
        assert set(chunk["emotional"]) == {"angry", "sad", "neutral", "positive"}
        assert sum(chunk["emotional"].values()) == pytest.approx(1, abs=1e-3)
