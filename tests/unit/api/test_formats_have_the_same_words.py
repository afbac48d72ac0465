"""The words of a file are the same in every format of every dialect, with the demo models."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from configs.catalogue import Catalogue
from engines.onnx_asr.offline import OnnxAsrEngine
from engines.whisper.engine import WhisperEngine
from speech.audio import SAMPLE_RATE, Audio
from speech.media.decoding import decode
from speech.pipeline import ProcessOptions, SpeechGraph
from speech.ports import DecodedAudio, DiarizeOptions, TranscribeOptions
from speech.transcript import Diarization, Recognition, Segment, Transcript, Turn
from tests.unit.fake_service import FakeService, app_of, client_of

EXCERPT = slice(20 * SAMPLE_RATE, 32 * SAMPLE_RATE)
"""More than one window of the demo model. Words moved the second one before."""
TURNS = tuple(Turn(float(s), s + 3.0, f"SPEAKER_0{s // 3 % 2}") for s in range(0, 12, 3))


class Models:
    """The ports of the graph on the demo models; speakers change every three seconds."""

    def __init__(self, repository: Path) -> None:
        self._directory = repository / "models" / "demo"
        self._engine = cache(self._load)

    def _load(self, model: str) -> Any:
        path = self._directory / model
        if model == "demo-whisper":
            return WhisperEngine(path, device="cpu", compute_type="auto", threads=1)
        entry = Catalogue.load().find(model)
        assert entry is not None
        return OnnxAsrEngine(entry, path, device="cpu")

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        audio = decode(data, keep_channels=keep_channels, max_seconds=60, max_channels=2)
        return DecodedAudio(audio, audio.duration)

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        content: Audio = audio.content
        engine = self._engine(str(options.model))
        recognition: Recognition = await asyncio.to_thread(
            engine.transcribe, content.track(channel), options
        )
        return recognition

    async def stream(
        self, audio: DecodedAudio, options: TranscribeOptions
    ) -> AsyncGenerator[Recognition, None]:
        yield await self.transcribe(audio, options, None)

    async def diarize(self, audio: DecodedAudio, options: DiarizeOptions) -> Diarization:
        return Diarization(TURNS, TURNS)


class Service(FakeService):
    """The graph of those models."""

    def __init__(self, models: Any) -> None:
        super().__init__()
        self.catalogue = Catalogue.load()
        self.families = {"whisper", "onnx_asr", "diarization"}
        self.default_models = {"transcribe": "demo-whisper", "diarization": "demo-pyannote"}
        self._graph = SpeechGraph(models, models, models, models)

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        return await self._graph.process(data, options)

    async def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        async for item in self._graph.stream(data, options):
            yield item


@pytest.fixture(scope="module")
def models(repository: Path) -> Models:
    return Models(repository)


@pytest.fixture(scope="module")
def excerpt(demo_audio: Path) -> bytes:
    samples, _ = soundfile.read(demo_audio / "dialogue-en.flac", dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, samples[EXCERPT], SAMPLE_RATE, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def expected(models: Models, excerpt: bytes) -> Callable[[str, Mapping[str, Any]], list[str]]:
    """The words that the model recognises with these options."""

    @cache
    def words(model: str, options: str) -> list[str]:
        audio = decode(excerpt, keep_channels=False, max_seconds=60, max_channels=2)
        chosen = TranscribeOptions(model=model, word_timestamps=False, **json.loads(options))
        engine = models._engine(model)
        return " ".join(s.text for s in engine.transcribe(audio.mono, chosen).segments).split()

    return lambda model, options: words(model, json.dumps(options))


def subtitle_text(answer: httpx.Response) -> str:
    """The lines of a subtitle file that are neither numbers nor times nor its title."""
    lines = answer.text.splitlines()
    return " ".join(line for line in lines if line.strip(" 0123456789") and "-->" not in line)


def stream_text(answer: httpx.Response) -> str:
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data:")]
    done = events[-1]["text"]
    assert "".join(e["delta"] for e in events if "delta" in e) == done
    return str(done)


def of_segments(answer: httpx.Response) -> str:
    return " ".join(segment["text"] for segment in answer.json()["segments"])


def of_words(answer: httpx.Response) -> str:
    return " ".join(word["word"] for word in answer.json()["words"])


def v1_words(answer: httpx.Response) -> str:
    chunks = answer.json()["result"]["tra"]["chunks"]
    return "".join(w["word"] for chunk in chunks for w in chunk["alternatives"][0]["words"])


def v1_text(answer: httpx.Response) -> str:
    return str(answer.json()["result"]["tra"]["text"])


@dataclass(frozen=True)
class Form:
    """A format of a dialect, and how its text is read."""

    read: Callable[[httpx.Response], str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The fields of a request of OpenAI's API."""
    v1: Mapping[str, Any] | None = None
    """The settings of a request of the v1 API, if it is one."""

    async def ask(
        self, client: httpx.AsyncClient, file: bytes, model: str, options: Mapping[str, Any]
    ) -> httpx.Response:
        if self.v1 is None:
            return await client.post(
                "/v1/audio/transcriptions",
                files={"file": ("a.wav", file)},
                data={"model": model, **self.fields, **options},
            )
        settings = dict(self.v1)
        tra = {"model": model, **settings.pop("tra", {}), **options}
        format_output = settings.pop("format_output", "json")
        request = {"format_output": format_output, "settings": {"tra": tra, **settings}}
        return await client.post(
            "/v1/process",
            files={"audio": ("a.wav", file)},
            data={"request_json": json.dumps(request)},
        )


