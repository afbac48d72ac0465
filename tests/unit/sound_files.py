"""Sound files made on the spot, and what a decoded one must look like."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Audio
from speech.media.decoding import decode

Signal = NDArray[np.float32]
TONE_HZ = 440.0
TONE_RMS = 0.5 / np.sqrt(2)


def tone(seconds: float, rate: int, hz: float = TONE_HZ, amplitude: float = 0.5) -> Signal:
    at = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def encode(
    container: str,
    codec: str,
    signal: Signal,
    rate: int,
    *,
    layout: str = "mono",
    holes_s: dict[float, float] | None = None,
    late_s: float = 0.0,
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
    video: bool = False,
) -> bytes:
    """A file of ``signal`` [channels, samples]; ``holes_s``: at this second, so long a hole."""
    signal = np.atleast_2d(signal)
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        picture = out.add_stream("mpeg4", rate=10, width=32, height=32) if video else None
        stream = out.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if picture is not None:
            still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            for i in range(20):
                still.pts, still.time_base = i, Fraction(1, 10)
                out.mux(picture.encode(still))
            out.mux(picture.encode(None))
        step = 960
        for at in range(0, signal.shape[1], step):
            packed = np.ascontiguousarray(signal[:, at : at + step].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "flt", layout)
            hole_s = sum(hole for start, hole in (holes_s or {}).items() if at >= start * rate)
            frame.sample_rate, frame.pts = rate, at + round((hole_s + late_s) * rate)
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def wav(
    signal: NDArray[np.generic], rate: int, format_tag: int = 1, layout_mask: int | None = None
) -> bytes:
    """A RIFF file of [samples, channels], written by hand so that no encoder can mend it."""
    signal = signal if signal.ndim == 2 else signal[:, None]
    channels, width = signal.shape[1], signal.itemsize
    fmt = struct.pack(
        "<HHIIHH", format_tag, channels, rate, rate * channels * width, channels * width, 8 * width
    )
    if layout_mask is not None:
        guid = struct.pack("<H", format_tag) + bytes.fromhex("000000001000800000aa00389b71")
        fmt = struct.pack("<H", 0xFFFE) + fmt[2:] + struct.pack("<HHI", 22, 8 * width, layout_mask)
        fmt += guid
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", signal.nbytes) + signal.tobytes()
    return b"RIFF" + struct.pack("<I", len(body)) + body


def to_s16(signal: Signal) -> NDArray[np.int16]:
    return np.round(signal * 32767).astype(np.int16)


def read(data: bytes, **overrides: object) -> Audio:
    """Decode within bounds that no file of these tests means to reach."""
    arguments: dict[str, object] = {"keep_channels": False, "max_seconds": 60, "max_channels": 8}
    return decode(data, **(arguments | overrides))  # type: ignore[arg-type]


def level(samples: Signal) -> float:
    """RMS of the middle half, where no codec fades in or out."""
    quarter = len(samples) // 4
    return float(np.sqrt(np.mean(samples[quarter:-quarter].astype(np.float64) ** 2)))


def pitch_hz(samples: Signal) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(samples))


def assert_sound(audio: Audio) -> None:
    """The promises of :class:`speech.audio.Audio` hold."""
    for samples in (audio.mono, audio.channels):
        if samples is None:
            continue
        assert samples.dtype == np.float32
        assert samples.flags.c_contiguous
        assert np.isfinite(samples).all()
        assert np.abs(samples).max(initial=0.0) <= 1.0
    if audio.channels is not None:
        assert audio.channels.shape[1] == len(audio.mono)


def assert_is_tone(audio: Audio, seconds: float, tolerance_s: float, level_error: float) -> None:
    """The audio is ``tone`` at its default pitch and amplitude."""
    assert_sound(audio)
    assert audio.duration == pytest.approx(seconds, abs=tolerance_s)
    assert pitch_hz(audio.mono) == pytest.approx(TONE_HZ, abs=2.0)
    assert level(audio.mono) == pytest.approx(TONE_RMS, rel=level_error)
