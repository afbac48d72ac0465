"""Fixtures of these tests."""

import pytest

from tests.unit.heldout import clips, conversation


@pytest.fixture(scope="module")
def spoken(demo_audio):
    """Sentences in two languages."""
    return clips(demo_audio, count=2)


@pytest.fixture(scope="module")
def speech(spoken):
    """The sentences, each with a pause of a second behind it."""
    return conversation(spoken, seconds=1)