FORMATS = {
    "json": Form(lambda a: str(a.json()["text"]), {"response_format": "json"}),
    "text": Form(lambda a: a.text, {"response_format": "text"}),
    "srt": Form(subtitle_text, {"response_format": "srt"}),
    "vtt": Form(lambda a: subtitle_text(a).removeprefix("WEBVTT"), {"response_format": "vtt"}),
    "verbose_json": Form(of_segments, {"response_format": "verbose_json"}),
    "verbose_json, words": Form(
        of_words, {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    ),
    "diarized_json": Form(of_segments, {"response_format": "diarized_json"}),
    "stream": Form(stream_text, {"stream": "true"}),
    "stream of diarized_json": Form(
        stream_text, {"stream": "true", "response_format": "diarized_json"}
    ),
    "v1": Form(v1_words, v1={}),
    "v1 without words": Form(v1_text, v1={"tra": {"word_timestamps": False}}),
    "v1 with speakers": Form(
        v1_text, v1={"tasks": ["transcribe", "diarization"], "tra": {"word_timestamps": False}}
    ),
    "v1 text": Form(v1_text, v1={"format_output": "text"}),
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("options", [{}, {"vad_filter": True}], ids=["plain", "vad"])
@pytest.mark.parametrize("model", ["demo-whisper", "demo-vosk", "demo-gigaam"])
async def test_the_words_do_not_depend_on_the_format(
    models: Models,
    excerpt: bytes,
    expected: Callable[[str, Mapping[str, Any]], list[str]],
    form: Form,
    model: str,
    options: dict[str, Any],
) -> None:
    async with client_of(app_of(Service(models))) as client:  # type: ignore[arg-type]
        answer = await form.ask(client, excerpt, model, options)
    assert answer.status_code == 200, answer.text
    words = expected(model, options)
    assert form.read(answer).split() == words
    assert len(words) > 25


@pytest.mark.parametrize("word_timestamps", ["false", "true"])
@pytest.mark.parametrize("format_", ["json", "simple", "text"])
async def test_the_words_of_the_simple_server_do_not_depend_on_its_format(
    models: Models,
    excerpt: bytes,
    expected: Callable[[str, Mapping[str, Any]], list[str]],
    format_: str,
    word_timestamps: str,
) -> None:
    async with client_of(app_of(Service(models))) as client:  # type: ignore[arg-type]
        answer = await client.post(
            "/transcribe",
            files={"audio_file": ("a.wav", excerpt)},
            data={"format": format_, "word_timestamps": word_timestamps},
        )
    text = answer.text if format_ == "text" else answer.json()["text"]
    assert text.split() == expected("demo-whisper", {"temperature": [0.0]})


@pytest.mark.parametrize("model", ["demo-whisper", "demo-vosk", "demo-gigaam"])
async def test_segments_end_where_the_speaker_changes_without_words_in_the_answer(
    models: Models, excerpt: bytes, model: str
) -> None:
    segments = []
    for word_timestamps in (True, False):
        form = Form(
            v1_text,
            v1={
                "tasks": ["transcribe", "diarization"],
                "tra": {"word_timestamps": word_timestamps},
            },
        )
        async with client_of(app_of(Service(models))) as client:  # type: ignore[arg-type]
            answer = await form.ask(client, excerpt, model, {})
        segments.append(answer.json()["result"]["tra"]["segments"])
        assert bool(v1_words(answer)) is word_timestamps
    with_words, without = segments
    assert without == with_words
    assert len({segment["speaker"] for segment in without}) == 2
