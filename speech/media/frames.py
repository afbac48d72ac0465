"""From decoded frames to audio: the timeline of the file, the mono mix and 16 kHz."""

import math
from collections.abc import Mapping

import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import AudioTooLong, TooManyChannels, UnsupportedAudio

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 3_072_000
"""Accepted sample rates; resampling of others would need excessive memory."""

GAP_S = 0.05
"""A gap in the timestamps longer than this becomes silence; a shorter one is rounding."""

DUAL_MONO_RATIO = 0.01
"""Two channels count as equal when the RMS of their difference is below this share (-40 dB) of
theirs: above the error of joint-stereo codecs, far below the crosstalk of a two-party recording."""

CANCELLED_RATIO = 0.05
"""Channels cancel each other where their mix has less than this share (-13 dB) of the energy that a
mix of uncorrelated channels has, as two channels of one microphone in opposite phase do."""

AUDIBLE = 1e-6
"""Mean square (-60 dB) below which cancellation does not matter."""

MIX_WINDOW_S = 0.1
"""Length of the windows in which cancellation is measured; shorter than a word."""

OMITTED_RATIO = 100.0
"""Channels without weight in the mix cause a warning if they are this much (20 dB) louder."""

_FRONT = dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), 0.7071)
_DOWNMIX = _FRONT | {"FC": 1.0, "LFE": 0.0, "LFE2": 0.0}
_SURROUND = 0.5
_UNPLACED = ("NONE", "UNK", "UNSD", "USR", "AMBI")

_GROWTH_SAMPLES = 300 * SAMPLE_RATE
_FULL_SCALE = {"s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}
_DTYPES: Mapping[str, type[np.generic]] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}


