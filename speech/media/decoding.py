"""Decoding of uploads in any of :mod:`speech.media.containers` to 16 kHz float32.

Every bound is checked *while* decoding, so a small file that unpacks to days of audio costs no more
than a long one. FFmpeg opens only files whose first bytes are of an allowed container, with the
demuxers of that container only. The bytes are read from memory; nothing that they reference is
opened.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import av
import numpy as np
from av.error import FFmpegError

from speech.audio import Audio
from speech.errors import AudioTooLong, EmptyAudio, UnsupportedAudio
from speech.media.containers import demuxers
from speech.media.demuxing import MICROSECONDS, Track, Upload, late
from speech.media.frames import Assembler
from speech.media.parts import MAX_PARTS, Part, following, is_padding, split
from speech.media.tempo import change_tempo

SMALLEST_REST = 4096
"""Bytes at the end of an upload that may stay unread without a warning."""

READ_AHEAD = 64 * 1024
"""What FFmpeg may have read beyond the end of a file, in bytes."""

_ENDS_WITH_SAMPLES = frozenset({"aiff", "au", "caf", "tta", "w64", "wav", "wv"})
"""Containers in which only tags may follow the last packet."""

_OF_WAV = {"probesize": "32768", "max_size": "32768"}
"""Bytes in which FFmpeg looks for DTS that is declared as PCM, by default a megabyte, which takes
longer than the rest of the decoding; and bytes of a packet, by default 64 ms."""


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

    Damaged packets are skipped with a warning as long as something can be decoded. Of files that
    were joined (the links of an Ogg chain, movies, recordings written one after the other) each is
    read, one after the other on one timeline, and so are samples beyond the length that a WAV file
    declares. What cannot be read is a warning with its bytes.

    Raises EmptyAudio, UnsupportedAudio, AudioTooLong, TooManyChannels, DeadlineExceeded.
    """
    if not data:
        raise EmptyAudio("the upload has no bytes")
    allowed = demuxers(data)
    if not allowed:
        raise _unreadable()
    assembler = Assembler(
        keep_channels=keep_channels, max_seconds=max_seconds, max_channels=max_channels
    )
    files = _Files(assembler, deadline or _never)
    files.read(data)
    audio = assembler.finish()
    if not len(audio.mono):
        if files.damaged:
            raise UnsupportedAudio("no part of the audio track can be decoded")
        raise EmptyAudio("the audio track has no samples")
    audio = replace(audio, warnings=(*audio.warnings, *files.warnings()))
    return audio if speedup == 1.0 else _with_tempo(audio, speedup, max_seconds, files.expired)


class _Files:
    """The files of an upload, decoded one after the other into one assembler."""

    def __init__(self, assembler: Assembler, expired: Callable[[], bool]) -> None:
        self.expired = expired
        self.damaged = 0
        self._assembler = assembler
        self._declared_s = self._decoded_s = 0.0  # of files that end early
        self._unread = 0
        self._beyond_header = False
        self._files = 0

    def read(self, upload: bytes) -> None:
        """Decode every file. Raises UnsupportedAudio if none can be, AudioTooLong, TooManyChannels,
        DeadlineExceeded."""
        waiting = deque(split(upload))
        for _ in range(MAX_PARTS):
            if not waiting:
                return
            part = waiting.popleft()
            try:
                more = self._read_file(part)
            except (FFmpegError, ValueError, UnsupportedAudio) as error:
                if self.expired():
                    raise late() from None
                if not self._files and not waiting:
                    raise error if isinstance(error, UnsupportedAudio) else _unreadable() from None
                self._unread += len(part)
                continue
            if self.expired():
                raise late()
            if more is not None:
                waiting.appendleft(more)
        self._unread += sum(len(part) for part in waiting)

    def warnings(self) -> list[str]:
        """What the user should know of the files."""
        warnings = []
        if self.damaged:
            warnings.append(
                f"{self.damaged} damaged packet{'s' if self.damaged > 1 else ''} skipped"
            )
        if self._beyond_header:
            warnings.append(
                "the header declares less audio than the file has: it was read to its end"
            )
        if self._declared_s:
            warnings.append(
                f"the file ends early: its header declares {self._declared_s:.1f} s, "
                f"{self._decoded_s:.1f} s could be decoded"
            )
        if self._unread > SMALLEST_REST:
            warnings.append(f"{self._unread} bytes of the upload could not be read")
        return warnings

    def _read_file(self, part: Part) -> Part | None:
        """Decode one file; what follows it within its part."""
        upload = Upload(part, self.expired)
        allowed = demuxers(part.head or part.data)
        begin_s = self._assembler.seconds
        with av.open(
            upload,
            "r",
            container_options={
                "format_whitelist": ",".join(allowed),
                "protocol_whitelist": "none",
                **(_OF_WAV if "wav" in allowed else {}),
            },
            metadata_errors="replace",
        ) as container:
            track = Track.best(container)
            stream, start = track.stream, container.start_time
            self._assembler.begin_file(
                time_base=float(stream.time_base or 0),
                zero_s=None if start is None else start / MICROSECONDS,
            )
            self._assembler.check(stream.codec_context.layout.nb_channels)
            for frame in track.frames(self.expired):
                self._assembler.push(frame)
            self._files += 1
            self._beyond_header = self._beyond_header or bool(part.head)
            self.damaged += track.damaged
            more = following(part, track.end)
            if more is None:
                declared_s = max(track.declared_seconds(), part.declared_s)
                decoded_s = self._assembler.seconds - begin_s
                if declared_s - decoded_s > max(1.0, 0.01 * declared_s):
                    self._declared_s += declared_s
                    self._decoded_s += decoded_s
                rest = part.data[max(track.end - len(part.head), 0) :]
                if not len(rest) or not is_padding(rest):
                    self.damaged += track.failed
                    self._unread += _unread(part, track, upload.furthest)
            return more


def _unread(part: Part, track: Track, furthest: int) -> int:
    """Bytes behind the last packet of a file that may hold more audio."""
    name = track.container.format.name
    if track.failed or name in _ENDS_WITH_SAMPLES:
        return len(part) - track.end
    if "mov" in name:  # which has other tracks behind the last packet
        return 0
    return max(0, len(part) - furthest - READ_AHEAD)


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
        raise late()
    return replace(audio, mono=mono, channels=channels)


def _never() -> bool:
    return False


def _unreadable() -> UnsupportedAudio:
    return UnsupportedAudio(
        "the upload is not a readable audio or video file; headerless PCM and G.711 need encoding, "
        "sample_rate and channels in the request"
    )
