"""The one result value of the service: who said what, when, and how it sounded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Scores = Mapping[str, float]
"""Emotion label to probability; the probabilities of one span sum to 1."""


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word; ``text`` keeps the space before it, so that joined words are the text."""

    text: str
    start: float
    end: float
    probability: float | None = None
    speaker: str | None = None

    def later(self, seconds: float) -> "Word":
        """The same word in the longer audio that its own begins ``seconds`` into."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)

    def slower(self, factor: float) -> "Word":
        """The same word in audio that is ``factor`` times as long."""
        return _stretched(self, factor)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech that the recogniser gave as one; times in seconds of the file.

    ``channel`` is the index of the channel it was heard on, None for the mono mix. The statistics
    below it are Whisper's own and None for the other recognisers.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    channel: int | None = None
    emotion: Scores | None = None
    tokens: tuple[int, ...] | None = None
    seek: int | None = None
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None

    def slower(self, factor: float) -> "Segment":
        """The same segment in audio that is ``factor`` times as long."""
        words = tuple(word.slower(factor) for word in self.words)
        seek = None if self.seek is None else round(self.seek * factor)
        return replace(_stretched(self, factor), words=words, seek=seek)


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch in which one speaker talks; turns of different speakers may overlap."""

    start: float
    end: float
    speaker: str
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one channel (None: the mono mix) that is to be classified."""

    start: float
    end: float
    channel: int | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class EmotionSpan:
    """How a stretch of one channel (None: the mono mix) sounded."""

    start: float
    end: float
    scores: Scores
    speaker: str | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Recognition:
    """What one recogniser heard on one channel; ``warnings`` say what it could not honour."""

    segments: tuple[Segment, ...]
    language: str | None = None
    language_probability: float | None = None
    warnings: tuple[str, ...] = ()

    def pack(self) -> dict[str, Any]:
        """As plain containers: they cross a handle ten times cheaper than objects."""
        return {
            "language": self.language,
            "language_probability": self.language_probability,
            "warnings": list(self.warnings),
            "segments": [
                {
                    **{name: getattr(s, name) for name in _SEGMENT_FIELDS},
                    "words": [(w.text, w.start, w.end, w.probability, w.speaker) for w in s.words],
                }
                for s in self.segments
            ],
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> "Recognition":
        """The inverse of :meth:`pack`."""
        segments = (
            Segment(**{**s, "words": tuple(Word(*w) for w in s["words"])})
            for s in packed["segments"]
        )
        return cls(
            tuple(segments),
            packed["language"],
            packed["language_probability"],
            tuple(packed["warnings"]),
        )


_SEGMENT_FIELDS = tuple(f for f in Segment.__dataclass_fields__ if f != "words")


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who spoke when; ``exclusive`` holds at most one speaker at a time, for attributing words."""

    turns: tuple[Turn, ...]
    exclusive: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class BranchError:
    """A branch that failed while others succeeded."""

    task: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answer of the graph. A block that was not asked for, or failed, is None."""

    duration: float
    language: str | None = None
    language_probability: float | None = None
    segments: tuple[Segment, ...] | None = None
    turns: tuple[Turn, ...] | None = None
    emotions: tuple[EmotionSpan, ...] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    errors: tuple[BranchError, ...] = ()

    @property
    def text(self) -> str:
        """The whole text, segments in the order of time."""
        return " ".join(s.text.strip() for s in self.segments or () if s.text.strip())

    def slower(self, factor: float) -> "Transcript":
        """The same of audio that is ``factor`` times as long."""
        if factor == 1.0:
            return self
        segments, turns, emotions = self.segments, self.turns, self.emotions
        return replace(
            self,
            duration=self.duration * factor,
            segments=None if segments is None else tuple(s.slower(factor) for s in segments),
            turns=None if turns is None else tuple(_stretched(t, factor) for t in turns),
            emotions=None if emotions is None else tuple(_stretched(e, factor) for e in emotions),
        )


_Timed = TypeVar("_Timed", Word, Segment, Turn, EmotionSpan)


def _stretched(timed: _Timed, factor: float) -> _Timed:
    return replace(timed, start=timed.start * factor, end=timed.end * factor)
