"""What a live stream asks for, its bounds, and the models behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from speech.live.endpointing import EndpointOptions
from speech.live.pcm import PcmFormat
from speech.live.pending_total import PendingTotal
from speech.ports import (
    EmotionClassifier,
    SpeakerEmbedder,
    StreamingRecognizer,
    TranscribeOptions,
    Transcriber,
    VoiceActivity,
)

TurnEnd = Literal["pause", "commit"]
"""What ends a turn: the pause after it, or only a commit of the client."""


@dataclass(frozen=True, slots=True)
class FrameSynchronous:
    """A streaming model makes the finals, and the partials where they are wanted."""

    model: str
    partials: bool = True
    turns: TurnEnd | None = None


@dataclass(frozen=True, slots=True)
class TwoPass:
    """A streaming model makes the partials, and an utterance model the finals."""

    model: str
    partial_model: str
    turns: TurnEnd | None = None


@dataclass(frozen=True, slots=True)
class WholeUtterances:
    """An utterance model makes the finals, and the partials by recognising again and again."""

    model: str
    partials: bool = True
    turns: TurnEnd | None = None


@dataclass(frozen=True, slots=True)
class Pieces:
    """An utterance model recognises all audio, silence too, in pieces that are cut in pauses.

    Nothing is endpointed and there are no partials; a piece has at most
    ``endpointing.max_utterance_s``.
    """

    model: str
    turns: ClassVar[None] = None


Mode = FrameSynchronous | TwoPass | WholeUtterances | Pieces


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What one stream asks for.

    ``progress_s`` is how often, in seconds of the stream, progress is reported; None for never.
    ``pcm`` is None where the audio comes in a container.

    Where ``mode.turns`` is set, events state which utterances belong to one turn, see
    :mod:`speech.live.turns`. Partials then hold only words that are never taken back, and an
    utterance that cannot be recognised does not end the stream. In turns that the client commits
    there are no events of the beginning and end of speech.
    """

    mode: Mode
    endpointing: EndpointOptions = field(default_factory=EndpointOptions)
    transcribe: TranscribeOptions = field(default_factory=TranscribeOptions)
    emotion_model: str | None = None
    speakers: bool = False
    progress_s: float | None = None
    pcm: PcmFormat | None = None

    @property
    def partial_model(self) -> str | None:
        """The streaming model of the partials, where another one makes the finals."""
        return self.mode.partial_model if isinstance(self.mode, TwoPass) else None

    @property
    def streaming_model(self) -> str | None:
        """The streaming model that the stream is fed to; None where there is none."""
        if isinstance(self.mode, FrameSynchronous):
            return self.mode.model
        return self.partial_model


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one stream; ``pending`` is shared by all streams of the process."""

    max_pending_bytes: int = 128 * 1024**2
    max_stream_s: float = 3 * 3600.0
    pending: PendingTotal = field(
        default_factory=lambda: PendingTotal(512 * 1024**2, max_streams=100)
    )


@dataclass(frozen=True, slots=True)
class LivePorts:
    """The models behind live streams; ``observe_lag`` takes the lag of each final in seconds."""

    voice_activity: Callable[[EndpointOptions], VoiceActivity]
    streaming: StreamingRecognizer | None
    transcriber: Transcriber
    emotions: EmotionClassifier | None = None
    embedder: SpeakerEmbedder | None = None
    observe_lag: Callable[[float], None] = lambda seconds: None


@dataclass(frozen=True, slots=True)
class ResumeState:
    """Where an earlier session ended whose stream continues in a new one.

    The finals of its ``utterances`` reach to ``end_s``, its last event was ``seq``. ``voices`` has
    the last ``voice`` of each ``speaker``.
    """

    end_s: float = 0.0
    seq: int = 0
    utterances: int = 0
    voices: Mapping[str, bytes] = field(default_factory=dict)