class Assembler:
    """Assembles decoded frames on the timeline of the file, as 16 kHz mono and kept channels.

    A *run* is a sequence of frames in one format without gaps. It is resampled by one resampler in
    blocks of a second, which costs far less than frame by frame.
    """

    def __init__(
        self,
        *,
        keep_channels: bool,
        max_seconds: float,
        max_channels: int,
    ) -> None:
        self._keep_channels = keep_channels
        self._max_seconds = max_seconds
        self._max_channels = max_channels
        self._time_base = 0.0
        self._zero_s: float | None = None
        self._begin_s = 0.0  # of the file that is being read

        self._mono = _SampleBuffer()
        self._channels: list[_SampleBuffer] = []
        self._tracks = 0  # of the resampler: the kept channels, or the mono mix only
        self._difference = self._energy = 0.0
        self._mixed = self._omitted = self._cancelled_s = 0.0

        self._format: tuple[str, int, str] | None = None
        self._rate = SAMPLE_RATE
        self._weights: Samples = np.ones(1, np.float32)
        self._resampler: soxr.ResampleStream | None = None
        self._block: list[list[NDArray[np.generic]]] = []
        self._block_samples = 0
        self._run_start_s = 0.0
        self._run_samples = 0
        self._missing_s = 0.0

    def begin_file(self, *, time_base: float, zero_s: float | None) -> None:
        """Continue with the frames of another file, behind those of the one before.

        ``time_base`` is the unit of their timestamps in seconds, ``zero_s`` the time at which the
        file begins (None: at its first frame).
        """
        self._end_run()
        self._time_base, self._zero_s = time_base, zero_s
        self._begin_s = self._end_s

    def check(self, channels: int) -> None:
        """Raise TooManyChannels if there are more than allowed."""
        if channels > self._max_channels:
            raise TooManyChannels(
                f"the audio has {channels} channels, at most {self._max_channels} are allowed"
            )

    def push(self, frame: AudioFrame) -> None:
        """Append one frame at its time.

        Raises AudioTooLong, TooManyChannels, UnsupportedAudio.
        """
        if not frame.samples:
            return
        if (frame.format.name, frame.sample_rate, frame.layout.name) != self._format:
            self._begin_run(frame)
        start_s = self._start(frame)
        if start_s is not None and start_s - self._end_s > GAP_S:
            self._check_length(start_s)
            if self._end_s:
                self._missing_s += start_s - self._end_s
            self._end_run()
            self._pad(round(start_s * SAMPLE_RATE))
            self._run_start_s = start_s
        self._run_samples += frame.samples
        self._check_length(self._end_s)
        self._block.append(_raw(frame))
        self._block_samples += frame.samples
        if self._block_samples >= self._rate:
            self._resample(last=False)

    def finish(self) -> Audio:
        """The whole audio; channels are kept only if they differ."""
        self._end_run()
        mono, channels = self._mono.take(), None
        warnings = []
        if len(self._channels) == 2 and self._difference <= DUAL_MONO_RATIO**2 * self._energy:
            warnings.append("both channels carry the same signal: treated as mono")
        elif self._channels:
            channels = np.empty((len(self._channels), len(mono)), np.float32)
            for row in channels:
                row[:] = self._channels.pop(0).take()
        if self._missing_s:
            warnings.append(f"{self._missing_s:.1f} s missing in the file are replaced by silence")
        if self._cancelled_s:
            warnings.append(
                f"the channels cancel each other for {self._cancelled_s:.1f} s: "
                "there the mono mix is the loudest of them"
            )
        if self._omitted > OMITTED_RATIO * self._mixed:
            warnings.append("nearly all sound is in a low-frequency channel, which is not mixed in")
        return Audio(mono, channels, tuple(warnings))

    @property
    def seconds(self) -> float:
        """The length of what was pushed so far."""
        return self._end_s

    @property
    def _end_s(self) -> float:
        return self._run_start_s + self._run_samples / self._rate

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise AudioTooLong(f"the audio is longer than {self._max_seconds:g} seconds")

    def _start(self, frame: AudioFrame) -> float | None:
        """The time of the frame in seconds; None if it has none and follows the one before."""
        if frame.pts is None:
            return None
        at_s = frame.pts * self._time_base
        if self._zero_s is None:
            self._zero_s = at_s
        return self._begin_s + at_s - self._zero_s

    def _begin_run(self, frame: AudioFrame) -> None:
        self._end_run()
        channels, rate = frame.layout.nb_channels, frame.sample_rate
        self.check(channels)
        if channels < 1 or not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
            raise UnsupportedAudio(f"audio of {channels} channels at {rate} Hz is not supported")
        if not self._tracks:
            self._tracks = channels if self._keep_channels else 1
            self._channels = [
                _SampleBuffer() for _ in range(self._tracks if self._tracks > 1 else 0)
            ]
        self._format = (frame.format.name, rate, frame.layout.name)
        self._weights = mono_weights(frame.layout)
        self._rate = rate

    def _end_run(self) -> None:
        if self._run_samples:
            self._resample(last=True)
        self._run_start_s = self._end_s
        self._run_samples = 0
        self._resampler = None

    def _resample(self, last: bool) -> None:
        block = np.empty((0, self._tracks), np.float32)
        if self._block and self._format is not None:
            source = _planar(self._block, self._format[0], len(self._weights))
            tracks = source if len(source) == self._tracks else self._spread(source)
            block = np.ascontiguousarray(tracks.T)
            self._block, self._block_samples = [], 0
        if self._rate != SAMPLE_RATE:
            if self._resampler is None:
                self._resampler = soxr.ResampleStream(self._rate, SAMPLE_RATE, self._tracks)
            block = self._resampler.resample_chunk(block, last=last)
        self._append(block)

    def _spread(self, source: Samples) -> Samples:
        """The mono mix on every track."""
        return np.tile(self._mix(source, self._rate), (self._tracks, 1))

    def _mix(self, source: Samples, rate: int) -> Samples:
        """The mono mix of [channels, samples]; where that cancels, the loudest channel."""
        mixed: Samples = self._weights @ source
        if len(source) == 1 or not mixed.size:
            return mixed
        step = math.ceil(rate * MIX_WINDOW_S)
        starts = np.arange(0, len(mixed), step)
        energy = np.add.reduceat(mixed**2, starts)
        energies = np.add.reduceat(source**2, starts, axis=1)
        uncorrelated = self._weights**2 @ energies
        cancelled = (energy < CANCELLED_RATIO * uncorrelated) & (uncorrelated > AUDIBLE * step)
        loudest = np.argmax(self._weights[:, None] * energies, axis=0)
        for window in np.flatnonzero(cancelled):
            cut = slice(starts[window], starts[window] + step)
            mixed[cut] = source[loudest[window], cut]
            self._cancelled_s += len(mixed[cut]) / rate
        self._mixed += float(np.sum(mixed**2, dtype=np.float64))
        self._omitted += float(np.sum(energies[self._weights == 0], dtype=np.float64))
        return mixed

    def _append(self, block: Samples) -> None:
        """Append resampled [samples, tracks]."""
        block = np.clip(block, -1.0, 1.0)  # the filter overshoots at full scale
        if not self._channels:
            self._mono.append(block[:, 0])
            return
        for channel, samples in zip(self._channels, block.T, strict=True):
            channel.append(samples)
        mixed = len(self._weights) != self._tracks
        self._mono.append(block[:, 0] if mixed else self._mix(block.T, SAMPLE_RATE))
        if self._tracks == 2:
            left, right = block[:, 0], block[:, 1]
            self._difference += float(np.sum((left - right) ** 2, dtype=np.float64))
            self._energy += float(np.sum(block**2, dtype=np.float64)) / 2

    def _pad(self, size: int) -> None:
        for samples in (self._mono, *self._channels):
            samples.pad(size)


