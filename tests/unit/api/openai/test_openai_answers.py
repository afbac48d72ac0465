"""OpenAI's audio API: the answers in every format."""

import json
from typing import Any

import pytest
from openai import OpenAI
from openai.types.audio import (
    TranscriptionDiarized,
    TranscriptionVerbose,
    TranslationVerbose,
)
from pydantic import TypeAdapter

from api.openai import responses as rendered
from speech import subtitles
from speech.errors import (
    InvalidRequest,
)
from speech.ports import DiarizeOptions, TranscribeOptions
from speech.transcript import EmotionSpan, Segment, Transcript, Word
from tests.unit.openai_service import CALM, FILE, TEXT, TRANSCRIPT, USAGE, problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


# ---------------------------------------------------------------- formats


async def test_json_has_the_text_and_the_seconds_of_the_audio(api):
    answer = await api.transcribe()
    assert answer.to_dict() == {"text": TEXT, "usage": USAGE}


@pytest.mark.parametrize(
    ("response_format", "media_type", "expected"),
    [
        ("text", "text/plain", TEXT + "\n"),
        ("srt", "text/plain", subtitles.srt(TRANSCRIPT.segments or ())),
        ("vtt", "text/vtt", subtitles.vtt(TRANSCRIPT.segments or ())),
    ],
)
async def test_text_and_subtitles_have_the_type_of_their_format(
    api, response_format, media_type, expected
):
    assert await api.transcribe(response_format=response_format) == expected
    answer = await api.post(response_format=response_format)
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
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


@pytest.mark.parametrize("wanted", ["json", "text", "srt", "vtt", "diarized_json"])
async def test_times_of_segments_may_be_asked_for_with_every_format(api, wanted):
    plain = await api.post(response_format=wanted)
    asked = await api.post(response_format=wanted, **{"timestamp_granularities[]": ["segment"]})
    assert (asked.status_code, asked.text) == (200, plain.text)


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


async def test_a_model_that_gives_no_probabilities_is_a_warning(api, service):
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
    answer = await api.post(response_format="vtt", flavour="red")
    warnings = json.loads(answer.headers["X-Speechgraph-Warnings"])
    assert warnings == ["the field 'flavour' is not known here", "нечто"]


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


async def test_diarization_answers_with_the_turns(api, service):
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
