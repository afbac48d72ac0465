"""OpenAI's audio API: its own client, and raw requests, against the web app on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import (
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
    TranscriptionVerbose,
    TranslationVerbose,
)
from pydantic import TypeAdapter

from api.errors import STATUS
from api.openai import responses as rendered
from api.openai.requests import DiarizationForm, TranscriptionForm, TranslationForm
from configs.settings import OPENAI_MODELS
from speech import subtitles
from speech.errors import (
    AudioTooLong,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    SpeechError,
    UnsupportedAudio,
)
from speech.ports import DEFAULT_TEMPERATURES, DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import EmotionSpan, Segment, Transcript, Turn, Word
from tests.unit.fake_service import FakeService, app_of, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 60.0
"""More than anything here takes."""
CALM = {"angry": 0.1, "sad": 0.2, "neutral": 0.3, "positive": 0.4}
HELLO = Segment(
    0.0, 1.5, " Hello there.",
    (Word(" Hello", 0.0, 0.5, 0.5), Word(" there.", 0.6, 1.5, 1.0)),
    speaker="SPEAKER_07", tokens=(1, 2), seek=300, temperature=0.2, avg_logprob=-0.5,
    compression_ratio=1.5, no_speech_prob=0.25,
)  # fmt: skip
GOOD = Segment(2.0, 2.5, " Good.", (Word(" Good.", 2.0, 2.5, 0.25),), speaker="SPEAKER_03")
BYE = Segment(3.0, 3.5, " Bye.", (Word(" Bye.", 3.0, 3.5, 0.0),), speaker="SPEAKER_07")
TRANSCRIPT = Transcript(
    duration=3.2,
    language="en",
    segments=(HELLO, GOOD, BYE),
    turns=(Turn(0.0, 1.5, "SPEAKER_07"), Turn(1.9, 2.6, "SPEAKER_03")),
)
TEXT = "Hello there. Good. Bye."
USAGE = {"type": "duration", "seconds": 4}
FILE = ("speech.wav", b"RIFF")


class Api:
    """The service as its clients see it: OpenAI's two clients, and raw HTTP."""

    def __init__(self, address: str, stack: AsyncExitStack) -> None:
        self._address = f"{address}/v1"
        self._stack = stack
        self.http = httpx.AsyncClient(base_url=self._address, timeout=WAIT_S)
        self.sdk = AsyncOpenAI(api_key="none", base_url=self._address, max_retries=0)
        stack.push_async_callback(self.http.aclose)
        stack.push_async_callback(self.sdk.close)

    async def in_thread(self, ask: Callable[[OpenAI], Any]) -> Any:
        """What the synchronous client answers."""

        def call() -> Any:
            with OpenAI(api_key="none", base_url=self._address, max_retries=0) as sdk:
                return ask(sdk)

        return await asyncio.to_thread(call)

    async def transcribe(self, **fields: Any) -> Any:
        return await self.sdk.audio.transcriptions.create(
            **{"file": FILE, "model": "whisper-1"} | fields
        )

    async def post(self, path: str = "transcriptions", **fields: Any) -> httpx.Response:
        data = {"model": "whisper-1"} | fields
        return await self.http.post(f"/audio/{path}", files={"file": FILE}, data=data)


