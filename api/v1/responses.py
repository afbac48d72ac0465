"""What clients of the v1 API receive: a transcript, or the state of a job, as JSON."""

from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from api.v1.requests import ProcessRequest
from speech.jobs.states import Job, State
from speech.transcript import Segment, Transcript


class WordResult(TypedDict):
    """A word with the space before it; ``speaker`` is null without diarization."""

    start: float
    end: float
    word: str
    confidence: float | None
    speaker: str | None


class Alternative(TypedDict):
    """One hypothesis of a chunk."""

    words: list[WordResult]


class Chunk(TypedDict):
    """The words of one segment; channels are counted from "1"."""

    alternatives: list[Alternative]
    channelTag: str


class SegmentResult(TypedDict):
    """The text of one segment."""

    start: float
    end: float
    text: str
    speaker: str | None
    emotion: dict[str, float] | None
    channelTag: str


class TraResult(TypedDict):
    """Result of the task ``transcribe``."""

    chunks: list[Chunk]
    text: str
    language: str | None
    segments: list[SegmentResult]


class TraText(TypedDict):
    """Result of the task ``transcribe`` as one text."""

    start: float
    end: float
    text: str


class TurnResult(TypedDict):
    """A turn of one speaker."""

    start: float
    end: float
    speaker: str


class DiaResult(TypedDict):
    """Result of the task ``diarization``."""

    turns: list[TurnResult]


class EmotionResult(TypedDict):
    """The emotions of a span: label to probability."""

    start: float
    end: float
    emotional: dict[str, float]
    speaker: str | None


class EmoResult(TypedDict):
    """Result of the task ``emotion``."""

    segments: list[EmotionResult]


class TaskError(TypedDict):
    """A task that failed while others succeeded."""

    task: str
    code: str
    message: str


class JsonResult(TypedDict):
    """Result of ``format_output: json``; a block that was not asked for, or failed, is null."""

    tra: TraResult | None
    dia: DiaResult | None
    emo: EmoResult | None
    duration: float
    models: dict[str, str]
    stage_seconds: dict[str, float]
    warnings: list[str]
    errors: list[TaskError]


class TextResult(TypedDict, total=False):
    """Result of ``format_output: text``: what was asked for; errors only with partial_results."""

    tra: TraText | None
    dia: DiaResult | None
    emo: EmoResult | None
    errors: list[TaskError]


class ProcessResponse(TypedDict):
    """Answer of the v1 API; all four keys are always there."""

    status: State
    job_id: str | None
    result: JsonResult | TextResult | None
    error: str | None


def result_of(transcript: Transcript, request: ProcessRequest) -> JsonResult | TextResult:
    """The result in the format that was asked for."""
    render_as = _as_text if request.format_output == "text" else _as_json
    return render_as(transcript, request)


def failure_of(transcript: Transcript) -> tuple[str, str] | None:
    """Code and message if every task failed: a request for partial results then fails too."""
    blocks = (transcript.segments, transcript.turns, transcript.emotions)
    if not transcript.errors or any(block is not None for block in blocks):
        return None
    message = "; ".join(f"{error.task}: {error.message}" for error in transcript.errors)
    return transcript.errors[0].code, message


def render(transcript: Transcript, request: ProcessRequest) -> bytes:
    """The answer to a request that succeeded, as JSON; infinities and NaN become null."""
    answer: ProcessResponse = {
        "status": "completed",
        "job_id": None,
        "result": result_of(transcript, request),
        "error": None,
    }
    return to_json(answer, inf_nan_mode="null")


def job_answer(job: Job) -> ProcessResponse:
    """The state of a job; the error is shown once there will be no other attempt."""
    return {
        "status": job.state,
        "job_id": job.id,
        "result": None if job.result is None else from_json(job.result),
        "error": job.error if job.state == "failed" else None,
    }


def _as_json(transcript: Transcript, request: ProcessRequest) -> JsonResult:
    tra = request.settings.tra
    return {
        "tra": _tra(transcript, with_words=tra is None or tra.word_timestamps),
        "dia": _dia(transcript),
        "emo": _emo(transcript),
        "duration": transcript.duration,
        "models": dict(transcript.models),
        "stage_seconds": dict(transcript.stage_seconds),
        "warnings": list(transcript.warnings),
        "errors": _errors(transcript),
    }


def _as_text(transcript: Transcript, request: ProcessRequest) -> TextResult:
    tasks = request.settings.tasks
    result: TextResult = {}
    if "transcribe" in tasks:
        text: TraText = {"start": 0.0, "end": transcript.duration, "text": transcript.text}
        result["tra"] = None if transcript.segments is None else text
    if "diarization" in tasks:
        result["dia"] = _dia(transcript)
    if "emotion" in tasks:
        result["emo"] = _emo(transcript)
    if request.wants_partial_results:
        result["errors"] = _errors(transcript)
    return result


def _tra(transcript: Transcript, with_words: bool) -> TraResult | None:
    if transcript.segments is None:
        return None
    return {
        "chunks": [_chunk(s, with_words) for s in transcript.segments],
        "text": transcript.text,
        "language": transcript.language,
        "segments": [
            {
                "start": s.start,
                "end": s.end,
                "text": s.text.strip(),
                "speaker": s.speaker,
                "emotion": None if s.emotion is None else dict(s.emotion),
                "channelTag": _channel_tag(s),
            }
            for s in transcript.segments
        ],
    }


def _chunk(segment: Segment, with_words: bool) -> Chunk:
    words: list[WordResult] = [
        {
            "start": w.start,
            "end": w.end,
            "word": w.text,
            "confidence": w.probability,
            "speaker": w.speaker,
        }
        for w in (segment.words if with_words else ())
    ]
    return {"alternatives": [{"words": words}], "channelTag": _channel_tag(segment)}


def _channel_tag(segment: Segment) -> str:
    return str((segment.channel or 0) + 1)


def _dia(transcript: Transcript) -> DiaResult | None:
    if transcript.turns is None:
        return None
    turns: list[TurnResult] = [
        {"start": t.start, "end": t.end, "speaker": t.speaker} for t in transcript.turns
    ]
    return {"turns": turns}


def _emo(transcript: Transcript) -> EmoResult | None:
    if transcript.emotions is None:
        return None
    spans: list[EmotionResult] = [
        {"start": e.start, "end": e.end, "emotional": dict(e.scores), "speaker": e.speaker}
        for e in transcript.emotions
    ]
    return {"segments": spans}


def _errors(transcript: Transcript) -> list[TaskError]:
    return [{"task": e.task, "code": e.code, "message": e.message} for e in transcript.errors]
