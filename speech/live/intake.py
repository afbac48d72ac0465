"""The bytes of a live socket become samples: PCM in line, Opus in a thread of its own.

One object per stream; calls are made one at a time, and nothing is fed after ``flush``.
"""

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    AudioTooLong,
    InvalidRequest,
    SpeechError,
    TooManyChannels,
    UnsupportedAudio,
)
from speech.media.frames import GAP_S

PcmEncoding = Literal["pcm_s16le", "pcm_f32le", "g711_ulaw", "g711_alaw"]
Encoding = Literal["pcm_s16le", "pcm_f32le", "opus"]

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8_000, 48_000
MAX_CHANNELS = 8

MAX_SECONDS_PER_FEED = 300.0
"""What the bytes of one ``feed`` may decode to; 200 KB of Opus at its lowest rate are less."""

MAX_BYTES_WITHOUT_AUDIO = 2 * 1024 * 1024
"""What a container may hold between two packets of audio, such as tags with a picture."""

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "pcm_s16le": np.dtype("<i2"),
    "pcm_f32le": np.dtype("<f4"),
    "g711_ulaw": np.dtype("u1"),
    "g711_alaw": np.dtype("u1"),
}
_RESAMPLED_AT_ONCE = 1 << 16
"""Samples, well below a millisecond; a frame may hold a hundred times as many."""
_DEMUXERS = {b"OggS": "ogg", b"\x1a\x45\xdf\xa3": "matroska"}
_MAX_OPUS_CHANNELS = 2
_NOTHING: Samples = np.empty(0, np.float32)


class StreamDecoder(Protocol):
    """Turns the bytes of one stream into float32 mono samples at 16 kHz, in [-1, 1]."""

    async def feed(self, data: bytes) -> Samples:
        """The samples that are ready after these bytes; none is an ordinary answer.

        Raises UnsupportedAudio, TooManyChannels, AudioTooLong; the stream is over then. Samples
        from before the damage come first, the call after them raises.
        """
        ...

    async def flush(self) -> Samples:
        """The samples that were still inside, at the end of the stream."""
        ...

    async def close(self) -> None:
        """Free everything; may be called at any time and twice."""
        ...


def stream_decoder(
    encoding: str, sample_rate: int = SAMPLE_RATE, channels: int = 1
) -> StreamDecoder:
    """The decoder for an encoding; ``opus`` says its rate and channels itself.

    Raises InvalidRequest.
    """
    match encoding:
        case "pcm_s16le" | "pcm_f32le":
            return PcmDecoder(encoding, sample_rate, channels)
        case "opus":
            return ContainerDecoder()
    known = ", ".join(get_args(Encoding))
    raise InvalidRequest(f"encoding {encoding!r} is not known, it must be one of {known}")