@asynccontextmanager
async def serving(service: FakeService, **limits: Any) -> AsyncIterator[Api]:
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(listening(app_of(service, **limits)))
        yield Api(address, stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[tuple[FakeService, Api]]:
    """One server for all tests: to start one takes longer than any of them."""
    service = FakeService()
    async with serving(service) as api:
        yield service, api


@pytest.fixture
def service(shared: tuple[FakeService, Api]) -> FakeService:
    """The service as new."""
    service, _ = shared
    vars(service).clear()
    vars(service).update(vars(FakeService()), answer=TRANSCRIPT)
    return service


@pytest.fixture
def api(shared: tuple[FakeService, Api], service: FakeService) -> Api:
    return shared[1]


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The error object, and nothing beside it."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


# ---------------------------------------------------------------- formats


async def test_json_has_the_text_and_the_seconds_that_were_heard(api):
    answer = await api.transcribe()
    assert answer.to_dict() == {"text": TEXT, "usage": USAGE}


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ("text", TEXT + "\n"),
        ("srt", subtitles.srt(TRANSCRIPT.segments or ())),
        ("vtt", subtitles.vtt(TRANSCRIPT.segments or ())),
    ],
)
async def test_text_and_subtitles_are_plain_text(api, response_format, expected):
    assert await api.transcribe(response_format=response_format) == expected
    answer = await api.post(response_format=response_format)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == expected


async def test_subtitles_are_those_of_the_words(api):
    text = await api.transcribe(response_format="srt")
    assert text.startswith("1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n00:00:02,000")


async def test_verbose_json_has_the_segments_with_whispers_figures(api):
    answer = await api.transcribe(response_format="verbose_json")
    assert isinstance(answer, TranscriptionVerbose)
    assert (answer.language, answer.duration, answer.text) == ("en", 3.2, TEXT)
    assert answer.usage.to_dict() == USAGE
    assert answer.words is None
    assert answer.segments[0].to_dict() == {
        "id": 0, "seek": 300, "start": 0.0, "end": 1.5, "text": " Hello there.", "tokens": [1, 2],
        "temperature": 0.2, "avg_logprob": -0.5, "compression_ratio": 1.5, "no_speech_prob": 0.25,
    }  # fmt: skip
    assert [segment.id for segment in answer.segments] == [0, 1, 2]


async def test_what_only_whisper_knows_is_a_number_for_other_models_too(api):
    segment = (await api.transcribe(response_format="verbose_json")).segments[1]
    figures = (segment.seek, segment.temperature, segment.avg_logprob, segment.no_speech_prob)
    assert (segment.tokens, segment.compression_ratio, *figures) == ([], 0, 0, 0, 0, 0)


@pytest.mark.parametrize("granularities", [["word"], ["segment"], ["word", "segment"]])
async def test_verbose_json_has_the_times_that_were_asked_for(api, service, granularities):
    answer = await api.transcribe(
        response_format="verbose_json", timestamp_granularities=granularities
    )
    assert (answer.segments is not None) == ("segment" in granularities)
    assert (answer.words is not None) == ("word" in granularities)
    assert service.options.transcribe.word_timestamps == ("word" in granularities)
    if answer.words:
        words = [(w.word, w.start, w.end) for w in answer.words]
        assert words[:2] == [("Hello", 0.0, 0.5), ("there.", 0.6, 1.5)]


async def test_diarized_json_names_the_speakers_by_letters_in_order(api, service):
    answer = await api.transcribe(
        model="gpt-4o-transcribe-diarize", response_format="diarized_json"
    )
    assert isinstance(answer, TranscriptionDiarized)
    assert (answer.task, answer.duration, answer.text) == ("transcribe", 3.2, TEXT)
    assert [(s.id, s.speaker, s.text) for s in answer.segments] == [
        ("seg_001", "A", "Hello there."), ("seg_002", "B", "Good."), ("seg_003", "A", "Bye."),
    ]  # fmt: skip
    assert all(segment.type == "transcript.text.segment" for segment in answer.segments)
    assert service.options.tasks == {"transcribe", "diarization"}
    assert service.options.transcribe.word_timestamps
    assert service.options.diarize == DiarizeOptions(model="pyannote")


async def test_a_segment_that_belongs_to_nobody_still_has_a_speaker(api, service):
    service.answer = Transcript(1.0, segments=(Segment(0.0, 1.0, " Hm."),))
    answer = await api.transcribe(response_format="diarized_json")
    assert [segment.speaker for segment in answer.segments] == ["unknown"]


