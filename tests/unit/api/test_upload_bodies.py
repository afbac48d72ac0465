"""Bodies as clients send them: plain audio, gzip, parts without a name, headerless samples."""

import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import av
import httpx
import numpy as np
import pytest

from tests.unit.fake_service import FakeService, app_of, client_of

FIELDS = {
    "/v1/process": "audio",
    "/v1/audio/transcriptions": "file",
    "/v1/audio/translations": "file",
    "/v1/audio/diarization": "file",
    "/transcribe": "audio_file",
    "/api/transcribe": "file",
}
WITH_LANGUAGE = [
    path for path in FIELDS if path not in ("/v1/audio/translations", "/v1/audio/diarization")
]
MAX_BYTES = 100_000
TONE = (8000 * np.sin(np.arange(8000) / 5)).astype("<i2")


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_of(service, max_upload_bytes=MAX_BYTES)) as client:
        yield client


def data_of(service: FakeService) -> bytes:
    ((data, _),) = service.calls
    return data


def form(path: str, *fields: tuple[str, bytes], file: bytes | None = b"RIFF") -> dict[str, Any]:
    """A form of parts, the first of them the file without a name."""
    parts = [(FIELDS[path], file)] if file is not None else []
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in [*parts, *fields]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return {"content": body + b"--x--\r\n", "headers": headers}


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize(
    "kind", ["audio/wav", "audio/mpeg", "video/mp4", "application/octet-stream"]
)
async def test_the_body_may_be_the_file_alone(
    client: httpx.AsyncClient, service: FakeService, path: str, kind: str
) -> None:
    answer = await client.post(path, content=b"RIFF" * 9, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text
    assert data_of(service) == b"RIFF" * 9


@pytest.mark.parametrize("path", WITH_LANGUAGE)
async def test_the_query_has_the_fields_of_a_file_alone(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    query = {"language": "Russian"}
    headers = {"Content-Type": "audio/wav"}
    answer = await client.post(path, content=b"RIFF", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    assert service.options.transcribe.language == "ru"


@pytest.mark.parametrize("path", FIELDS)
async def test_a_part_of_the_file_needs_no_file_name(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    answer = await client.post(path, **form(path, file=b"\xff\xfe\x00binary"))
    assert answer.status_code == 200, answer.text
    assert data_of(service) == b"\xff\xfe\x00binary"


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/xml"])
async def test_any_other_body_is_refused_with_what_is_taken(
    client: httpx.AsyncClient, service: FakeService, path: str, kind: str
) -> None:
    answer = await client.post(path, content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code in (400, 415)
    for word in (kind, "multipart/form-data", f"'{FIELDS[path]}'", "audio/"):
        assert word in answer.text
    assert service.calls == []


@pytest.mark.parametrize("path", FIELDS)
async def test_a_body_may_be_compressed(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    plain = form(path, file=b"RIFF" * 1000)
    body = gzip.compress(plain["content"][:50]) + gzip.compress(plain["content"][50:])
    headers = plain["headers"] | {"Content-Encoding": "gzip"}
    answer = await client.post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert data_of(service) == b"RIFF" * 1000


async def test_a_body_is_not_inflated_beyond_the_bound(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    headers = {"Content-Type": "audio/wav", "Content-Encoding": "gzip"}
    for size, status in ((MAX_BYTES, 200), (MAX_BYTES + 1, 413), (50_000_000, 413)):
        body = gzip.compress(bytes(size))
        answer = await client.post("/v1/process", content=body, headers=headers)
        assert answer.status_code == status
    assert len(service.calls) == 1


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"RIFF no gzip", 422),
        ("gzip", gzip.compress(b"RIFF" * 100)[:-9], 422),
        ("br", b"RIFF", 415),
    ],
    ids=["no gzip", "cut", "unknown"],
)
async def test_a_broken_or_unknown_compression_is_named(
    client: httpx.AsyncClient, encoding: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "audio/wav", "Content-Encoding": encoding}
    answer = await client.post("/v1/process", content=body, headers=headers)
    assert (answer.status_code, "gzip" in answer.text) == (status, True)


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("name", ["file", "model", "language"])
async def test_a_field_that_is_given_twice_is_refused(
    client: httpx.AsyncClient, service: FakeService, path: str, name: str
) -> None:
    field = FIELDS[path] if name == "file" else name
    twice = [(field, b"en")] if name == "file" else [(field, b"en"), (field, b"en")]
    answer = await client.post(path, **form(path, *twice))
    assert answer.status_code in (400, 422)
    assert field in answer.text
    assert "more than once" in answer.text
    assert service.calls == []


async def test_a_list_is_given_once_for_each_value(client: httpx.AsyncClient) -> None:
    path = "/v1/audio/transcriptions"
    for name in ("timestamp_granularities[]", "timestamp_granularities"):
        fields = [("response_format", b"verbose_json"), (name, b"word"), (name, b"segment")]
        answer = await client.post(path, **form(path, *fields))
        assert {"words", "segments"} <= set(answer.json())


SAMPLES = {
    "pcm_s16le": TONE.tobytes(),
    "pcm_s16be": TONE.astype(">i2").tobytes(),
    "pcm_f32le": (TONE / np.float32(32768)).astype("<f4").tobytes(),
}


def g711(codec: str) -> bytes:
    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 8000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(TONE[np.newaxis], "s16", "mono")
    frame.sample_rate = 8000
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


SAMPLES |= {"g711_ulaw": g711("pcm_mulaw"), "g711_alaw": g711("pcm_alaw")}


def samples_of(wav: bytes) -> Any:
    with av.open(io.BytesIO(wav)) as container:
        assert container.streams.audio[0].rate == 8000
        resampler = av.AudioResampler("s16", "mono", 8000)
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("encoding", SAMPLES)
async def test_headerless_audio_is_taken_with_its_format(
    client: httpx.AsyncClient, service: FakeService, path: str, encoding: str
) -> None:
    about = [("encoding", encoding.encode()), ("sample_rate", b"8000"), ("channels", b"1")]
    answer = await client.post(path, **form(path, *about, file=SAMPLES[encoding]))
    assert answer.status_code == 200, answer.text
    assert "is not known" not in answer.text
    assert np.abs(samples_of(data_of(service)) - TONE.astype(int)).max() <= 300


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        ("audio/L16; rate=8000; channels=1", "pcm_s16be"),
        ("audio/pcm;rate=8000", "pcm_s16le"),
        ("audio/PCMU", "g711_ulaw"),
        ("audio/basic", "g711_ulaw"),
        ("audio/PCMA;rate=8000", "g711_alaw"),
    ],
)
async def test_headerless_audio_may_be_named_by_its_media_type(
    client: httpx.AsyncClient, service: FakeService, kind: str, encoding: str
) -> None:
    headers = {"Content-Type": kind}
    answer = await client.post("/v1/process", content=SAMPLES[encoding], headers=headers)
    assert answer.status_code == 200, answer.text
    assert np.abs(samples_of(data_of(service)) - TONE.astype(int)).max() <= 300


@pytest.mark.parametrize(
    ("about", "wrong"),
    [
        ({"encoding": "mp3", "sample_rate": "8000", "channels": "1"}, "encoding"),
        ({"encoding": "pcm_s16le", "channels": "1"}, "sample_rate"),
        ({"encoding": "pcm_s16le", "sample_rate": "fast", "channels": "1"}, "sample_rate"),
        ({"encoding": "pcm_s16le", "sample_rate": "7999", "channels": "1"}, "sample_rate"),
        ({"encoding": "pcm_s16le", "sample_rate": "8000"}, "channels"),
        ({"encoding": "pcm_s16le", "sample_rate": "8000", "channels": "9"}, "channels"),
    ],
)
async def test_an_incomplete_or_impossible_format_is_named(
    client: httpx.AsyncClient, service: FakeService, about: dict[str, str], wrong: str
) -> None:
    fields = [(name, value.encode()) for name, value in about.items()]
    answer = await client.post("/v1/process", **form("/v1/process", *fields))
    assert (answer.status_code, wrong in answer.text) == (422, True)
    assert service.calls == []


# ---------------------------------------------------------------- forms of people


@pytest.mark.parametrize("path", FIELDS)
async def test_the_form_of_the_documentation_page_works_as_it_is(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
    model = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert model["required"] == [FIELDS[path]]
    assert model["properties"].pop(FIELDS[path])["format"] == "binary"
    fields = []
    for name, described in model["properties"].items():
        example = described["example"]
        kinds = (described, *described.get("anyOf", ()))
        is_list = any(kind.get("type") == "array" for kind in kinds)
        assert isinstance(example, list) == is_list, "the page cannot show another example"
        for value in example or [""] if isinstance(example, list) else [example]:
            fields.append((name, json.dumps(value) if isinstance(value, bool) else str(value)))
    answer = await client.post(path, **form(path, *((n, v.encode()) for n, v in fields)))
    assert answer.status_code == 200, answer.text


async def test_process_takes_plain_fields(client: httpx.AsyncClient, service: FakeService) -> None:
    fields = [("tasks", b"transcribe"), ("tasks", b"diarization"), ("model", b"small")]
    answer = await client.post("/v1/process", **form("/v1/process", *fields, ("language", b"rus")))
    assert answer.status_code == 200, answer.text
    options = service.options
    assert options.tasks == {"transcribe", "diarization"}
    assert (options.transcribe.model, options.transcribe.language) == ("small", "ru")


async def test_plain_fields_replace_those_of_request_json(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    request = {"settings": {"tasks": ["emotion"], "tra": {"language": "en", "beam_size": 2}}}
    fields = [("request_json", json.dumps(request).encode()), ("language", b"ru")]
    answer = await client.post("/v1/process", **form("/v1/process", *fields))
    assert answer.status_code == 200, answer.text
    options = service.options
    assert (options.tasks, options.transcribe.language) == ({"emotion"}, "ru")
    assert options.transcribe.beam_size == 2


async def test_the_sockets_are_described(client: httpx.AsyncClient) -> None:
    tags = {tag["name"]: tag for tag in (await client.get("/openapi.json")).json()["tags"]}
    for path in ("/v1/ws", "/v1/realtime", "/ws", "/vosk"):
        assert f"`WS {path}`" in tags["sockets"]["description"]