class PcmDecoder:
    """Headerless PCM, little-endian, channels interleaved and mixed evenly to mono.

    Frames may be split anywhere: the bytes of an incomplete sample wait for the next ``feed``.
    The resampler holds back up to 0.12 s until ``flush``; in all, ``n`` samples become
    ``n * 16000 / sample_rate``, rounded. NaN becomes zero; what exceeds full scale is clipped.
    What is fed after ``flush`` begins anew.

    Raises InvalidRequest for a rate or a number of channels that is not taken.
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
        self._levels = _LEVELS.get(encoding)
        self._channels = channels
        self._resampler = _Resampler(sample_rate)
        self._rest = b""

    async def feed(self, data: bytes) -> Samples:
        """See :class:`StreamDecoder`; costs microseconds, so it runs in line."""
        data = self._rest + data
        whole = len(data) - len(data) % (self._dtype.itemsize * self._channels)
        self._rest = data[whole:]
        samples = np.frombuffer(data, self._dtype, whole // self._dtype.itemsize)
        if self._levels is not None:
            samples = self._levels[samples]
        mono = _mono(samples.reshape(-1, self._channels).T)
        if len(mono) <= _RESAMPLED_AT_ONCE:
            return self._resampler.push(mono)
        pieces = []
        for first in range(0, len(mono), _RESAMPLED_AT_ONCE):
            pieces.append(self._resampler.push(mono[first : first + _RESAMPLED_AT_ONCE]))
            await asyncio.sleep(0)
        return np.concatenate(pieces)

    async def flush(self) -> Samples:
        """See :class:`StreamDecoder`; the bytes of an incomplete sample are dropped."""
        self._rest = b""
        return self._resampler.finish()

    async def close(self) -> None:
        """See :class:`StreamDecoder`."""


class ContainerDecoder:
    """Opus in Ogg or WebM, as the MediaRecorder of a browser sends it, split anywhere.

    FFmpeg pulls while a socket pushes, so FFmpeg runs in a thread that begins with the first byte.
    ``feed`` returns when that thread has eaten everything and asks for more: the pipe between them
    never holds more than one batch. A hole in the timestamps (over 50 ms) becomes silence, as the
    discontinuous transmission of Opus leaves them; damaged packets are skipped.
    """

    def __init__(self) -> None:
        self._pipe = _Pipe()
        self._thread: threading.Thread | None = None

    async def feed(self, data: bytes) -> Samples:
        """See :class:`StreamDecoder`."""
        if not data:
            return _NOTHING
        if self._thread is None:
            self._thread = threading.Thread(
                target=_decode, args=(self._pipe,), name="stream-decoder", daemon=True
            )
            self._thread.start()
        return await self._pipe.put(data)

    async def flush(self) -> Samples:
        """See :class:`StreamDecoder`."""
        return _NOTHING if self._thread is None else await self._pipe.put(b"", last=True)

    async def close(self) -> None:
        """See :class:`StreamDecoder`; the thread is gone afterwards."""
        if self._thread is not None:
            await self._pipe.close()
            self._thread.join()  # it has said its last word: this takes microseconds


class _Pipe:
    """Bytes to the decoding thread and samples back; the loop waits in futures, the thread here.

    The methods with ``async`` belong to the loop, the others to the thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._samples: list[Samples] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._seconds = 0.0
        self._bytes_without_audio = 0
        self._error: SpeechError | None = None
        self._ended = self._over = False
        self.closed = False

    async def put(self, data: bytes, last: bool = False) -> Samples:
        """What the thread had made of everything when it asked for more, or ended.

        An error waits until the samples before it were handed out.
        """
        with self._changed:
            if not self._over:
                self._data += data
                self._seconds = 0.0
                self._ended |= last
            elif data and self._error is None:
                self._error = UnsupportedAudio("audio follows after the end of the container")
        await self._answer()
        with self._changed:
            samples, self._samples = self._samples, []
        if samples:
            return np.concatenate(samples)
        if self._error is not None:
            raise self._error
        return _NOTHING

    async def close(self) -> None:
        """Let the thread end, whatever it has left, and wait for its last word."""
        with self._changed:
            self._ended = self.closed = True
            self._data.clear()
        await self._answer()

    async def _answer(self) -> None:
        with self._changed:
            if self._over:
                return
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            self._changed.notify_all()
        await answer

    def read(self, size: int) -> bytes:
        """What is there, as soon as there is something; nothing means the end. FFmpeg calls it."""
        with self._changed:
            self._wait(1)
            data = bytes(self._data[:size])
            del self._data[:size]
            self._bytes_without_audio += len(data)
            if self._bytes_without_audio > MAX_BYTES_WITHOUT_AUDIO:
                return b""
            return data

    def magic(self) -> bytes:
        """The first four bytes, which stay where they are."""
        with self._changed:
            self._wait(4)
            return bytes(self._data[:4])

    def expect(self, seconds: float) -> None:
        """Count what is about to be emitted, before memory is taken for it.

        Raises AudioTooLong.
        """
        with self._changed:
            self._seconds += seconds
            if self._seconds > MAX_SECONDS_PER_FEED:
                raise AudioTooLong(
                    f"one batch of bytes holds more than {MAX_SECONDS_PER_FEED:g} seconds of audio"
                )

    def emit(self, samples: Samples) -> None:
        with self._changed:
            self._bytes_without_audio = 0
            self._samples.append(samples)

    def over(self, error: SpeechError | None) -> None:
        """The last word of the thread."""
        with self._changed:
            if self.closed:
                error = None
            elif self._bytes_without_audio > MAX_BYTES_WITHOUT_AUDIO:
                error = UnsupportedAudio(
                    f"{MAX_BYTES_WITHOUT_AUDIO} bytes of the container hold no audio"
                )
            elif error is None and self._data:
                error = UnsupportedAudio("audio follows after the end of the container")
            self._error, self._over = error, True
            self._ask()

    def _wait(self, size: int) -> None:
        while len(self._data) < size and not self._ended:
            self._ask()
            self._changed.wait()

    def _ask(self) -> None:
        for answer in self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                answer.get_loop().call_soon_threadsafe(_resolve, answer)
        self._waiting.clear()