async def test_speakers_beyond_z_have_two_letters():
    speakers = rendered.Speakers()
    letters = [speakers.letter(str(i)) for i in range(54)]
    assert letters[:2] + letters[24:28] + letters[51:] == [
        "A", "B", "Y", "Z", "AA", "AB", "AZ", "BA", "BB",
    ]  # fmt: skip


async def test_log_probabilities_are_those_of_the_words(api, service):
    answer = await api.transcribe(include=["logprobs"])
    assert service.options.transcribe.word_timestamps
    first, second, *_, last = answer.logprobs
    assert (first.token, first.bytes) == (" Hello", list(b" Hello"))
    assert first.logprob == pytest.approx(-0.693, abs=1e-3)
    assert second.logprob == 0
    assert last.logprob < -20  # a word of probability 0


async def test_a_model_that_gives_no_probabilities_is_said_to(api, service):
    service.answer = Transcript(1.0, segments=(Segment(0, 1, " Hm.", (Word(" Hm.", 0, 1),)),))
    answer = (await api.post(**{"include[]": "logprobs"})).json()
    assert answer["logprobs"] == []
    assert answer["warnings"] == ["this model gives no log probabilities"]


@pytest.mark.parametrize(
    ("path", "fields", "shape"),
    [
        ("transcriptions", {"include[]": "logprobs"}, rendered.Transcription),
        (
            "transcriptions",
            {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
            rendered.TranscriptionVerbose,
        ),
        ("transcriptions", {"response_format": "diarized_json"}, rendered.TranscriptionDiarized),
        ("translations", {"response_format": "verbose_json"}, rendered.TranscriptionVerbose),
        ("diarization", {}, rendered.DiarizationResult),
    ],
)
async def test_answers_have_the_shape_that_is_documented(api, service, path, fields, shape):
    emotions = (EmotionSpan(0.0, 1.0, CALM),)
    service.answer = Transcript(
        **{n: getattr(TRANSCRIPT, n) for n in ("duration", "language", "segments", "turns")},
        emotions=emotions,
        warnings=("odd file",),
    )
    answer = await api.post(path, **fields)
    TypeAdapter(shape).validate_json(answer.content, extra="forbid")
    assert answer.json()["warnings"] == ["odd file"]


async def test_warnings_of_a_text_format_are_in_a_header(api, service):
    service.answer = Transcript(1.0, segments=(), warnings=("нечто",))
    answer = await api.post(response_format="vtt", colour="red")
    warnings = json.loads(answer.headers["X-Speechgraph-Warnings"])
    assert warnings == ["the field 'colour' is not known here", "нечто"]


async def test_the_synchronous_client_is_answered_as_well(api):
    def ask(sdk: OpenAI) -> Any:
        return sdk.audio.transcriptions.create(file=FILE, model="whisper-1")

    assert (await api.in_thread(ask)).text == TEXT


# ---------------------------------------------------------------- translations, diarization


@pytest.mark.filterwarnings("ignore:deprecated")  # OpenAI winds its own route down
async def test_a_translation_is_asked_of_the_recogniser(api, service):
    answer = await api.sdk.audio.translations.create(
        file=FILE,
        model="whisper-1",
        prompt="Names: Ann",
        temperature=0.4,
        response_format="verbose_json",
    )
    assert isinstance(answer, TranslationVerbose)
    assert (answer.language, answer.text, len(answer.segments)) == ("english", TEXT, 3)
    assert service.options.transcribe == TranscribeOptions(
        model="large-v3-turbo",
        task="translate",
        word_timestamps=False,
        initial_prompt="Names: Ann",
        temperature=(0.4,),
    )


async def test_a_translation_has_no_diarized_form(api):
    answer = await api.post("translations", response_format="diarized_json")
    assert (answer.status_code, problem(answer)["param"]) == (400, "response_format")


async def test_a_model_that_cannot_translate_is_an_error_of_the_request(api, service):
    service.answer = InvalidRequest("model 'vosk' does not translate")
    answer = await api.post("translations")
    assert (answer.status_code, problem(answer)["message"]) == (400, service.answer.message)


async def test_diarization_tells_the_turns(api, service):
    answer = (await api.post("diarization", model="gpt-4o-transcribe-diarize")).json()
    assert answer == {
        "duration": 3.2,
        "segments": [
            {"start": 0.0, "end": 1.5, "speaker": "SPEAKER_07"},
            {"start": 1.9, "end": 2.6, "speaker": "SPEAKER_03"},
        ],
        "usage": USAGE,
    }
    assert service.options.tasks == {"diarization"}


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("call 7.wav", "call_7"),
        ("../../etc/pass  wd", "pass_wd"),
        ("C:\\calls\\a.b.wav", "a.b"),
        (".", "audio"),
    ],
)
async def test_rttm_has_a_line_for_each_turn_under_the_name_of_the_file(api, filename, name):
    answer = await api.http.post(
        "/audio/diarization",
        files={"file": (filename, b"RIFF")},
        data={"model": "pyannote", "response_format": "rttm"},
    )
    assert answer.text == (
        f"SPEAKER {name} 1 0.000 1.500 <NA> <NA> SPEAKER_07 <NA> <NA>\n"
        f"SPEAKER {name} 1 1.900 0.700 <NA> <NA> SPEAKER_03 <NA> <NA>\n"
    )


