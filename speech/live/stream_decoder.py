"""The bytes of a live stream become samples: PCM on the event loop, Opus in a thread of its own."""

from typing import Literal, Protocol, get_args

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import InvalidRequest
from speech.live.container import ContainerDecoder
from speech.live.pcm import PcmDecoder

Encoding = Literal["pcm_s16le", "pcm_f32le", "opus"]


class StreamDecoder(Protocol):
    """Decodes the bytes of one stream to float32 mono samples at 16 kHz, in [-1, 1].

    Calls are made one at a time.
    """

    async def feed(self, data: bytes) -> Samples:
        """The samples that are complete after these bytes, often none.

        Raises UnsupportedAudio, TooManyChannels, AudioTooLong; the stream is over then. Samples
        from before the damage come first, the call after them raises.
        """
        ...

    async def flush(self) -> Samples:
        """The samples that were held back, at the end of the stream."""
        ...

    async def close(self) -> None:
        """Free everything; may be called at any time and twice."""
        ...


def stream_decoder(
    encoding: str, sample_rate: int = SAMPLE_RATE, channels: int = 1
) -> StreamDecoder:
    """The decoder of an :data:`Encoding`; ``opus`` carries its own rate and channels.

    Raises InvalidRequest.
    """
    match encoding:
        case "pcm_s16le" | "pcm_f32le":
            return PcmDecoder(encoding, sample_rate, channels)
        case "opus":
            return ContainerDecoder()
    allowed = ", ".join(get_args(Encoding))
    raise InvalidRequest(f"encoding {encoding!r} is not known, it must be one of {allowed}")
