"""Headerless PCM and G.711 as WAV files, so that they are decoded like any other upload."""

import struct
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from speech.errors import InvalidRequest
from speech.live.pcm import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, MAX_CHANNELS, PcmEncoding

FileEncoding = Literal[PcmEncoding, "pcm_s16be"]
ENCODINGS: tuple[str, ...] = get_args(FileEncoding)

_FORMATS: Mapping[str, tuple[int, int]] = {
    "pcm_s16le": (1, 2),
    "pcm_s16be": (1, 2),
    "pcm_f32le": (3, 4),
    "g711_alaw": (6, 1),
    "g711_ulaw": (7, 1),
}
"""WAV's format tag and the bytes of a sample."""


def as_wav(data: bytes, encoding: str, sample_rate: int, channels: int) -> bytes:
    """A WAV file of plain samples, channels interleaved. Raises InvalidRequest."""
    if encoding not in _FORMATS:
        raise InvalidRequest(f"encoding: one of {', '.join(ENCODINGS)}, not {encoding[:40]!r}.")
    if not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
        raise InvalidRequest(f"sample_rate: from {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidRequest(f"channels: from 1 to {MAX_CHANNELS}.")
    tag, sample_bytes = _FORMATS[encoding]
    frame_bytes = sample_bytes * channels
    whole = data[: len(data) - len(data) % frame_bytes]
    if encoding == "pcm_s16be":
        whole = np.frombuffer(whole, ">i2").astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(whole),
        b"WAVE",
        b"fmt ",
        16,
        tag,
        channels,
        sample_rate,
        sample_rate * frame_bytes,
        frame_bytes,
        8 * sample_bytes,
        b"data",
        len(whole),
    )
    return header + whole