# ---------------------------------------------------------------- what may be asked


async def test_every_field_reaches_the_graph(api, service):
    await api.transcribe(
        model="small",
        language="EN",
        prompt="Dear Ann",
        temperature=0.6,
        chunking_strategy={
            "type": "server_vad",
            "prefix_padding_ms": 100,
            "silence_duration_ms": 700,
            "threshold": 0.7,
        },
        keywords=["Zurab", "Vosk"],
        extra_body={"hotwords": "Ann", "emotion": "sentence", "vad_filter": True},
    )
    assert service.options.transcribe == TranscribeOptions(
        model="small",
        language="en",
        initial_prompt="Dear Ann",
        temperature=(0.6,),
        hotwords="Ann, Zurab, Vosk",
        vad_filter=True,
        vad_parameters={"speech_pad_ms": 100, "min_silence_duration_ms": 700, "threshold": 0.7},
    )
    assert service.options.emotion == EmotionOptions("emo", "sentence")
    assert service.options.tasks == {"transcribe", "emotion"}
    assert service.calls[0][0] == b"RIFF"


async def test_without_any_field_the_defaults_of_the_recogniser_hold(api, service):
    assert (await api.transcribe(temperature=0)).text == TEXT
    assert service.options.transcribe == TranscribeOptions(
        model="large-v3-turbo", word_timestamps=False, temperature=DEFAULT_TEMPERATURES
    )


@pytest.mark.parametrize(
    ("value", "parameters"),
    [
        ("auto", None),
        ('{"type": "server_vad"}', None),
        ('{"type": "server_vad", "threshold": 0.4}', {"threshold": 0.4}),
    ],
)
async def test_a_chunking_strategy_turns_voice_activity_detection_on(
    api, service, value, parameters
):
    assert (await api.post(chunking_strategy=value)).status_code == 200
    assert service.options.transcribe.vad_filter
    assert service.options.transcribe.vad_parameters == parameters


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
async def test_lists_may_be_named_with_and_without_brackets(api, name):
    answer = await api.post(response_format="verbose_json", **{name: ["word"]})
    assert "words" in answer.json()


async def test_one_possible_language_is_the_language_and_several_are_a_warning(api, service):
    await api.post(**{"languages[]": ["ru"]})
    assert service.options.transcribe.language == "ru"
    answer = (await api.post(**{"languages[]": ["ru", "en"]})).json()
    assert service.calls[1][1].transcribe.language is None
    assert answer["warnings"] == [
        "languages[]: the language is detected among all that the model knows"
    ]


