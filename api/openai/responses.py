"""Answers of OpenAI's audio routes: a transcript in each of its formats."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PureWindowsPath
from typing import Any, Literal, NotRequired

from pydantic_core import to_json
from starlette.responses import Response
from typing_extensions import TypedDict

from api.openai.requests import DiarizationForm, Form, SpeechForm, TranslationForm
from speech import subtitles
from speech.transcript import Segment, Transcript, Turn, Word

WARNINGS_HEADER = "X-Speechgraph-Warnings"
"""Header with the warnings of a format without fields, as a JSON list."""
LEAST_PROBABILITY = 1e-10
"""Its logarithm is the lowest that is sent: JSON has no infinity."""
UNKNOWN = "unknown"
"""Stands for an unknown speaker or language: clients expect a text there."""


class Usage(TypedDict):
    """Duration of the audio, in whole seconds."""

    type: Literal["duration"]
    seconds: int


class Logprob(TypedDict):
    """Log probability of a word; OpenAI has one of these for each of its tokens."""

    token: str
    logprob: float
    bytes: list[int]


class EmotionSpan(TypedDict):
    """The emotions of a span: label to probability."""

    start: float
    end: float
    emotion: dict[str, float]
    speaker: str | None


class SpeechAnswer(TypedDict):
    """What every format with fields has; the last two are our own, absent if empty."""

    text: str
    usage: Usage
    emotions: NotRequired[list[EmotionSpan]]
    warnings: NotRequired[list[str]]


class Transcription(SpeechAnswer):
    """``response_format: json``."""

    logprobs: NotRequired[list[Logprob]]


class VerboseWord(TypedDict):
    """A word and its times."""

    word: str
    start: float
    end: float


class VerboseSegment(TypedDict):
    """A segment; the last six fields are Whisper's, and 0 for other models."""

    id: int
    start: float
    end: float
    text: str
    emotion: NotRequired[dict[str, float]]
    seek: int
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionVerbose(SpeechAnswer):
    """``response_format: verbose_json``."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    segments: NotRequired[list[VerboseSegment]]
    words: NotRequired[list[VerboseWord]]


class DiarizedSegment(TypedDict):
    """A segment of one speaker; also the event of a stream."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: str
    emotion: NotRequired[dict[str, float]]


class TranscriptionDiarized(SpeechAnswer):
    """``response_format: diarized_json``."""

    task: Literal["transcribe"]
    duration: float
    segments: list[DiarizedSegment]


class SpeakerTurn(TypedDict):
    """A turn of one speaker."""

    start: float
    end: float
    speaker: str


class DiarizationResult(TypedDict):
    """``POST /v1/audio/diarization``: the turns."""

    duration: float
    segments: list[SpeakerTurn]
    usage: Usage
    warnings: NotRequired[list[str]]


class Speakers:
    """Letters for speakers in the order of their first appearance: A, B, … Z, AA, AB, …"""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, speaker: str | None) -> str:
        """The letter of a speaker of the diarization model."""
        if speaker is None:
            return UNKNOWN
        return self._letters.setdefault(speaker, _letters(len(self._letters)))


def speech_answer(transcript: Transcript, form: SpeechForm) -> Response:
    """The answer of both speech routes, in the format that was asked for."""
    match form.response_format:
        case "text":
            return _text(f"{transcript.text}\n", transcript, form)
        case "srt":
            return _text(subtitles.srt(transcript.segments or ()), transcript, form)
        case "vtt":
            cues = subtitles.vtt(transcript.segments or ())
            return _text(cues, transcript, form, media_type="text/vtt")
        case "verbose_json":
            return _json(_verbose(transcript, form))
        case "diarized_json":
            return _json(_diarized(transcript, form))
    return _json(as_json(transcript, form))


def as_json(transcript: Transcript, form: SpeechForm) -> Transcription:
    """``response_format: json``."""
    body: Transcription = {"text": transcript.text, "usage": usage(transcript)}
    add_ours(body, transcript, form)
    if form.wants_logprobs:
        add_logprobs(body, transcript)
    return body


def add_ours(
    body: SpeechAnswer, transcript: Transcript, form: SpeechForm, speakers: Speakers | None = None
) -> None:
    """Add what OpenAI's answers do not have; ``speakers`` names those of the emotions by letter."""
    if transcript.emotions is not None:
        body["emotions"] = [
            {
                "start": e.start,
                "end": e.end,
                "emotion": dict(e.scores),
                "speaker": speakers.letter(e.speaker) if speakers and e.speaker else e.speaker,
            }
            for e in transcript.emotions
        ]
    if warnings := warnings_of(transcript, form):
        body["warnings"] = warnings


