"""The ports of the graph on handles: where a call is sent, with what, and how it fails."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError

from configs.catalogue import Catalogue
from deployments.runtime.handle_ports import (
    ServedDecoder,
    ServedDiarizer,
    ServedEmotions,
    ServedTranscriber,
)
from speech.audio import Audio
from speech.errors import ModelUnavailable, SpeechError, UnsupportedAudio
from speech.ports import DecodedAudio, DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import Diarization, Recognition, Segment, Span, Turn
from tests.unit.deployments.fake_handles import FakeDeployment
from tests.unit.sound_files import wav

AUDIO = DecodedAudio("a reference", 2.0)
RECOGNITION = Recognition((Segment(0.0, 1.0, " Hello"),), "en", 0.9)
DIARIZATION = Diarization((Turn(0.0, 1.0, "SPEAKER_00"),), ())
CALM = {"angry": 0.0, "sad": 0.0, "neutral": 1.0, "positive": 0.0}
SAMPLES = np.ones(16_000, np.float32)


def handle(**methods: Any) -> Any:
    return FakeDeployment(**methods)


def answering(value: object) -> Callable[..., Awaitable[object]]:
    async def method(*_: object) -> object:
        return value

    return method


def raising(error: Exception) -> Callable[..., Awaitable[object]]:
    async def method(*_: object) -> object:
        raise error

    return method


async def decode_noise(*_: object) -> AsyncIterator[object]:
    yield Audio(SAMPLES)
    yield DecodedAudio(None, 1.0, 2, ("odd file",))


def transcriber(job: str | None = None, **deployments: Any) -> ServedTranscriber:
    timeouts_s = dict.fromkeys(deployments, 10.0)
    return ServedTranscriber(Catalogue.load(), deployments, timeouts_s, job)


async def test_a_decoded_file_is_its_facts_and_a_reference() -> None:
    decoder = handle(decode=decode_noise)
    port = ServedDecoder(decoder, 10.0, "job_1")
    decoded = await port.decode(b"file", True, 1.5)
    assert decoder.decode.calls == [(b"file", True, 1.5, "job_1")]
    assert (decoded.duration, decoded.channels, decoded.warnings) == (1.0, 2, ("odd file",))
    assert not decoded.content.fetched
    assert (await decoded.content).mono is SAMPLES


async def test_a_short_wav_of_plain_samples_does_not_reach_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = handle(decode=decode_noise)
    stored: list[Audio] = []
    monkeypatch.setattr(ray, "put", lambda audio: stored.append(audio) or "a reference")
    file = wav(np.full(16_000, 16_384, np.int16), 16_000)
    decoded = await ServedDecoder(decoder, 10.0, plain_wav_s=1.0).decode(file, True, 1.0)
    assert decoded == DecodedAudio("a reference", 1.0)
    assert (stored[0].mono == 0.5).all()
    assert not decoder.decode.calls


@pytest.mark.parametrize(("plain_wav_s", "speedup"), [(0.9, 1.0), (0.0, 1.0), (1.0, 1.5)])
async def test_a_wav_beyond_the_bound_or_for_another_tempo_is_decoded(
    plain_wav_s: float, speedup: float
) -> None:
    decoder = handle(decode=decode_noise)
    file = wav(np.zeros(16_000, np.int16), 16_000)
    port = ServedDecoder(decoder, 10.0, plain_wav_s=plain_wav_s)
    await port.decode(file, False, speedup)
    assert len(decoder.decode.calls) == 1


async def test_a_file_that_kills_two_decoders_is_unsupported() -> None:
    async def die(*_: object) -> AsyncIterator[object]:
        raise ActorDiedError
        yield

    decoder = handle(decode=die)
    with pytest.raises(UnsupportedAudio, match="crashes the audio decoder"):
        await ServedDecoder(decoder, 10.0).decode(b"file", False, 1.0)
    assert len(decoder.decode.calls) == 2


@pytest.mark.parametrize(
    ("model", "family"), [("demo-whisper", "whisper"), ("demo-gigaam", "onnx_asr")]
)
async def test_a_recognition_runs_on_the_deployment_of_its_model(model: str, family: str) -> None:
    deployments = {
        name: handle(transcribe=answering(RECOGNITION.pack())) for name in ("whisper", "onnx_asr")
    }
    options = TranscribeOptions(model=model)
    found = await transcriber("job_1", **deployments).transcribe(AUDIO, options, 1)
    assert found == RECOGNITION
    assert deployments[family].transcribe.calls == [("a reference", options, 1, "job_1")]
    assert {name: d.routed for name, d in deployments.items() if d.routed} == {family: [model]}


def part(*times: float, **last: Any) -> dict[str, Any]:
    segments = (Segment(time, time + 1.0, f" {time:g}") for time in times)
    return Recognition(tuple(segments), **last).pack()


async def test_a_stream_runs_on_the_deployment_of_its_model_and_has_all_its_parts() -> None:
    async def recognise(*_: object) -> AsyncIterator[object]:
        yield part(0.0, 1.0)
        yield part(language="en", warnings=("odd",))

    deployment = handle(stream=recognise)
    options = TranscribeOptions(model="demo-vosk")
    parts = [p async for p in transcriber(onnx_asr=deployment).stream(AUDIO, options)]
    assert [s.text for p in parts for s in p.segments] == [" 0", " 1"]
    assert (parts[-1].language, parts[-1].warnings) == ("en", ("odd",))
    assert deployment.stream.calls == [("a reference", options)]
    assert deployment.routed == ["demo-vosk"]


async def test_a_stream_whose_replica_dies_continues_after_the_segments_it_had() -> None:
    lives = iter([2, 9])

    async def recognise(*_: object) -> AsyncIterator[object]:
        left = next(lives)
        for time in range(4):
            if time == left:
                raise ActorDiedError
            yield part(float(time))
        yield part(language="en")

    options = TranscribeOptions(model="demo-vosk")
    deployment = handle(stream=recognise)
    parts = [p async for p in transcriber(onnx_asr=deployment).stream(AUDIO, options)]
    assert [s.text for p in parts for s in p.segments] == [" 0", " 1", " 2", " 3"]
    assert parts[-1].language == "en"
    assert len(deployment.stream.calls) == 2


async def test_segments_that_a_replica_recognises_again_after_an_out_of_memory_come_once() -> None:
    async def recognise(*_: object) -> AsyncIterator[object]:
        for time in (0.0, 1.0, 0.0, 1.0, 2.0):
            yield part(time)
        yield part(language="en")

    options = TranscribeOptions(model="demo-vosk")
    deployment = handle(stream=recognise)
    parts = [p async for p in transcriber(onnx_asr=deployment).stream(AUDIO, options)]
    assert [s.text for p in parts for s in p.segments] == [" 0", " 1", " 2"]


async def test_a_stream_that_is_closed_cancels_its_call() -> None:
    async def recognise(*_: object) -> AsyncIterator[object]:
        yield part(0.0)
        yield part(1.0)

    deployment = handle(stream=recognise)
    stream = transcriber(onnx_asr=deployment).stream(AUDIO, TranscribeOptions(model="demo-vosk"))
    await anext(stream)
    await stream.aclose()
    assert [response.cancelled for response in deployment.stream.responses] == [True]


async def test_a_diarization_is_routed_by_its_model() -> None:
    deployment = handle(diarize=answering(DIARIZATION))
    options = DiarizeOptions(model="demo-pyannote", num_speakers=2)
    port = ServedDiarizer(deployment, 10.0)
    assert await port.diarize(AUDIO, options) == DIARIZATION
    assert deployment.diarize.calls == [("a reference", options, None)]
    assert deployment.routed == ["demo-pyannote"]


async def test_emotions_are_routed_by_their_model() -> None:
    deployment = handle(classify=answering([CALM]))
    options = EmotionOptions(model="demo-gigaam-emo")
    spans = [Span(0.0, 1.0)]
    assert await ServedEmotions(deployment, 10.0).classify(AUDIO, spans, options) == [CALM]
    assert deployment.classify.calls == [("a reference", spans, "demo-gigaam-emo", None)]
    assert deployment.routed == ["demo-gigaam-emo"]


def recognise(method: Any) -> Awaitable[object]:
    deployment = handle(transcribe=method)
    return transcriber(onnx_asr=deployment).transcribe(
        AUDIO, TranscribeOptions(model="demo-vosk"), None
    )


async def recognise_in_parts(method: Any) -> object:
    async def parts(*arguments: object) -> AsyncIterator[object]:
        yield await method(*arguments)

    deployment = handle(stream=parts)
    options = TranscribeOptions(model="demo-vosk")
    return [p async for p in transcriber(onnx_asr=deployment).stream(AUDIO, options)]


def diarize(method: Any) -> Awaitable[object]:
    port = ServedDiarizer(handle(diarize=method), 10.0)
    return port.diarize(AUDIO, DiarizeOptions(model="demo-pyannote"))


def classify(method: Any) -> Awaitable[object]:
    port = ServedEmotions(handle(classify=method), 10.0)
    return port.classify(AUDIO, [Span(0.0, 1.0)], EmotionOptions(model="demo-gigaam-emo"))


@pytest.mark.parametrize("use", [recognise, recognise_in_parts, diarize, classify])
async def test_a_model_whose_replica_dies_twice_is_unavailable(
    use: Callable[..., Awaitable[object]],
) -> None:
    with pytest.raises(ModelUnavailable, match="died twice") as error:
        await use(raising(ActorDiedError()))
    assert error.value.retry_after_s == 5.0


@pytest.mark.parametrize("use", [recognise, recognise_in_parts, diarize, classify])
async def test_an_error_of_the_domain_passes_through(
    use: Callable[..., Awaitable[object]],
) -> None:
    with pytest.raises(SpeechError, match="no such thing"):
        await use(raising(SpeechError("no such thing")))
