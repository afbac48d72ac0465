"""Client secrets: what they hold, who accepts them, and when they end."""

import base64
import re
from pathlib import Path

import pytest

from api.auth.client_secrets import MAX_CHARS, PREFIX, Grant, InvalidSecret, issue, read
from api.auth.key_file import Key, KeyFile
from speech.errors import InvalidRequest

GRANT = Grant("/v1/realtime", 2_000_000_000, "https://page.example", {"type": "transcription"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text("one name=first rate=5\ntwo\nthree\n")
    return path


@pytest.fixture
def keys(path: Path) -> KeyFile:
    return KeyFile(path)


def key(keys: KeyFile, text: str = "one") -> Key:
    found = keys.find(text.encode())
    assert found is not None
    return found


@pytest.mark.parametrize("text", ["one", "two", "three"])
def test_a_secret_names_its_key_and_what_it_allows(keys: KeyFile, text: str) -> None:
    secret = issue(key(keys, text), GRANT)
    assert read(secret.encode(), keys) == (key(keys, text), GRANT)


def test_a_secret_can_be_a_sub_protocol(keys: KeyFile) -> None:
    assert re.fullmatch(r"ek_[A-Za-z0-9_-]+", issue(key(keys), GRANT))


def test_every_process_with_the_same_keys_accepts_it(keys: KeyFile, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("# another order, other options\nthree\none routes=/v1\n")
    secret = issue(key(keys), GRANT).encode()
    assert read(secret, KeyFile(other))[1] == GRANT
    other.write_text("two\nthree\n")
    with pytest.raises(InvalidSecret):
        read(secret, KeyFile(other))


def test_it_ends_with_its_key(keys: KeyFile, path: Path) -> None:
    secret = issue(key(keys), GRANT).encode()
    read(secret, keys)
    path.write_text("two\nthree\n")
    with pytest.raises(InvalidSecret):
        read(secret, keys)


def test_no_byte_of_it_can_be_changed(keys: KeyFile) -> None:
    secret = issue(key(keys), GRANT)
    coded = secret.removeprefix(PREFIX)
    raw = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        text = PREFIX.encode() + base64.urlsafe_b64encode(changed).rstrip(b"=")
        with pytest.raises(InvalidSecret):
            read(text, keys)


@pytest.mark.parametrize("text", ["ek_", "ek_x", "ek_ä", "ek_" + "A" * 10_000, "one", ""])
def test_what_is_no_secret_is_invalid(keys: KeyFile, text: str) -> None:
    with pytest.raises(InvalidSecret):
        read(text.encode(), keys)


def test_neither_the_key_nor_its_whole_hash_is_in_it(keys: KeyFile) -> None:
    coded = issue(key(keys), GRANT).removeprefix(PREFIX)
    raw = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
    assert key(keys).digest[:5] not in raw
    assert b"one" not in raw


def test_a_secret_fits_into_a_header(keys: KeyFile) -> None:
    incompressible = "".join(chr(0x4E00 + (n * n * 7919) % 20_000) for n in range(5000))
    with pytest.raises(InvalidRequest, match=r"session\.update"):
        issue(key(keys), Grant("/v1/realtime", 0, "", {"prompt": incompressible}))
    long = issue(key(keys), Grant("/v1/realtime", 0, "", {"prompt": "Ray, Vosk. " * 900}))
    assert len(long) <= MAX_CHARS
