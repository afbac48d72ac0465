"""Streams of bytes in chunks, and what a decoder makes of them."""

from collections.abc import Iterable

import numpy as np

from speech.audio import Samples
from speech.live.stream_decoder import StreamDecoder


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def decoded(stream: StreamDecoder, chunks: Iterable[bytes]) -> Samples:
    """Everything a stream makes of these chunks."""
    try:
        samples = [await stream.feed(chunk) for chunk in chunks]
        return np.concatenate([*samples, await stream.flush()])
    finally:
        await stream.close()
