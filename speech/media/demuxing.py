"""One file of an upload through FFmpeg: its audio track as frames, and how far they go."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard

from speech.errors import DeadlineExceeded, UnsupportedAudio
from speech.media.parts import Part, is_padding

_DECLARES_LENGTH = frozenset(
    {"aiff", "asf", "au", "avi", "caf", "flac", "matroska,webm", "w64", "wav"}
    | {"mov,mp4,m4a,3gp,3g2,mj2"}
)
"""Containers whose header states the duration; for others FFmpeg estimates it by the bit rate."""

MICROSECONDS = 1_000_000

_BARE_FRAMES = frozenset({"aac", "ac3", "dts", "eac3", "loas", "mp3"})
"""Formats without a container: tags and padding come as packets, and times are counted at the
sample rate of the first frame."""
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
_PAUSES = {"amrnb": range(8, 16), "amrwb": range(9, 16)}
"""AMR's types of frames without speech: comfort noise, which FFmpeg cannot make, or no data."""
_SILENT_FRAME_S = 0.02


class Upload(io.RawIOBase):
    """The bytes of a part as FFmpeg reads them; reads return EOF after the deadline, also while
    FFmpeg looks for a header or an index."""

    def __init__(self, part: Part, expired: Callable[[], bool]) -> None:
        super().__init__()
        self.furthest = 0
        """The end of what was read, in bytes."""
        self._part = part
        self._expired = expired
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, fewer at the end of the head."""
        if self._expired():
            return b""
        end = len(self._part) if size < 0 else min(self._at + size, len(self._part))
        head = len(self._part.head)
        if self._at < head:
            data = self._part.head[self._at : end]
        else:
            data = bytes(self._part.data[self._at - head : end - head])
        self._at += len(data)
        self.furthest = max(self.furthest, self._at)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As in files, except that a wrong offset is -1: FFmpeg expects an errno."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._part)}[whence]
        if base + offset < 0:  # from a damaged header
            return -1
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True


def late() -> DeadlineExceeded:
    """The error of decoding that takes too long."""
    return DeadlineExceeded("decoding did not finish within its deadline")


@dataclass(slots=True)
class Track:
    """The best audio track of a container, and what was found while :meth:`frames` ran.

    ``end`` is that of the last packet in the part, in bytes; ``failed``: FFmpeg read no further
    than there.
    """

    container: InputContainer
    stream: AudioStream
    damaged: int = 0
    end: int = 0
    failed: bool = False

    @classmethod
    def best(cls, container: InputContainer) -> "Track":
        """Raises UnsupportedAudio."""
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
        return cls(container, chosen)

    def frames(self, expired: Callable[[], bool]) -> Iterator[AudioFrame]:
        """Frames in order. Raises UnsupportedAudio, DeadlineExceeded."""
        decoder = self.stream.codec_context
        bare = self.container.format.name in _BARE_FRAMES
        pauses = _PAUSES.get(decoder.name, ())
        rate = 0
        try:
            for packet in self._packets():
                if expired():
                    raise late()
                if packet.has_sidedata("encryption_info"):
                    raise UnsupportedAudio("the audio track is encrypted")
                if not packet.size:
                    continue
                if packet.pos is not None:
                    self.end = max(self.end, packet.pos + packet.size)
                if pauses and _amr_type(packet) in pauses:
                    yield _silence(decoder, packet)
                    continue
                for frame in self._decoded(decoder, packet, may_be_padding=bare):
                    rate = rate or frame.sample_rate
                    if bare and frame.sample_rate != rate:
                        frame.pts = None
                    yield frame
        except FFmpegError:  # the file is truncated here; earlier frames are kept
            self.failed = True
        if decoder.is_open:
            yield from self._decoded(decoder, None)

    def declared_seconds(self) -> float:
        """The length by the header; 0 if it has none."""
        if self.container.format.name not in _DECLARES_LENGTH:
            return 0.0
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        return (self.container.duration or 0) / MICROSECONDS

    def _packets(self) -> Iterator["Packet[AudioStream]"]:
        while True:
            try:
                yield from self.container.demux(self.stream)
                return
            except IndexError:
                # PyAV 18 raises this when a track appears in mid-file (FLV, MPEG-TS); a new
                # iterator ignores that track and continues at the same position.
                continue

    def _decoded(
        self,
        decoder: AudioCodecContext,
        packet: "Packet[AudioStream] | None",
        *,
        may_be_padding: bool = False,
    ) -> Iterator[AudioFrame]:
        try:
            frames = decoder.decode(packet)
        except FFmpegError:
            if not (may_be_padding and packet and _is_tag(bytes(packet))):
                self.damaged += 1
            return
        for frame in frames:
            if frame.is_corrupt:
                self.damaged += 1
            yield frame


def _is_tag(packet: bytes) -> bool:
    return packet.startswith(_TAGS) or is_padding(memoryview(packet))


def _amr_type(packet: "Packet[AudioStream]") -> int:
    return bytes(packet)[0] >> 3 & 0xF


def _silence(decoder: AudioCodecContext, packet: "Packet[AudioStream]") -> AudioFrame:
    samples = round(decoder.sample_rate * _SILENT_FRAME_S)
    frame = av.AudioFrame(format=decoder.format.name, layout=decoder.layout.name, samples=samples)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate, frame.pts, frame.time_base = (
        decoder.sample_rate,
        packet.pts,
        packet.time_base,
    )
    return frame
