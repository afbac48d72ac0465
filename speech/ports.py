"""What the graph needs of its models: one Protocol each, with the options that travel to it.

In a test the ports are engines in threads; in service they are Ray Serve handles. The graph in
:mod:`speech.pipeline` is the same for both.
"""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from speech.audio import Samples
from speech.errors import InvalidRequest
from speech.transcript import Diarization, Recognition, Scores, Span, Word

MAX_HOTWORDS = 5000
"""Characters; the time that sherpa-onnx needs to tokenise them grows with their square."""
DEFAULT_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PREPEND_PUNCTUATIONS = "\"'“¿([{-"
APPEND_PUNCTUATIONS = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """Audio that was decoded once; ``content`` is what the other ports process.

    In process ``content`` is a :class:`speech.audio.Audio`, in service a reference to one.
    ``channels`` counts the channels that were kept: 1 when only the mono mix was.
    """

    content: Any
    duration: float
    channels: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TranscribeOptions:
    """How to recognise. Names and defaults are faster-whisper's, as the v1 API publishes them.

    ``language`` None means: detect it. A recogniser that ignores an option which differs from its
    default names it in a warning.
    """

    model: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    word_timestamps: bool = True
    vad_filter: bool = False
    vad_parameters: Mapping[str, Any] | None = None
    batch_size: int = 16
    beam_size: int = 5
    best_of: int = 10
    patience: float = 1.0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: tuple[float, ...] = DEFAULT_TEMPERATURES
    compression_ratio_threshold: float | None = 2.4
    log_prob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    prompt_reset_on_temperature: float = 0.5
    initial_prompt: str | None = None
    prefix: str | None = None
    suppress_blank: bool = True
    suppress_tokens: tuple[int, ...] | None = (-1,)
    without_timestamps: bool = False
    max_initial_timestamp: float = 1.0
    prepend_punctuations: str = PREPEND_PUNCTUATIONS
    append_punctuations: str = APPEND_PUNCTUATIONS
    multilingual: bool = False
    max_new_tokens: int | None = None
    chunk_length: int | None = None
    clip_timestamps: str | tuple[float, ...] = "0"
    hallucination_silence_threshold: float | None = None
    hotwords: str | None = None
    language_detection_threshold: float | None = 0.5
    language_detection_segments: int = 1
    log_progress: bool = False

    def faster(self, speedup: float) -> "TranscribeOptions":
        """The same for audio that is ``speedup`` times as fast; times of the file are rescaled.

        Raises InvalidRequest for clips that cannot be read.
        """
        if speedup == 1.0:
            return self
        silence = self.hallucination_silence_threshold
        return replace(
            self,
            clip_timestamps=tuple(time / speedup for time in clip_times(self)) or "0",
            hallucination_silence_threshold=None if silence is None else silence / speedup,
        )


def clip_times(options: TranscribeOptions) -> list[float]:
    """Start, end, start, end… in seconds, the last end may be missing; empty for the whole file.

    Raises InvalidRequest.
    """
    given = options.clip_timestamps
    try:
        parts = given.split(",") if isinstance(given, str) and given else given
        times = [float(part) for part in parts]
    except ValueError as error:
        raise InvalidRequest(f"clip_timestamps is no list of seconds: '{given}'") from error
    if not all(math.isfinite(t) and t >= 0 for t in times):
        raise InvalidRequest("clip_timestamps must be seconds from 0 on")
    if any(a >= b for a, b in zip(times[::2], times[1::2], strict=False)) or times != sorted(times):
        raise InvalidRequest("clip_timestamps must be start,end,start,end,… in rising order")
    return [] if times == [0.0] else times


@dataclass(frozen=True, slots=True)
class DiarizeOptions:
    """How to find the speakers; the numbers of speakers are hints that the model must keep to."""

    model: str | None = None
    stereo_mode: bool = False
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    use_gpu: bool = True


EmotionLevel = Literal["word", "sentence", "speaker", "file"]


@dataclass(frozen=True, slots=True)
class EmotionOptions:
    """What to classify: each word, sentence or turn, or the file as a whole."""

    model: str | None = None
    level: EmotionLevel = "word"


class Decoder(Protocol):
    """Turns an uploaded file into audio."""

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        """Decode any container; bounded in seconds and channels. See :mod:`speech.media.tempo`.

        Raises EmptyAudio, UnsupportedAudio, AudioTooLong, TooManyChannels.
        """
        ...


class Transcriber(Protocol):
    """Turns audio into words."""

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        """Recognise one channel (None: the mono mix) of any length."""
        ...


class FileTranscriber(Transcriber, Protocol):
    """A transcriber that also gives its segments before all of them are recognised."""

    def stream(
        self, audio: DecodedAudio, options: TranscribeOptions
    ) -> AsyncGenerator[Recognition, None]:
        """The recognition of the mono mix, in parts.

        Each part has the segments recognised since the one before, the last one all the rest.
        A caller that stops early closes the generator.
        """
        ...


class Diarizer(Protocol):
    """Finds who spoke when."""

    async def diarize(self, audio: DecodedAudio, options: DiarizeOptions) -> Diarization:
        """Turns of the speakers of the mono mix, or of each channel in ``stereo_mode``."""
        ...


class EmotionClassifier(Protocol):
    """Classifies the emotion of stretches of speech."""

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        """Scores of each span, in the order of ``spans``."""
        ...


class RecognizerStream(Protocol):
    """One live stream of a frame-synchronous recogniser: one utterance after another.

    Calls are made one at a time. What it takes to keep the stream alive, such as to open it again
    on another replica, happens inside of them.
    """

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        """The words of the utterance so far, with times in seconds of the utterance.

        ``samples`` are float32 at 16 kHz and follow the ones before without a gap.
        """
        ...

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        """The words of the whole utterance; the next ``feed`` begins another one.

        Nobody spoke in the last ``trailing_silence_s`` seconds of it.
        """
        ...

    async def close(self) -> None:
        """Free the stream wherever it lives."""
        ...


class StreamingRecognizer(Protocol):
    """Recognises many live streams at once, frame by frame."""

    async def open(self, model: str, hotwords: str | None = None) -> RecognizerStream:
        """A new stream of a catalogue model.

        Raises ModelNotFound, ModelUnavailable, Overloaded.
        """
        ...


class VoiceActivity(Protocol):
    """Detects where someone speaks in one live stream."""

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        """Probabilities of the windows of 512 samples that are now complete, float32 [windows]."""
        ...


class SpeakerEmbedder(Protocol):
    """Turns an utterance into a vector that is similar for the same voice."""

    async def embed(self, samples: Samples) -> NDArray[np.float32]:
        """A vector of length 1, float32 [dimensions], of mono samples at 16 kHz."""
        ...
