"""The result value of the service: words, speakers, times and emotions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

Scores = Mapping[str, float]
"""Emotion label to probability; the probabilities of one span sum to 1."""


def whole_ms(seconds: float) -> float:
    """The seconds rounded to milliseconds, the resolution of all times that clients receive."""
    return round(seconds, 3)


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word; ``text`` keeps the space before it, so that joined words are the text."""

    text: str
    start: float
    end: float
    probability: float | None = None
    speaker: str | None = None

    def shifted(self, seconds: float) -> "Word":
        """The same word with times ``seconds`` later."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)

    def stretched(self, factor: float) -> "Word":
        """The same word in audio that is ``factor`` times as long."""
        return _scaled(self, factor)

    def rounded(self) -> "Word":
        """The same word with times in whole milliseconds."""
        return _rounded(self)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as the recogniser delimits it; times in seconds of the file.

    ``channel`` is the index of its channel, None for the mono mix. The fields from ``tokens`` on
    are statistics of Whisper, None for other recognisers.
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

    def stretched(self, factor: float) -> "Segment":
        """The same segment in audio that is ``factor`` times as long."""
        words = tuple(word.stretched(factor) for word in self.words)
        seek = None if self.seek is None else round(self.seek * factor)
        return replace(_scaled(self, factor), words=words, seek=seek)

    def rounded(self) -> "Segment":
        """The same segment with times in whole milliseconds."""
        return replace(_rounded(self), words=tuple(word.rounded() for word in self.words))


@dataclass(frozen=True, slots=True)
class Turn:
    """A time span of one speaker; turns of different speakers may overlap."""

    start: float
    end: float
    speaker: str
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A time span of one channel (None: the mono mix) to classify."""

    start: float
    end: float
    channel: int | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class EmotionSpan:
    """The emotion scores of a time span of one channel (None: the mono mix)."""

    start: float
    end: float
    scores: Scores
    speaker: str | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Recognition:
    """The result of a recogniser on one channel; ``warnings`` list options it could not honour.

    ``missed`` are start and end, in seconds, of speech of which the text may be incomplete.
    """

    segments: tuple[Segment, ...]
    language: str | None = None
    language_probability: float | None = None
    warnings: tuple[str, ...] = ()
    missed: tuple[tuple[float, float], ...] = ()

    def pack(self) -> dict[str, Any]:
        """As plain containers, which cross a Serve handle at a tenth of the cost of objects."""
        return {
            "language": self.language,
            "language_probability": self.language_probability,
            "warnings": list(self.warnings),
            "missed": list(self.missed),
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
            tuple(packed["missed"]),
        )


_SEGMENT_FIELDS = tuple(f for f in Segment.__dataclass_fields__ if f != "words")


@dataclass(frozen=True, slots=True)
class Diarization:
    """Speaker turns; ``exclusive`` are those without overlap, for attributing words."""

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
    """The result of the graph. A field that was not requested, or whose branch failed, is None."""

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
        """The whole text, segments in order of time."""
        return " ".join(s.text.strip() for s in self.segments or () if s.text.strip())

    def stretched(self, factor: float) -> "Transcript":
        """The same transcript for audio that is ``factor`` times as long."""
        if factor == 1.0:
            return self
        segments, turns, emotions = self.segments, self.turns, self.emotions
        return replace(
            self,
            duration=self.duration * factor,
            segments=None if segments is None else tuple(s.stretched(factor) for s in segments),
            turns=None if turns is None else tuple(_scaled(t, factor) for t in turns),
            emotions=None if emotions is None else tuple(_scaled(e, factor) for e in emotions),
        )

    def rounded(self) -> "Transcript":
        """The same transcript with times in whole milliseconds."""
        segments, turns, emotions = self.segments, self.turns, self.emotions
        return replace(
            self,
            duration=whole_ms(self.duration),
            segments=None if segments is None else tuple(s.rounded() for s in segments),
            turns=None if turns is None else tuple(_rounded(t) for t in turns),
            emotions=None if emotions is None else tuple(_rounded(e) for e in emotions),
            stage_seconds={stage: whole_ms(s) for stage, s in self.stage_seconds.items()},
        )


_Timed = TypeVar("_Timed", Word, Segment, Turn, EmotionSpan)


def _scaled(timed: _Timed, factor: float) -> _Timed:
    return replace(timed, start=timed.start * factor, end=timed.end * factor)


def _rounded(timed: _Timed) -> _Timed:
    return replace(timed, start=whole_ms(timed.start), end=whole_ms(timed.end))
