"""Types of request fields that the dialects share."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from speech.errors import InvalidRequest
from speech.languages import language_code


def _code(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return language_code(given)
    except InvalidRequest as error:
        raise PydanticCustomError("language", "{problem}", {"problem": error.message}) from None


LANGUAGE = BeforeValidator(_code)
"""Makes any name of a language its code."""

Language = Annotated[
    str | None,
    LANGUAGE,
    Field(description="Code or name of the language; detected if absent or auto."),
]
"""A language as a client names it; its value is the code, None to detect it."""
