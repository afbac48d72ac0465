"""Hotwords of a request: their bound, and their form for sherpa-onnx."""

import re

from speech.errors import InvalidRequest
from speech.ports import MAX_HOTWORDS


def check_hotwords(hotwords: str | None) -> None:
    """Raise InvalidRequest if the hotwords are longer than allowed."""
    if len(hotwords or "") > MAX_HOTWORDS:
        raise InvalidRequest(f"hotwords must have at most {MAX_HOTWORDS} characters")


def hotword_phrases(hotwords: str | None) -> str | None:
    """Phrases separated by commas, semicolons or newlines, in sherpa-onnx's form: by ``/``.

    Only words are kept of a phrase: sherpa-onnx reads a colon as the beginning of a score.
    """
    phrases = re.split(r"[,;/\n]", hotwords or "")
    cleaned = (" ".join(re.findall(r"[\w'’-]+", phrase)) for phrase in phrases)
    return "/".join(phrase for phrase in cleaned if phrase) or None