async def test_a_field_that_is_not_known_is_told_in_a_warning(api):
    answer = (await api.post(languge="ru")).json()
    assert answer["warnings"] == ["the field 'languge' is not known here"]


async def test_emotions_stand_beside_the_text_and_in_the_segments(api, service):
    service.answer = Transcript(
        1.0,
        segments=(Segment(0.0, 1.0, " Hm.", speaker="SPEAKER_04", emotion=CALM),),
        emotions=(EmotionSpan(0.0, 1.0, CALM, "SPEAKER_04"),),
    )
    answer = (await api.post(response_format="diarized_json", emotion="speaker")).json()
    assert answer["segments"][0]["emotion"] == CALM
    assert answer["emotions"] == [{"start": 0.0, "end": 1.0, "emotion": CALM, "speaker": "A"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "1.1"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"stream": "maybe"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream"),
        ({"include[]": "everything"}, "include[]"),
        ({"include[]": "logprobs", "response_format": "verbose_json"}, "include[]"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        (
            {"timestamp_granularities[]": "day", "response_format": "verbose_json"},
            "timestamp_granularities[]",
        ),
        ({"chunking_strategy": "manual"}, "chunking_strategy"),
        ({"chunking_strategy": "{"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad", "eagerness": 1}'}, "chunking_strategy"),
        ({"chunking_strategy[type]": "semantic_vad"}, "chunking_strategy"),
        ({"chunking_strategy": "auto", "vad_filter": "false"}, "vad_filter"),
        ({"known_speaker_names[]": ["Ann"]}, "known_speaker_names[]"),
        ({"known_speaker_references[]": ["data:audio/wav;base64,AA=="]},
         "known_speaker_references[]"),
        ({"emotion": "colour"}, "emotion"),
        ({"emotion": "word", "response_format": "text"}, "emotion"),
        ({"language": "x" * 33}, "language"),
    ],
)  # fmt: skip
async def test_a_field_that_cannot_be_honoured_is_named(api, service, fields, param):
    answer = await api.post(**fields)
    error = problem(answer)
    assert answer.status_code == 400
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error", param, "invalid_value",
    )  # fmt: skip
    assert param in error["message"]
    assert service.calls == []


async def test_known_speakers_are_refused_where_speakers_are_found_too(api):
    answer = await api.post("diarization", **{"known_speaker_names[]": ["Ann"]})
    assert (answer.status_code, problem(answer)["param"]) == (400, "known_speaker_names[]")


@pytest.mark.parametrize("field", ["file", "model"])
@pytest.mark.parametrize("path", ["transcriptions", "translations", "diarization"])
async def test_a_field_that_is_missing_is_named(api, path, field):
    answer = await api.http.post(
        f"/audio/{path}",
        files={"other" if field == "file" else "file": FILE},
        data={"other" if field == "model" else "model": "whisper-1"},
    )
    error = problem(answer)
    assert (answer.status_code, error["param"]) == (400, field)
    assert error["code"] == "missing_required_parameter"


async def test_a_body_that_is_no_form_is_refused(api):
    answer = await api.http.post("/audio/transcriptions", json={"model": "whisper-1"})
    assert (answer.status_code, problem(answer)["type"]) == (400, "invalid_request_error")


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", OPENAI_MODELS)
async def test_openais_names_mean_the_default_models(api, service, name):
    service.default_models["transcribe"] = "small"
    await api.transcribe(model=name)
    assert service.options.transcribe.model == "small"
    assert (await api.sdk.models.retrieve(name)).id == "small"


async def test_the_operator_says_what_a_name_means(service):
    async with serving(service, openai_aliases={"fast": "small"}) as api:
        await api.transcribe(model="fast")
        assert (await api.sdk.models.retrieve("fast")).id == "small"
        with pytest.raises(openai.NotFoundError):
            await api.transcribe(model="gpt-4o-transcribe")
    assert service.options.transcribe.model == "small"


async def test_models_are_listed_as_openais_client_expects_them(api):
    models = [model async for model in api.sdk.models.list()]
    turbo = models[0]
    assert (turbo.id, turbo.object, turbo.owned_by) == ("large-v3-turbo", "model", "Systran")
    assert isinstance(turbo.created, int)
    names = (turbo.model_extra or {})["aliases"]
    assert names[:2] == ["whisper-1", "openai/turbo"]
    assert set(OPENAI_MODELS) < set(names)


async def test_an_unknown_model_is_not_found(api, service):
    for asked in (api.transcribe(model="gpt-9"), api.sdk.models.retrieve("gpt-9")):
        with pytest.raises(openai.NotFoundError) as raised:
            await asked
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert service.calls == []


async def test_a_model_of_another_kind_is_refused(api, service):
    with pytest.raises(openai.BadRequestError, match="cannot do 'transcribe'"):
        await api.transcribe(model="pyannote")
    assert service.calls == []


async def test_speakers_are_refused_where_no_model_finds_them(api, service):
    del service.default_models["diarization"]
    with pytest.raises(openai.BadRequestError) as raised:
        await api.transcribe(response_format="diarized_json")
    assert raised.value.code == "not_enabled"


# ---------------------------------------------------------------- streams


async def test_a_stream_has_a_delta_for_each_segment_and_ends_with_the_text(api, service):
    stream = await api.transcribe(model="gpt-4o-transcribe", stream=True)
    *deltas, done = [event async for event in stream]
    assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in deltas)
    assert [event.delta for event in deltas] == ["Hello there.", " Good.", " Bye."]
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert done.text == "".join(event.delta for event in deltas) == TEXT
    assert done.usage.to_dict() == USAGE
    assert service.options.transcribe.model == "large-v3-turbo"


async def test_the_synchronous_client_reads_a_stream_as_well(api):
    def ask(sdk: OpenAI) -> list[str]:
        stream = sdk.audio.transcriptions.create(file=FILE, model="whisper-1", stream=True)
        return [event.type for event in stream]

    types = await api.in_thread(ask)
    assert types == ["transcript.text.delta"] * 3 + ["transcript.text.done"]


async def test_a_diarized_stream_tells_each_segment_after_its_text(api):
    stream = await api.transcribe(response_format="diarized_json", stream=True)
    *events, done = [event async for event in stream]
    assert [event.type for event in events] == [
        "transcript.text.delta", "transcript.text.segment",
    ] * 3  # fmt: skip
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert [(s.id, s.speaker, s.text) for s in segments] == [
        ("seg_001", "A", "Hello there."), ("seg_002", "B", "Good."), ("seg_003", "A", "Bye."),
    ]  # fmt: skip
    assert [event.segment_id for event in events[::2]] == ["seg_001", "seg_002", "seg_003"]
    assert (done.type, done.text) == ("transcript.text.done", TEXT)


async def test_a_stream_can_say_how_sure_the_words_are(api):
    stream = await api.transcribe(include=["logprobs"], stream=True)
    *deltas, done = [event async for event in stream]
    assert [len(event.logprobs) for event in deltas] == [2, 1, 1]
    assert [p.token for p in done.logprobs] == [" Hello", " there.", " Good.", " Bye."]


async def test_a_stream_is_lines_of_data_that_no_proxy_keeps(api, service):
    service.answer = Transcript(0.4, segments=(), warnings=("odd file",))
    answer = await api.post(stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text == (
        'data: {"type":"transcript.text.done","text":"",'
        '"usage":{"type":"duration","seconds":1},"warnings":["odd file"]}\n\n'
    )


async def test_a_delta_arrives_before_later_audio_is_recognised(api, service):
    read = asyncio.Event()
    service.before_segment = lambda number: read.wait() if number else asyncio.sleep(0)
    async with asyncio.timeout(WAIT_S):
        stream = await api.transcribe(stream=True)
        first = await anext(stream)
        assert first.delta == "Hello there."
        read.set()
        assert [event.type async for event in stream][-1] == "transcript.text.done"


class Stuck:
    """Recognition that hears one segment and then hangs."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, number: int) -> None:
        if number == 0:
            return
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_a_client_that_goes_away_cancels_the_recognition_and_frees_its_slot(service):
    stuck = service.before_segment = Stuck()
    async with serving(service, max_concurrent_requests=1) as api, asyncio.timeout(WAIT_S):
        stream = await api.transcribe(stream=True)
        await anext(stream)
        await stuck.begun.wait()
        with pytest.raises(openai.InternalServerError) as busy:
            await api.transcribe()
        assert (busy.value.status_code, busy.value.code) == (503, "overloaded")
        await stream.close()
        await stuck.cancelled.wait()
        # The slot is free a moment after the recognition was told.
        while (await api.post()).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_between_two_segments_ends_the_work(service):
    ended = asyncio.Event()
    heard = service.stream

    async def watched(data: bytes, options: Any) -> AsyncIterator[Any]:
        try:
            async for item in heard(data, options):
                yield item
        finally:
            ended.set()

    service.stream = watched
    service.answer = Transcript(1.0, segments=(Segment(0, 1, " x" * 250_000),) * 50)
    async with serving(service) as api, asyncio.timeout(WAIT_S):
        async with api.http.stream(
            "POST", "/audio/transcriptions", files={"file": FILE},
            data={"model": "whisper-1", "stream": "true"},
        ) as answer:  # fmt: skip
            await anext(answer.aiter_bytes())
        await ended.wait()


async def test_what_fails_before_the_first_segment_is_an_ordinary_error(api, service):
    service.answer = UnsupportedAudio("no audio track")
    with pytest.raises(openai.BadRequestError, match="no audio track"):
        await api.transcribe(stream=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineFailed("the recogniser gave up"), ("engine_failed", "the recogniser gave up")),
        (RuntimeError("/secret/path"), ("internal_error", "internal error in request req-7")),
    ],
)
async def test_what_fails_later_is_an_event_that_the_client_raises(api, service, error, expected):
    async def fail(number: int) -> None:
        if number:
            raise error

    service.before_segment = fail
    stream = await api.transcribe(stream=True, extra_headers={"X-Request-ID": "req-7"})
    assert (await anext(stream)).delta == "Hello there."
    with pytest.raises(openai.APIError) as raised:
        await anext(stream)
    assert (raised.value.code, raised.value.message) == expected
    assert raised.value.type == "server_error"


async def test_a_stream_beyond_its_deadline_says_so(service):
    service.before_segment = Stuck()
    async with serving(service, request_timeout_s=0.2) as api:
        with pytest.raises(openai.APIError) as raised:
            [event async for event in await api.transcribe(stream=True)]
    assert raised.value.code == "deadline_exceeded"


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("code", STATUS)
async def test_every_error_of_the_family_is_said_in_openais_shape(api, service, code):
    kind = next(kind for kind in _family() if kind.code == code)
    service.answer = kind("what went wrong")
    answer = await api.post()
    error = problem(answer)
    expected = {415: 400, 422: 400}.get(STATUS[code], STATUS[code])
    assert answer.status_code == (404 if code == "model_not_found" else expected)
    assert error["code"] == code
    server = answer.status_code >= 500
    assert error["type"] == ("server_error" if server else "invalid_request_error")
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)


def _family() -> list[type[SpeechError]]:
    kinds = [SpeechError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnsupportedAudio("x"), openai.BadRequestError),
        (AudioTooLong("x"), openai.APIStatusError),
        (EngineFailed("x"), openai.InternalServerError),
        (Overloaded("x", retry_after_s=7), openai.InternalServerError),
    ],
)
async def test_openais_client_raises_its_own_errors(api, service, error, expected):
    service.answer = error
    with pytest.raises(expected) as raised:
        await api.transcribe()
    assert raised.value.code == error.code
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]


async def test_openais_client_comes_back_when_it_was_told_to_wait(api, service):
    async def answer() -> Transcript:
        if len(service.calls) == 1:
            raise Overloaded("full", retry_after_s=0.1)
        return TRANSCRIPT

    service.answer = answer
    assert (await api.sdk.with_options(max_retries=1).audio.transcriptions.create(
        file=FILE, model="whisper-1"
    )).text == TEXT  # fmt: skip
    assert len(service.calls) == 2


async def test_every_answer_has_a_request_id(api):
    answer = await api.sdk.audio.transcriptions.with_raw_response.create(
        file=FILE, model="whisper-1", extra_headers={"X-Request-ID": "mine"}
    )
    assert answer.request_id == "mine"
    assert len((await api.post(model="gpt-9")).headers["x-request-id"]) == 32


async def test_an_empty_file_is_refused(api, service):
    answer = await api.http.post(
        "/audio/transcriptions", files={"file": ("a", b"")}, data={"model": "whisper-1"}
    )
    assert (answer.status_code, problem(answer)["code"]) == (400, "empty_audio")
    assert service.calls == []


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("POST", 404)])
async def test_unknown_paths_and_methods_are_said_in_openais_shape(api, method, status):
    path = "transcriptions" if method == "GET" else "speech"
    answer = await api.http.request(method, f"/audio/{path}")
    assert (answer.status_code, problem(answer)["type"]) == (status, "invalid_request_error")


async def test_an_upload_beyond_openais_bound_is_too_large(service):
    async with serving(service, max_openai_upload_bytes=1000) as api:
        big = {"file": ("a.wav", bytes(1001))}
        answer = await api.http.post(
            "/audio/transcriptions", files=big, data={"model": "whisper-1"}
        )
        assert (answer.status_code, problem(answer)["code"]) == (413, "audio_too_large")
        assert service.calls == []
        v1 = {"audio": ("a.wav", bytes(1001))}
        answer = await api.http.post("/process", files=v1, data={"request_json": '{"settings":{}}'})
        assert answer.status_code == 200


async def test_the_general_bound_holds_for_openais_routes_too(service):
    async with serving(service, max_upload_bytes=1000) as api:
        answer = await api.http.post("/audio/translations", files={"file": ("a", bytes(1001))})
    assert (answer.status_code, problem(answer)["code"]) == (413, "audio_too_large")


async def test_openais_own_bound_is_the_default(service):
    app = app_of(service)
    (bounds,) = [m.kwargs["max_bytes"] for m in app.user_middleware if "max_bytes" in m.kwargs]
    assert bounds["/v1/audio/"] == 25 * 1024**2


async def test_too_many_fields_are_refused(api):
    answer = await api.post(**{"keywords[]": ["x"] * 40})
    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_request")


# ---------------------------------------------------------------- the page about it


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "api" / "openai.md").read_text(encoding="utf-8")


async def test_the_page_names_every_field_and_every_model(page):
    forms = (TranscriptionForm, TranslationForm, DiarizationForm)
    fields = {name for form in forms for name in form.model_fields}
    assert [name for name in (*fields, *OPENAI_MODELS) if f"`{name}" not in page] == []


async def test_the_answers_of_the_page_are_valid(page):
    for shape in ("Transcription", "TranscriptionVerbose", "TranscriptionDiarized",
                  "DiarizationResult"):  # fmt: skip
        (_, text) = page.split(f"<!-- {shape} -->\n```json\n")
        answer, _, _ = text.partition("```")
        TypeAdapter(getattr(rendered, shape)).validate_json(answer, extra="forbid")
