"""Hotwords of a request: their bound, and their form for sherpa-onnx."""

import re

from speech.errors import InvalidRequest
from speech.ports import MAX_HOTWORDS


def check_hotwords(hotwords: str | None) -> None:
    """Raises InvalidRequest for more hotwords than are taken."""
    if len(hotwords or "") > MAX_HOTWORDS:
        raise InvalidRequest(f"hotwords must have at most {MAX_HOTWORDS} characters")


def hotword_phrases(hotwords: str | None) -> str | None:
    """Phrases parted by commas, semicolons or lines, as sherpa-onnx wants them: parted by ``/``.

    Only words are left of a phrase: a colon would be read as the beginning of a score.
    """
    phrases = re.split(r"[,;/\n]", hotwords or "")
    worded = (" ".join(re.findall(r"[\w'’-]+", phrase)) for phrase in phrases)
    return "/".join(phrase for phrase in worded if phrase) or None