def _resolve(answer: asyncio.Future[None]) -> None:
    if not answer.done():
        answer.set_result(None)


def _decode(pipe: _Pipe) -> None:
    """The life of the thread: one container from its first byte to its last."""
    error: SpeechError | None = None
    try:
        demuxer = _DEMUXERS.get(pipe.magic())
        if demuxer is None:
            raise UnsupportedAudio("the stream is neither Ogg nor WebM")
        with av.open(
            pipe,
            "r",
            format=demuxer,
            container_options={"protocol_whitelist": "none"},
            metadata_errors="replace",
        ) as container:
            _decode_track(pipe, container, _opus(container))
    except SpeechError as known:
        error = known
    except (FFmpegError, ValueError):
        error = UnsupportedAudio("the stream is no Ogg or WebM that can be read")
    except Exception as unknown:
        error = SpeechError(f"decoding failed: {unknown!r}")
    finally:
        pipe.over(error)


def _opus(container: InputContainer) -> AudioStream:
    for track in container.streams.audio:
        if track.codec_context is not None and track.codec_context.name == "opus":
            track.codec_context.thread_count = 1
            return track
    raise UnsupportedAudio("the container has no track of Opus")


def _decode_track(pipe: _Pipe, container: InputContainer, track: AudioStream) -> None:
    time_base = float(track.time_base or 0)
    zero_s: float | None = None
    done_s = 0.0
    resampler: _Resampler | None = None
    for packet in container.demux(track):
        if pipe.closed:
            return
        try:
            frames = track.codec_context.decode(packet)
        except FFmpegError:  # a damaged packet
            continue
        for frame in frames:
            if resampler is None:
                resampler = _Resampler(frame.sample_rate)
            frame_s = frame.samples / frame.sample_rate
            if frame.pts is not None:
                at_s = frame.pts * time_base
                zero_s = at_s if zero_s is None else zero_s
                hole_s = at_s - zero_s - done_s
                if hole_s > GAP_S:
                    pipe.expect(hole_s)
                    silence = np.zeros(round(hole_s * frame.sample_rate), np.float32)
                    pipe.emit(resampler.push(silence))
                    done_s += hole_s
            pipe.expect(frame_s)
            pipe.emit(resampler.push(_mono(_planes(frame))))
            done_s += frame_s
    if resampler is not None:
        pipe.emit(resampler.finish())


def _planes(frame: AudioFrame) -> Samples:
    if frame.layout.nb_channels > _MAX_OPUS_CHANNELS:
        raise TooManyChannels(
            f"the stream has {frame.layout.nb_channels} channels, "
            f"at most {_MAX_OPUS_CHANNELS} are taken"
        )
    return np.asarray(frame.to_ndarray(), np.float32)  # FFmpeg's own decoder: planar floats


def _mono(channels: NDArray[np.generic]) -> Samples:
    """The even mix of [channels, samples], float32 in [-1, 1]; NaN becomes zero."""
    if channels.dtype == np.int16:
        planar = channels.astype(np.float32) * np.float32(2.0**-15)
    else:
        planar = np.nan_to_num(np.clip(channels, -1.0, 1.0).astype(np.float32), copy=False)
    mono: Samples = planar[0] if len(planar) == 1 else planar.mean(axis=0, dtype=np.float32)
    return mono


class _Resampler:
    """One stream to 16 kHz; the same filter as for files."""

    def __init__(self, rate: int) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1)

    def push(self, samples: Samples, last: bool = False) -> Samples:
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples, last=last)
        return np.clip(resampled, -1.0, 1.0)  # the filter overshoots at full scale

    def finish(self) -> Samples:
        rest = self.push(_NOTHING, last=True)
        if self._stream is not None:
            self._stream.clear()
        return rest


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


_LEVELS = {"g711_ulaw": _ulaw(), "g711_alaw": _alaw()}