class _SampleBuffer:
    """A growing array of samples; grows in place, without a copy of twice the memory."""

    def __init__(self) -> None:
        self._data: Samples = np.empty(0, np.float32)
        self._size = 0

    def append(self, samples: Samples) -> None:
        start = self._extend(self._size + len(samples))
        self._data[start : self._size] = samples

    def pad(self, size: int) -> None:
        start = self._extend(max(size, self._size))
        self._data[start : self._size] = 0.0

    def take(self) -> Samples:
        self._data.resize(self._size, refcheck=False)
        return self._data

    def _extend(self, size: int) -> int:
        start, self._size = self._size, size
        if size > len(self._data):
            self._data.resize(size + min(size, _GROWTH_SAMPLES), refcheck=False)
        return start


def mono_weights(layout: AudioLayout) -> Samples:
    """Weight of each channel in the mono mix, float32 [channels]; the sum is 1, so it cannot clip.

    Weights of ITU-R BS.775-3, table 2: left and right 0.7071, centre 1, surrounds 0.5; the
    low-frequency channel carries no speech. A layout without positions is averaged.
    """
    names = [channel.name for channel in layout.channels]
    weights = np.array([_DOWNMIX.get(name, _SURROUND) for name in names], np.float32)
    if any(name.startswith(_UNPLACED) for name in names) or not weights.any():
        weights = np.ones(len(names), np.float32)
    return np.asarray(weights / weights.sum())


def _raw(frame: AudioFrame) -> list[NDArray[np.generic]]:
    """Samples of the codec's format, as views: a plane for each channel, or one for all of them.

    Not ``frame.to_ndarray``: it lacks 64-bit integers, and reads a ninth plane behind the eighth of
    a frame of eight.
    """
    dtype = _DTYPES.get(frame.format.name.removesuffix("p"))
    if dtype is None:
        raise UnsupportedAudio(f"samples of the format {frame.format.name} are not supported")
    channels = frame.layout.nb_channels
    planar = frame.format.is_planar
    count = frame.samples if planar else frame.samples * channels
    planes = frame.planes[: channels if planar else 1]
    return [np.frombuffer(memoryview(plane), dtype, count) for plane in planes]


def _planar(block: list[list[NDArray[np.generic]]], sample_format: str, channels: int) -> Samples:
    """One block of frames as float32 [channels, samples] in [-1, 1]; NaN becomes silence."""
    planes: list[NDArray[np.generic]] = [np.concatenate(p) for p in zip(*block, strict=True)]
    joined = np.stack(planes)
    kind = sample_format.removesuffix("p")
    if kind == sample_format:
        joined = joined.reshape(-1, channels).T
    if kind == "u8":
        return (joined.astype(np.float32) - 128.0) / 128.0
    if kind in _FULL_SCALE:
        return joined.astype(np.float32) * np.float32(1.0 / _FULL_SCALE[kind])
    clipped = np.clip(joined, -1.0, 1.0).astype(np.float32)
    return np.nan_to_num(clipped, copy=False)
