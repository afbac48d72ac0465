"""The key file: the content of a line, and a file that changes or disappears."""

import logging
import os
import stat
from pathlib import Path

import pytest

from api.auth.key_file import MAX_FILE_BYTES, KeyFile, covers, create_key_file, main, parse_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def found(file: KeyFile, *presented: str) -> list[bool]:
    return [file.find(key.encode()) is not None for key in presented]


def settle(path: Path) -> None:
    """Make a file old enough to be believed by its time."""
    os.utime(path, (1_000_000_000, 1_000_000_000))


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize("line", ["key1", "  key1\t", "key1\r", "ключ", "two words", "base64=="])
def test_a_plain_line_is_a_key_without_limits(path: Path, line: str) -> None:
    path.write_text(line + "\n", encoding="utf-8")
    key = KeyFile(path).find(line.strip().encode())
    assert key is not None
    assert (key.name, key.routes, key.rate, key.concurrent) == ("", (), None, None)
    assert not key.limited


def test_a_line_may_have_options(path: Path) -> None:
    path.write_text("key1 name=alice routes=/v1/audio,/transcribe rate=60 concurrent=4")
    key = KeyFile(path).find(b"key1")
    assert key is not None
    assert (key.name, key.routes) == ("alice", ("/v1/audio", "/transcribe"))
    assert (key.rate, key.concurrent) == (60, 4)
    assert key.limited


@pytest.mark.parametrize(
    "options",
    [
        "rate=0", "rate=-1", "rate=1.5", "rate=", "rate=много", "concurrent=0", "rat=60",
        "rate=60 rate=61", "routes=v1", "routes=/a,", "name=Alice Smith",
    ],
)  # fmt: skip
def test_a_wrong_line_opens_nothing_and_is_named_without_its_key(
    path: Path, caplog: pytest.LogCaptureFixture, options: str
) -> None:
    path.write_text(f"key1\nsecret {options}\nkey2\n")
    assert found(KeyFile(path), "key1", "secret", f"secret {options}", "key2") == [
        True, False, False, True,
    ]  # fmt: skip
    assert "line 2 is ignored" in caplog.text
    assert "secret" not in caplog.text
    assert options not in caplog.text


def test_empty_lines_and_comments_are_no_keys(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfkey1\n\n   \n# a comment\n")
    file = KeyFile(path)
    assert file.count() == 1
    assert found(file, "key1", "", "# a comment") == [True, False, False]


def test_of_two_lines_with_one_key_the_later_counts(path: Path) -> None:
    path.write_text("key1 rate=5\nkey1 rate=7\n")
    file = KeyFile(path)
    key = file.find(b"key1")
    assert key is not None
    assert (file.count(), key.rate) == (1, 7)


def test_a_key_cannot_be_read_from_what_is_kept_of_it() -> None:
    key = parse_line(b"topsecret name=alice")
    assert key is not None
    assert "topsecret" not in f"{key!r} {key.id}"


@pytest.mark.parametrize(
    ("prefix", "path", "open"),
    [
        ("/v1", "/v1", True),
        ("/v1", "/v1/process", True),
        ("/v1/", "/v1/process", True),
        ("/v1", "/v10/process", False),
        ("/v1/process", "/v1/processes", False),
        ("/v1/process", "/v1", False),
        ("/", "/anything", True),
    ],
)
def test_a_route_covers_itself_and_what_is_below(prefix: str, path: str, open: bool) -> None:
    assert covers((prefix,), path) is open


# ---------------------------------------------------------------- a file that changes


def test_a_change_counts_with_the_next_request(path: Path) -> None:
    path.write_text("key1\n")
    settle(path)
    file = KeyFile(path)
    assert found(file, "key1", "key2") == [True, False]
    path.write_text("key2\n")
    assert found(file, "key1", "key2") == [False, True]


def test_two_changes_at_one_time_of_the_clock_are_both_seen(path: Path) -> None:
    path.write_text("key1\n")
    file = KeyFile(path)
    before = path.stat()
    for key in ("key2", "key3"):
        path.write_text(f"{key}\n")  # as long as before, so that only the time differs
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert found(file, key) == [True]


def test_a_file_that_is_replaced_by_another_is_read(path: Path, tmp_path: Path) -> None:
    path.write_text("key1\n")
    settle(path)
    file = KeyFile(path)
    other = tmp_path / "other"
    other.write_text("key2\n")
    settle(other)
    other.rename(path)
    assert found(file, "key1", "key2") == [False, True]


def test_a_file_that_is_gone_or_absurd_leaves_the_keys_with_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("key1\n")
    file = KeyFile(path)
    path.unlink()
    assert [found(file, "key1", "key2") for _ in range(3)] == [[True, False]] * 3
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert found(file, "key1") == [True]
    path.write_text("key2\n")
    assert found(file, "key1", "key2") == [False, True]


def test_a_file_of_the_largest_size_is_read(path: Path) -> None:
    path.write_bytes(b"key1\n".ljust(MAX_FILE_BYTES))
    assert KeyFile(path).count() == 1


def test_an_empty_file_opens_nothing(path: Path) -> None:
    path.touch()
    file = KeyFile(path)
    assert file.count() == 0
    assert found(file, "", "key1") == [False, False]


def test_no_file_at_the_start_is_an_error_with_advice(path: Path) -> None:
    with pytest.raises(OSError, match="make key"):
        KeyFile(path)


# ---------------------------------------------------------------- a new file


def test_a_new_file_has_one_key_that_its_owner_alone_may_read(path: Path) -> None:
    nested = path.parent / "deep" / "keys.txt"
    assert create_key_file(nested)
    key = nested.read_text().strip()
    assert len(bytes.fromhex(key)) == 32
    assert stat.S_IMODE(nested.stat().st_mode) == 0o600
    assert found(KeyFile(nested), key) == [True]


def test_a_file_that_is_there_is_left_alone(path: Path) -> None:
    path.write_text("key1\n")
    assert not create_key_file(path)
    assert path.read_text() == "key1\n"


def test_the_command_prints_the_path_of_the_key_and_never_the_key(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(str(path)) == 2
    assert path.read_text().strip() not in printed.out + printed.err
