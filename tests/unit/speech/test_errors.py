"""Errors of the family keep class, message and fields on their way between processes."""

import pickle

import pytest

from speech import errors
from speech.errors import SpeechError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SpeechError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_an_error_is_its_message_here_and_in_another_process(
    kind: type[SpeechError],
) -> None:
    error = kind("the queue is full")
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (str(error), str(other), other.message) == ("the queue is full",) * 3
    assert vars(other) == vars(error)


@pytest.mark.parametrize("kind", [*KINDS])
def test_the_detail_is_in_the_text_and_not_in_the_message(kind: type[SpeechError]) -> None:
    error = pickle.loads(pickle.dumps(kind("no weights", detail="/srv/models")))
    assert (str(error), error.message) == ("no weights: /srv/models", "no weights")
