"""Headerless PCM of a live stream, or G.711, to float32 mono samples at 16 kHz."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import InvalidRequest

PcmEncoding = Literal["pcm_s16le", "pcm_f32le", "g711_ulaw", "g711_alaw"]

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8_000, 48_000
MAX_CHANNELS = 8

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "pcm_s16le": np.dtype("<i2"),
    "pcm_f32le": np.dtype("<f4"),
    "g711_ulaw": np.dtype("u1"),
    "g711_alaw": np.dtype("u1"),
}
_RESAMPLED_AT_ONCE = 1 << 16
"""Samples, well below a millisecond of work; a frame may hold a hundred times as many."""


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """How the client sends plain samples."""

    sample_rate: int
    sample_bytes: int
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        """One sample of every channel, bytes."""
        return self.sample_bytes * self.channels


class PcmDecoder:
    """PCM, little-endian, channels interleaved and mixed evenly to mono.

    Frames may be split anywhere: the bytes of an incomplete sample wait for the next ``feed``.
    The resampler holds back up to 0.12 s until ``flush``; in all, ``n`` samples become
    ``n * 16000 / sample_rate``, rounded. NaN becomes zero; what exceeds full scale is clipped.
    What is fed after ``flush`` begins a new stream.

    Raises InvalidRequest for a rate or a number of channels out of range.
    """

    def __init__(self, encoding: PcmEncoding, sample_rate: int, channels: int = 1) -> None:
        if not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:
            raise InvalidRequest(
                f"sample_rate is {sample_rate}, it must be "
                f"from {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise InvalidRequest(f"channels is {channels}, it must be from 1 to {MAX_CHANNELS}")
        self._dtype = _DTYPES[encoding]
        self._levels = _G711_LEVELS.get(encoding)
        self._channels = channels
        self._resampler = StreamResampler(sample_rate)
        self._rest = b""

    async def feed(self, data: bytes) -> Samples:
        """See :class:`speech.live.stream_decoder.StreamDecoder`; runs on the event loop."""
        data = self._rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self._rest = data[whole:]
        samples = np.frombuffer(data, self._dtype, whole // self._dtype.itemsize)
        if self._levels is not None:
            samples = self._levels[samples]
        mono = mono_mix(samples.reshape(-1, self._channels).T)
        if len(mono) <= _RESAMPLED_AT_ONCE:
            return self._resampler.push(mono)
        pieces = []
        for first in range(0, len(mono), _RESAMPLED_AT_ONCE):
            pieces.append(self._resampler.push(mono[first : first + _RESAMPLED_AT_ONCE]))
            await asyncio.sleep(0)
        return np.concatenate(pieces)

    async def flush(self) -> Samples:
        """See the protocol; the bytes of an incomplete sample are dropped."""
        self._rest = b""
        return self._resampler.finish()

    async def close(self) -> None:
        """See the protocol; nothing is held."""


class StreamResampler:
    """One stream to 16 kHz, with the filter that files are resampled with."""

    def __init__(self, sample_rate: int) -> None:
        self._stream = None
        if sample_rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1)

    def push(self, samples: Samples) -> Samples:
        """The samples at 16 kHz that are complete, float32 in [-1, 1]."""
        return self._resample(samples, last=False)

    def finish(self) -> Samples:
        """What the filter held back; what is pushed next begins a new stream."""
        rest = self._resample(np.empty(0, np.float32), last=True)
        if self._stream is not None:
            self._stream.clear()
        return rest

    def _resample(self, samples: Samples, *, last: bool) -> Samples:
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples, last=last)
        return np.clip(resampled, -1.0, 1.0)  # the filter overshoots at full scale


def mono_mix(channels: NDArray[np.generic]) -> Samples:
    """The even mix of [channels, samples], float32 in [-1, 1]; NaN becomes zero."""
    if channels.dtype == np.int16:
        planar = channels.astype(np.float32) * np.float32(2.0**-15)
    else:
        planar = np.nan_to_num(np.clip(channels, -1.0, 1.0).astype(np.float32), copy=False)
    mono: Samples = planar[0] if len(planar) == 1 else planar.mean(axis=0, dtype=np.float32)
    return mono


def _ulaw() -> NDArray[np.int16]:
    """The levels of the 256 codes of G.711 mu-law (ITU-T G.711, table 2)."""
    code = ~np.arange(256, dtype=np.uint8).astype(np.int32) & 0xFF
    size = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 0x07)) - 0x84
    return np.where(code & 0x80, -size, size).astype(np.int16)


def _alaw() -> NDArray[np.int16]:
    """The levels of the 256 codes of G.711 A-law (ITU-T G.711, table 1)."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    step, exponent = ((code & 0x0F) << 4) + 8, code >> 4 & 0x07
    size = np.where(exponent, step + 0x100 << np.maximum(exponent - 1, 0), step)
    return np.where(code & 0x80, size, -size).astype(np.int16)


_G711_LEVELS = {"g711_ulaw": _ulaw(), "g711_alaw": _alaw()}
