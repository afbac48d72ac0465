"""A language has one code, whatever a request calls it."""

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from hypothesis import given
from hypothesis import strategies as st

from speech.errors import InvalidRequest
from speech.languages import LANGUAGES, language_code


@pytest.mark.parametrize("name", [None, "", "  ", "auto", "AUTO", "null", "None", "detect", "und"])
def test_nothing_and_auto_mean_detect(name: str | None) -> None:
    assert language_code(name) is None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ru", "ru"),
        (" RU ", "ru"),
        ("ru-RU", "ru"),
        ("en_US", "en"),
        ("en_US.UTF-8", "en"),
        ("zh-Hant-TW", "zh"),
        ("rus", "ru"),
        ("deu", "de"),
        ("ger", "de"),
        ("eng-GB", "en"),
        ("Russian", "ru"),
        ("русский", "ru"),
        ("РУССКИЙ", "ru"),
        ("Deutsch", "de"),
        ("Haitian Creole", "ht"),
        ("haitian  creole", "ht"),
        ("Luba-Katanga", "lu"),
        ("日本語", "ja"),
        ("nb", "no"),
        ("nb-NO", "no"),
        ("iw", "he"),
        ("jv", "jw"),
        ("cmn", "zh"),
        ("fil", "tl"),
    ],
)
def test_codes_and_names_mean_one_code(name: str, code: str) -> None:
    assert language_code(name) == code


def test_every_language_of_whisper_is_known() -> None:
    assert set(_LANGUAGE_CODES) <= set(LANGUAGES)


def test_no_two_languages_share_a_name() -> None:
    for code, names in LANGUAGES.items():
        assert [language_code(name) for name in (code, *names)] == [code] * (1 + len(names))


@pytest.mark.parametrize("name", ["klingon", "xx", "r", "ru,en", "english please", "-", "string"])
def test_anything_else_is_an_error_that_lists_the_codes(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is not known.* de, .* en, .* ru, ") as raised:
        language_code(name)
    assert repr(name) in raised.value.message


@given(st.text(max_size=2000))
def test_any_text_is_a_code_or_an_error(text: str) -> None:
    try:
        found = language_code(text)
    except InvalidRequest as error:
        found = None if len(error.message) < 1000 else error.message
    assert found in (None, *LANGUAGES)
