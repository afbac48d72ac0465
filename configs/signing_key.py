"""The key of webhook signatures, from the secret of the configuration."""

import base64
import binascii

SECRET_PREFIX = "whsec_"
"""Prefix of a secret in base64; any other secret is used as its characters."""


def signing_key(secret: str) -> bytes:
    """The bytes that sign. Raises ValueError for a secret that is empty or not base64."""
    encoded = secret.removeprefix(SECRET_PREFIX)
    if not encoded:
        raise ValueError("is empty")
    if encoded == secret:
        return secret.encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64 after {SECRET_PREFIX}: {error}") from None
