"""The GPU code of a library, cut down to one architecture."""

import pytest

from benchmarks.trim_fatbin import CONTAINER, ENTRY, MAGIC, trim

MACHINE_CODE, PTX = 2, 1


def entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = ENTRY.pack(kind, 0, 64, len(code), 0, 0, 0, 0, architecture)
    return header.ljust(64, b"\0") + code


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return CONTAINER.pack(int.from_bytes(MAGIC, "little"), 1, CONTAINER.size, len(body)) + body


def test_only_the_machine_code_of_the_architecture_is_kept() -> None:
    def library(old: bytes, kept: bytes, ptx: bytes) -> bytearray:
        first = container(entry(MACHINE_CODE, 80, old), entry(MACHINE_CODE, 90, kept))
        second = container(entry(PTX, 90, ptx), entry(MACHINE_CODE, 90, kept))
        return bytearray(b"text" + first + MAGIC + b"data" + second + b"tail")

    code = library(b"A" * 24, b"B" * 40, b"C" * 16)
    assert trim(code, 90) == 80
    assert code == library(bytes(24), b"B" * 40, bytes(16))


def test_a_library_without_code_for_the_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="architecture 90"):
        trim(bytearray(container(entry(MACHINE_CODE, 80, b"A"))), 90)
