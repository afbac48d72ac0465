"""The chunks of a WAV file, for files whose header and content differ in length."""

import struct
from dataclasses import dataclass

_KNOWN = frozenset(
    {b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"cue ", b"smpl", b"inst", b"fact", b"PEAK"}
    | {b"JUNK", b"junk", b"PAD ", b"FLLR", b"afsp", b"_PMX", b"axml", b"chna", b"DISP", b"plst"}
)
_MAX_CHUNKS = 1000
_PLACEHOLDER_FROM = 0x7FFF0000
"""Programs that cannot seek declare 0, or a size from here on."""
_HEADER = 8
"""Bytes before the content of a chunk: its name and size."""


@dataclass(frozen=True, slots=True)
class WavHeader:
    """What the chunks up to the samples declare; positions and sizes are in bytes."""

    byte_order: str
    fmt: bytes
    start: int
    size: int
    available: int

    @classmethod
    def of(cls, data: memoryview) -> "WavHeader | None":
        """The header of a RIFF file; None if it has none, or is of a 64-bit variant."""
        magic = bytes(data[:4])
        if magic not in (b"RIFF", b"RIFX") or bytes(data[8:12]) != b"WAVE":
            return None
        order = ">" if magic == b"RIFX" else "<"
        at, fmt = 12, b""
        for _ in range(_MAX_CHUNKS):
            if at + _HEADER > len(data):
                return None
            name, size = struct.unpack_from(f"{order}4sI", data, at)
            at += _HEADER
            if name == b"data":
                return cls(order, fmt, at, size, len(data) - at) if len(fmt) >= 16 else None
            if name == b"fmt ":
                fmt = bytes(data[at : at + min(size, 1024)])
            at += size + size % 2
        return None

    def missing_s(self) -> float:
        """The declared length in seconds if the file has less, else 0."""
        if not self.available < self.size < _PLACEHOLDER_FROM:
            return 0.0
        (bytes_per_s,) = struct.unpack_from(f"{self.byte_order}I", self.fmt, 8)
        return float(self.size / bytes_per_s) if bytes_per_s else 0.0

    def block_start(self, position: int) -> int:
        """The start of the block of samples that holds this position."""
        (block,) = struct.unpack_from(f"{self.byte_order}H", self.fmt, 12)
        return position - (position - self.start) % (block or 1)

    def endless(self) -> bytes:
        """A header for samples in the same format up to the end of the file."""
        magic = b"RIFX" if self.byte_order == ">" else b"RIFF"
        fmt = self.fmt + b"\0" * (len(self.fmt) % 2)
        return b"".join(
            (
                magic,
                b"\xff\xff\xff\xffWAVEfmt ",
                struct.pack(f"{self.byte_order}I", len(self.fmt)),
                fmt,
                b"data\xff\xff\xff\xff",
            )
        )


def is_chunks(rest: memoryview) -> bool:
    """Whether these bytes are RIFF or AIFF chunks rather than samples."""
    for order in "<>":
        at, known = 0, False
        for _ in range(_MAX_CHUNKS):
            if at + _HEADER > len(rest):
                break
            name, size = struct.unpack_from(f"{order}4sI", rest, at)
            if not all(0x20 <= byte < 0x7F for byte in name) or at + _HEADER + size > len(rest) + 1:
                break
            known = known or name in _KNOWN
            at += _HEADER + size + size % 2
        if at and (known or at >= len(rest)):
            return True
    return False