def add_logprobs(body: Transcription, transcript: Transcript) -> None:
    """Add the log probability of each word, and a warning where the model gives none."""
    words = [word for segment in transcript.segments or () for word in segment.words]
    body["logprobs"] = logprobs(words)
    if len(body["logprobs"]) < len(words):
        body["warnings"] = [*body.get("warnings", ()), "this model gives no log probabilities"]


def logprobs(words: Iterable[Word]) -> list[Logprob]:
    """Log probabilities of the words that have a probability."""
    return [
        {
            "token": word.text,
            "logprob": math.log(max(word.probability, LEAST_PROBABILITY)),
            "bytes": list(word.text.encode()),
        }
        for word in words
        if word.probability is not None
    ]


def diarized_segment(segment: Segment, number: int, speakers: Speakers) -> DiarizedSegment:
    """A segment of one speaker; segments are numbered from 1."""
    body: DiarizedSegment = {
        "type": "transcript.text.segment",
        "id": f"seg_{number:03}",
        "start": segment.start,
        "end": segment.end,
        "text": segment.text.strip(),
        "speaker": speakers.letter(segment.speaker),
    }
    if segment.emotion is not None:
        body["emotion"] = dict(segment.emotion)
    return body


def diarization_answer(transcript: Transcript, form: DiarizationForm) -> Response:
    """The turns, as JSON or as RTTM."""
    turns = transcript.turns or ()
    if form.response_format == "rttm":
        return _text(_rttm(turns, form.file.filename or ""), transcript, form)
    body: DiarizationResult = {
        "duration": transcript.duration,
        "segments": [{"start": t.start, "end": t.end, "speaker": t.speaker} for t in turns],
        "usage": usage(transcript),
    }
    if warnings := warnings_of(transcript, form):
        body["warnings"] = warnings
    return _json(body)


def usage(transcript: Transcript) -> Usage:
    """Duration in seconds, rounded up."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def warnings_of(transcript: Transcript, form: Form) -> list[str]:
    """Where the work differs from the request."""
    return [*form.notes(), *transcript.warnings]


def _verbose(transcript: Transcript, form: SpeechForm) -> TranscriptionVerbose:
    translated = isinstance(form, TranslationForm)
    body: TranscriptionVerbose = {
        "text": transcript.text,
        "usage": usage(transcript),
        "task": "translate" if translated else "transcribe",
        "language": "english" if translated else transcript.language or UNKNOWN,
        "duration": transcript.duration,
    }
    add_ours(body, transcript, form)
    segments = transcript.segments or ()
    if "segment" in form.granularities:
        body["segments"] = [verbose_segment(i, segment) for i, segment in enumerate(segments)]
    if "word" in form.granularities:
        body["words"] = [
            {"word": word.text.strip(), "start": word.start, "end": word.end}
            for segment in segments
            for word in segment.words
        ]
    return body


def verbose_segment(number: int, segment: Segment) -> VerboseSegment:
    """A segment with Whisper's fields; segments are numbered from 0."""
    body: VerboseSegment = {
        "id": number,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "seek": segment.seek or 0,
        "tokens": list(segment.tokens or ()),
        "temperature": segment.temperature or 0.0,
        "avg_logprob": segment.avg_logprob or 0.0,
        "compression_ratio": segment.compression_ratio or 0.0,
        "no_speech_prob": segment.no_speech_prob or 0.0,
    }
    if segment.emotion is not None:
        body["emotion"] = dict(segment.emotion)
    return body


def _diarized(transcript: Transcript, form: SpeechForm) -> TranscriptionDiarized:
    speakers = Speakers()
    body: TranscriptionDiarized = {
        "text": transcript.text,
        "usage": usage(transcript),
        "task": "transcribe",
        "duration": transcript.duration,
        "segments": [
            diarized_segment(segment, number, speakers)
            for number, segment in enumerate(transcript.segments or (), 1)
        ],
    }
    add_ours(body, transcript, form, speakers)
    return body


def _rttm(turns: Iterable[Turn], filename: str) -> str:
    """NIST's format: a line for each turn, with start and length."""
    # The name ends up between spaces; it is never used as a path.
    name = "_".join(PureWindowsPath(filename).stem.split()) or "audio"
    return "".join(
        f"SPEAKER {name} 1 {turn.start:.3f} {turn.end - turn.start:.3f} "
        f"<NA> <NA> {turn.speaker} <NA> <NA>\n"
        for turn in turns
    )


def _letters(index: int) -> str:
    letters = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        letters = chr(ord("A") + letter) + letters
        index -= 1
    return letters


def _json(body: Mapping[str, Any]) -> Response:
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


def _text(
    text: str, transcript: Transcript, form: Form, media_type: str = "text/plain"
) -> Response:
    warnings = warnings_of(transcript, form)
    headers = {WARNINGS_HEADER: json.dumps(warnings)} if warnings else {}
    return Response(text, headers=headers, media_type=media_type)
