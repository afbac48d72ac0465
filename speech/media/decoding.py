"""Decoding of uploads in any of :mod:`speech.media.containers` to 16 kHz float32.

Every bound is checked *while* decoding, so a small file that unpacks to days of audio costs no more
than a long one. FFmpeg opens only files whose first bytes are of an allowed container, with the
demuxers of that container only. The bytes are read from memory; nothing that they reference is
opened.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard

from speech.audio import Audio
from speech.errors import AudioTooLong, DeadlineExceeded, EmptyAudio, UnsupportedAudio
from speech.media.containers import demuxers
from speech.media.frames import Assembler
from speech.media.tempo import change_tempo

DECLARES_LENGTH = frozenset(
    {"aiff", "asf", "au", "avi", "caf", "flac", "matroska,webm", "w64", "wav"}
    | {"mov,mp4,m4a,3gp,3g2,mj2"}
)
"""Containers whose header states the duration; for others FFmpeg estimates it by the bit rate."""

_MICROSECONDS = 1_000_000


def decode(
    data: bytes,
    *,
    keep_channels: bool,
    max_seconds: float,
    max_channels: int,
    speedup: float = 1.0,
    deadline: Callable[[], bool] | None = None,
) -> Audio:
    """The best audio track of a file; its ``warnings`` are for the user.

    ``data`` is a whole file; headerless PCM cannot be detected. ``deadline`` is polled per packet
    and returns True once the time is up.

    Time zero is the beginning of the file, as in players: an audio track that begins after the
    video starts with silence, and a gap in the timestamps (over 50 ms) becomes silence. Priming
    and padding that the container declares are cut.

    The mono mix follows ITU-R BS.775 (:func:`speech.media.frames.mono_weights`); where the channels
    cancel each other it is the loudest of them, with a warning. Channels are kept if
    ``keep_channels`` and the track has at least two that differ. After a change of the number of
    channels within the track, each kept channel has the mono mix.

    ``speedup`` makes the audio that many times as fast at the same pitch. Its length before and
    after is at most ``max_seconds``.

    Damaged packets are skipped with a warning as long as something can be decoded.

    Raises EmptyAudio, UnsupportedAudio, AudioTooLong, TooManyChannels, DeadlineExceeded.
    """
    if not data:
        raise EmptyAudio("the upload has no bytes")
    allowed = demuxers(data)
    if not allowed:
        raise _unreadable()
    expired = deadline or _never
    try:
        with av.open(
            _Upload(data, expired),
            "r",
            container_options={
                "format_whitelist": ",".join(allowed),
                "protocol_whitelist": "none",
            },
            metadata_errors="replace",
        ) as container:
            stream = _best_audio(container)
            start = container.start_time
            assembler = Assembler(
                keep_channels=keep_channels,
                max_seconds=max_seconds,
                max_channels=max_channels,
                time_base=float(stream.time_base or 0),
                zero_s=None if start is None else start / _MICROSECONDS,
            )
            assembler.check(stream.codec_context.layout.nb_channels)
            damaged = 0
            for frame in _frames(container, stream, expired):
                if frame is None:
                    damaged += 1
                else:
                    assembler.push(frame)
            declared_s = _declared_seconds(container, stream)
    except (FFmpegError, ValueError):
        if expired():
            raise _late() from None
        raise _unreadable() from None
    if expired():
        raise _late()

    audio = assembler.finish()
    warnings = list(audio.warnings)
    if not len(audio.mono):
        if damaged:
            raise UnsupportedAudio("no part of the audio track can be decoded")
        raise EmptyAudio("the audio track has no samples")
    if damaged:
        warnings.append(f"{damaged} damaged packet{'s' if damaged > 1 else ''} skipped")
    if declared_s - audio.duration > max(1.0, 0.01 * declared_s):
        warnings.append(
            f"the file ends early: its header declares {declared_s:.1f} s, "
            f"{audio.duration:.1f} s could be decoded"
        )
    audio = replace(audio, warnings=tuple(warnings))
    return audio if speedup == 1.0 else _with_tempo(audio, speedup, max_seconds, expired)


def _with_tempo(
    audio: Audio, speedup: float, max_seconds: float, expired: Callable[[], bool]
) -> Audio:
    if audio.duration / speedup > max_seconds:
        raise AudioTooLong(f"slowed down, the audio is longer than {max_seconds:g} seconds")
    mono = change_tempo(audio.mono, speedup, expired)
    channels = audio.channels
    if channels is not None:
        channels = np.stack([change_tempo(channel, speedup, expired) for channel in channels])
    if expired():
        raise _late()
    return replace(audio, mono=mono, channels=channels)


def _never() -> bool:
    return False


def _unreadable() -> UnsupportedAudio:
    return UnsupportedAudio("the upload is not a readable audio or video file")


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("decoding did not finish within its deadline")


class _Upload(io.BytesIO):
    """The bytes as FFmpeg reads them; reads return EOF after the deadline, also while FFmpeg looks
    for a header or an index."""

    def __init__(self, data: bytes, expired: Callable[[], bool]) -> None:
        super().__init__(data)
        self._expired = expired

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if self._expired() else super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # offset from a damaged header; FFmpeg expects an errno
            return -1


def _best_audio(container: InputContainer) -> AudioStream:
    tracks = [stream for stream in container.streams.audio if stream.codec_context is not None]
    if not tracks:
        if container.streams.audio:
            raise UnsupportedAudio("no decoder for the codec of the audio track")
        raise UnsupportedAudio("the file has no audio track")
    best = container.streams.best("audio")
    chosen = next((track for track in tracks if track is best), tracks[0])
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    chosen.codec_context.thread_count = 1
    return chosen


def _frames(
    container: InputContainer, stream: AudioStream, expired: Callable[[], bool]
) -> Iterator[AudioFrame | None]:
    """Frames of one track in order; None for a damaged packet."""
    decoder = stream.codec_context
    try:
        for packet in _packets(container, stream):
            if expired():
                raise _late()
            if packet.has_sidedata("encryption_info"):
                raise UnsupportedAudio("the audio track is encrypted")
            if packet.size:
                yield from _decoded(decoder, packet)
    except FFmpegError:  # the file is truncated here; earlier frames are kept
        yield None
    if decoder.is_open:
        yield from _decoded(decoder, None)


def _packets(container: InputContainer, stream: AudioStream) -> Iterator["Packet[AudioStream]"]:
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            # PyAV 18 raises this when a track appears in mid-file (FLV, MPEG-TS); a new iterator
            # ignores that track and continues at the same position.
            continue


def _decoded(
    decoder: AudioCodecContext, packet: "Packet[AudioStream] | None"
) -> Iterator[AudioFrame | None]:
    try:
        frames = decoder.decode(packet)
    except FFmpegError:
        yield None
        return
    for frame in frames:
        if frame.is_corrupt:
            yield None
        yield frame


def _declared_seconds(container: InputContainer, stream: AudioStream) -> float:
    if container.format.name not in DECLARES_LENGTH:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / _MICROSECONDS
