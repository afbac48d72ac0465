"""Client secrets: keys of a short life for pages and apps that must not have an API key.

A secret states what it allows and is signed with the hash of the key that it was issued for. So
every process with the same key file accepts it, none stores it, and it ends with its key at the
latest.
"""

import base64
import binascii
import hmac
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.auth.key_file import Key, KeyFile
from speech.errors import InvalidRequest

PREFIX = "ek_"
"""OpenAI's clients recognise a client secret by it."""
MAX_CHARS = 4096
"""A secret travels in a header; servers and proxies accept lines of 8 KiB."""

_CONTEXT = b"speechgraph client secret"
_SIGNATURE_BYTES = 32
_ID_BYTES = 4
"""Of the hash of the key, to find it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a secret allows: sockets at ``path`` until ``expires_at``, in Unix seconds.

    ``origin`` is that of the pages that may open them, "" for any client. ``session`` are the
    settings that a socket begins with, as JSON.
    """

    path: str
    expires_at: int
    origin: str
    session: Mapping[str, Any]


class InvalidSecret(Exception):
    """It was not issued by this service, or its key has been removed."""


def issue(key: Key | None, grant: Grant) -> str:
    """The secret of a grant for a key, None where the service has no keys.

    Raises InvalidRequest where the settings do not fit in.
    """
    parts = [grant.path, grant.expires_at, grant.origin, grant.session]
    body = zlib.compress(json.dumps(parts, separators=(",", ":")).encode(), 9)
    digest = _digest(key)
    secret = digest[:_ID_BYTES] + _signature(digest, body) + body
    text = PREFIX + base64.urlsafe_b64encode(secret).decode().rstrip("=")
    if len(text) > MAX_CHARS:
        raise InvalidRequest(
            f"These settings make a client secret of {len(text)} characters, it may have "
            f"{MAX_CHARS}: send long prompts with session.update."
        )
    return text


def read(text: bytes, keys: KeyFile | None) -> tuple[Key | None, Grant]:
    """The key that a secret was issued for, and what it allows. Raises InvalidSecret."""
    coded = text.removeprefix(PREFIX.encode())
    try:
        secret = base64.urlsafe_b64decode(coded + b"=" * (-len(coded) % 4))
    except (binascii.Error, ValueError):
        raise InvalidSecret from None
    signature = secret[_ID_BYTES : _ID_BYTES + _SIGNATURE_BYTES]
    body = secret[_ID_BYTES + _SIGNATURE_BYTES :]
    candidates = [None] if keys is None else keys.beginning_with(secret[:_ID_BYTES])
    for key in candidates:
        if hmac.compare_digest(_signature(_digest(key), body), signature):
            return key, Grant(*json.loads(zlib.decompress(body)))
    raise InvalidSecret


def expired(grant: Grant) -> bool:
    """Whether its time is over."""
    return time.time() >= grant.expires_at


def _digest(key: Key | None) -> bytes:
    return bytes(_SIGNATURE_BYTES) if key is None else key.digest


def _signature(digest: bytes, body: bytes) -> bytes:
    return hmac.digest(digest, _CONTEXT + body, "sha256")
