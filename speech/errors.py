"""The closed family of errors; each dialect renders them in its own shape.

Every error carries a stable ``code`` for programs and a message for people. All of them pickle and
keep class and fields when they return from a replica.
"""

from typing import ClassVar


class SpeechError(Exception):
    """Base of the family: an error to report to the client.

    ``detail`` is for the operator, such as a path: the logs have it, clients do not get it.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message, detail)
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        # In one line, for logs and Serve's status; without the fields, which are arguments for the
        # sake of pickling.
        text = f"{self.message}: {self.detail}" if self.detail else self.message
        return " ".join(text.split())


class InvalidRequest(SpeechError):
    """The request contradicts itself or names something that does not exist."""

    code = "invalid_request"


class ModelNotFound(InvalidRequest):
    """No model of that id or alias is in the catalogue of this service."""

    code = "model_not_found"


class ModelNotInstalled(InvalidRequest):
    """The files of a model, or the library that runs it, are not on this server."""

    code = "model_not_installed"


class NotEnabled(InvalidRequest):
    """The request needs a component that this service does not run."""

    code = "not_enabled"


class EmptyAudio(SpeechError):
    """The upload has no bytes, or decodes to no samples."""

    code = "empty_audio"


class UnsupportedAudio(SpeechError):
    """The bytes cannot be decoded as audio, or have no audio track."""

    code = "unsupported_audio"


class AudioTooLarge(SpeechError):
    """The upload has more bytes than this service takes."""

    code = "audio_too_large"


class UploadTooSlow(SpeechError):
    """The upload stalls, or has fewer bytes per second than this service waits for."""

    code = "upload_too_slow"


class AudioTooLong(SpeechError):
    """The audio decodes to more seconds than this service takes."""

    code = "audio_too_long"


class FetchFailed(SpeechError):
    """The file at the URL in the request could not be fetched."""

    code = "fetch_failed"


class TooManyChannels(SpeechError):
    """The audio has more channels than this service takes."""

    code = "too_many_channels"


class Overloaded(SpeechError):
    """A queue is full; the same request may succeed after ``retry_after_s`` seconds."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 2.0, detail: str = "") -> None:
        super().__init__(message, detail)
        self.args = (message, retry_after_s, detail)
        self.retry_after_s = retry_after_s


class TooFarAhead(Overloaded):
    """The client is further ahead of the recognition than the service buffers."""

    code = "too_far_ahead"


class ModelUnavailable(Overloaded):
    """A model cannot be served now: it does not load, or its replica keeps dying."""

    code = "model_unavailable"


class OutOfMemory(Overloaded):
    """The memory, of the GPU or of the machine, does not suffice for a model or its work now."""

    code = "out_of_memory"


class DeadlineExceeded(SpeechError):
    """A stage did not finish within its deadline."""

    code = "deadline_exceeded"


class EngineFailed(SpeechError):
    """A model failed on this input."""

    code = "engine_failed"


class StreamTooLong(SpeechError):
    """The stream has more seconds than this service takes."""

    code = "stream_too_long"


class IdleTimeout(SpeechError):
    """The client sent nothing for too long."""

    code = "idle_timeout"


class Cancelled(SpeechError):
    """The work was cancelled because nobody waits for its result any more."""

    code = "cancelled"
