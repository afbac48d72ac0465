"""Uploads that consist of several files one after the other, or of more than the header declares.

FFmpeg reads the first of the files. :func:`split` finds the others by their first bytes,
:func:`following` looks where FFmpeg stopped.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from speech.media.containers import OGG_FIRST_PAGE, demuxers
from speech.media.wav_header import WavHeader, is_chunks

MAX_PARTS = 1000
"""Files in one upload that are read."""

MAX_MARKS = 100_000
"""Pages, boxes or tags that are looked at to find the files of an upload."""

SMALLEST_REST = 1024
"""Bytes beyond the declared length of a WAV file that count as samples."""

_STARTS = {
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3.{1,40}?\x42\x82.(?:webm|matroska)", re.DOTALL),
    "amr": re.compile(rb"#!AMR(?:-WB)?\n"),
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09"),
}
_OGG_HEADER = 27

_NOT_FOLLOWING = frozenset(
    {"ogg", "mov", *_STARTS} | {"aac", "ac3", "dts", "eac3", "loas", "mp3", "mpeg", "mpegts"}
)
"""Formats that :func:`split` knows, and those of frames that FFmpeg reads across files."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an upload: its bytes, behind a ``head`` that the upload does not have."""

    data: memoryview
    head: bytes = b""
    declared_s: float = 0.0
    """Length by the header of the upload, where FFmpeg would not find it; else 0."""

    def __len__(self) -> int:
        return len(self.head) + len(self.data)


def split(upload: bytes) -> list[Part]:
    """The files of an upload, in order. The first one begins with its first byte."""
    edges = [0, *islice(_starts(upload), MAX_PARTS)]
    view = memoryview(upload)
    return [
        _with_length(Part(view[start:end]))
        for start, end in zip(edges, [*edges[1:], len(view)], strict=True)
    ]


def _starts(upload: bytes) -> Iterator[int]:
    """Where the second and later files begin."""
    names = demuxers(upload)
    if "ogg" in names:
        return _ogg_starts(upload)
    if "mov" in names:
        return _movie_starts(upload)
    pattern = next((_STARTS[name] for name in names if name in _STARTS), None)
    if pattern is None:
        return iter(())
    found = (match.start() for match in pattern.finditer(upload))
    behind_tag = upload.startswith(b"ID3")
    return (start for number, start in enumerate(found) if start and (number or not behind_tag))


def following(part: Part, end: int) -> Part | None:
    """What comes after the last packet of ``part``, which ends there: the next file, or samples
    beyond the length that a WAV file declares; None for tags, padding and what is not known.
    """
    if not end:
        return None
    names = demuxers(part.data)
    rest = _behind_tags(part.data[end - len(part.head) :])
    for offset in (0, 1):  # the data of a WAV file is padded to an even size
        after = demuxers(rest[offset:])
        if set(after) & set(names) - _NOT_FOLLOWING:
            return _with_length(Part(rest[offset:]))
    header = WavHeader.of(part.data)
    if header is None or part.head or len(rest) < SMALLEST_REST or is_padding(rest):
        return None
    return Part(part.data[header.block_start(end) :], header.endless())


def is_padding(rest: memoryview) -> bool:
    """Whether nothing is lost with these bytes: tags, chunks of metadata, zeros."""
    rest = _behind_tags(rest)
    if not rest or (rest[0] == 0 and bytes(rest).count(0) == len(rest)):
        return True
    return is_chunks(rest) or is_chunks(rest[1:])


def _behind_tags(rest: memoryview) -> memoryview:
    """What follows the tags (ID3, APE) that it begins with."""
    for _ in range(MAX_MARKS):
        start = bytes(rest[:32])
        if start.startswith(b"TAG"):
            size = 128
        elif start.startswith(b"ID3") and len(start) >= 10:
            a, b, c, d = start[6:10]
            size = 10 + (a << 21) + (b << 14) + (c << 7) + d
        elif start.startswith(b"APETAGEX") and len(start) == 32:
            size = 32 + int.from_bytes(start[12:16], "little")
        else:
            break
        rest = rest[size:]
    return rest


def _with_length(part: Part) -> Part:
    header = WavHeader.of(part.data)
    return Part(part.data, declared_s=header.missing_s()) if header else part


def _ogg_starts(upload: bytes) -> Iterator[int]:
    """The first pages of the links of a chain.

    Every stream of a link has a first page; they follow each other directly.
    """
    end = 0
    for match in islice(OGG_FIRST_PAGE.finditer(upload), MAX_MARKS):
        start = match.start()
        if start != end:
            yield start
        table = upload[start + _OGG_HEADER - 1 : start + _OGG_HEADER + 255]
        sizes = table[1 : 1 + table[0]] if table else b""
        end = start + _OGG_HEADER + len(sizes) + sum(sizes)


def _movie_starts(upload: bytes) -> Iterator[int]:
    """The ``ftyp`` boxes of the second and later movies, of which each has a ``moov``."""
    at, has_movie = 0, False
    for _ in range(MAX_MARKS):
        if at + 8 > len(upload):
            return
        size, kind = struct.unpack_from(">I4s", upload, at)
        if size == 1 and at + 16 <= len(upload):
            (size,) = struct.unpack_from(">Q", upload, at + 8)
        if kind == b"ftyp" and has_movie:
            yield at
            has_movie = False
        has_movie = has_movie or kind == b"moov"
        if size < 8:  # to the end of the file, or damaged
            return
        at += size
