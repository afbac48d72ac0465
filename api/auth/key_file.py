"""The keys of this service: a file with one key a line, read again whenever it changes.

``python -m api.auth.key_file FILE`` makes the file with one new key in it.
"""

import errno
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(f"speechgraph.{__name__}")

MAX_FILE_BYTES = 256 * 1024
"""About 4000 keys; each request is compared with all of them, half a millisecond."""

SETTLED_S = 2.0
"""A file that changed less than this ago may change again without a new modification time."""

_OPTION = re.compile(rb"([a-z]+)=(.*)")
_OPTIONS = frozenset({"name", "routes", "rate", "concurrent"})


@dataclass(frozen=True, slots=True)
class Key:
    """One line of the file; of the key itself only its hash is kept.

    ``routes`` are path prefixes, none: all routes. ``rate`` is in requests per minute,
    ``concurrent`` the requests and streams at once; None: no limit.
    """

    digest: bytes
    name: str = ""
    routes: tuple[str, ...] = ()
    rate: int | None = None
    concurrent: int | None = None

    @property
    def id(self) -> str:
        """Names the key in counters."""
        return self.digest.hex()

    @property
    def limited(self) -> bool:
        """Whether its requests have to be counted."""
        return self.rate is not None or self.concurrent is not None

    def opens(self, path: str) -> bool:
        """Whether the key may use a path."""
        return not self.routes or covers(self.routes, path)


def covers(prefixes: tuple[str, ...], path: str) -> bool:
    """Whether a path is one of the prefixes, or below one."""
    return any(path == p or path.startswith(p.rstrip("/") + "/") for p in prefixes)


def parse_line(line: bytes) -> Key | None:
    """The key of a line, None for an empty line or a comment.

    A line is a key, or a key and options: ``KEY name=TEXT routes=PATH,PATH rate=N concurrent=N``.
    Raises ValueError, which repeats nothing of the line.
    """
    line = line.strip()
    if not line or line.startswith(b"#"):
        return None
    first, *rest = line.split()
    if not any(map(_OPTION.fullmatch, rest)):
        return Key(_digest(line))
    options: dict[str, str] = {}
    for word in rest:
        found = _OPTION.fullmatch(word)
        option = found[1].decode() if found else ""
        if found is None or option not in _OPTIONS or option in options:
            raise ValueError(f"options are {', '.join(sorted(_OPTIONS))}, each once, no blanks")
        options[option] = found[2].decode(errors="replace")
    routes = tuple(options["routes"].split(",")) if "routes" in options else ()
    if not all(route.startswith("/") for route in routes):
        raise ValueError("routes are paths that begin with /")
    return Key(
        _digest(first),
        options.get("name", ""),
        routes,
        _count(options, "rate"),
        _count(options, "concurrent"),
    )


class KeyFile:
    """The keys of a file, which is read again when it has changed.

    A file that becomes unreadable leaves the keys as they were, with one warning. A malformed line
    is ignored, and the log names its number. Raises OSError if the file cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[bytes, Key] = {}
        self._seen: tuple[int, ...] | None = None
        self._readable = True
        try:
            self._read()
        except OSError as error:
            advice = "no key file that can be read; `make key` makes one"
            raise OSError(error.errno, advice, str(path)) from None

    def find(self, presented: bytes) -> Key | None:
        """The key that a client presents, or None."""
        self._refresh()
        digest = _digest(presented)
        found = None
        # All are compared: the time must not depend on which key matches.
        for key in self._keys.values():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def beginning_with(self, digest: bytes) -> list[Key]:
        """The keys whose hash begins so."""
        self._refresh()
        return [key for key in self._keys.values() if key.digest.startswith(digest)]

    def count(self) -> int:
        """How many keys there are."""
        self._refresh()
        return len(self._keys)

    def _refresh(self) -> None:
        """Read the file if it is not what was read last."""
        try:
            if self._seen is None or _identity(self._path.stat()) != self._seen:
                self._read()
        except OSError as error:
            if self._readable:
                log.warning(
                    "the keys stay as they were, %s: %s", self._path, os.strerror(error.errno or 0)
                )
            self._readable = False

    def _read(self) -> None:
        with self._path.open("rb") as file:
            stat = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._path))
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        keys: dict[bytes, Key] = {}
        faults = []
        for number, line in enumerate(lines, 1):
            try:
                key = parse_line(line)
            except ValueError as error:
                faults.append(f"line {number} is ignored: {error}")
                continue
            if key is not None and key.digest in keys:
                faults.append(f"line {number} repeats a key, and replaces the earlier line")
            if key is not None:
                keys[key.digest] = key
        if keys != self._keys or not self._readable:
            log.info("%d keys in %s", len(keys), self._path)
            for fault in faults:
                log.warning("%s: %s", self._path, fault)
        self._keys, self._readable = keys, True
        settled = time.time() - stat.st_mtime > SETTLED_S
        self._seen = _identity(stat) if settled else None


def create_key_file(path: Path) -> bool:
    """Make a file with one new key, 64 hexadecimal digits, that its owner alone may read.

    False if there is a file already; it stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
    return True


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _count(options: dict[str, str], option: str) -> int | None:
    if option not in options:
        return None
    value = options[option]
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value, re.ASCII):
        raise ValueError(f"{option} is a whole number, at least 1")
    return int(value)


def main(arguments: list[str]) -> int:
    """Make a key file unless there is one, and print its path, never its content."""
    (path,) = map(Path, arguments)
    made = create_key_file(path)
    sys.stdout.write(
        f"{path}: {'a new key' if made else 'is there already, nothing was changed'}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
