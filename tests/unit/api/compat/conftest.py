"""Fixtures of these tests."""

import pytest

from tests.unit.heldout import clips, conversation


@pytest.fixture(scope="module")
def spoken(demo_audio):
    """Sentences in two languages, each with a pause of a second behind it."""
    return clips(demo_audio)


@pytest.fixture(scope="module")
def speech(spoken):
    return conversation(spoken, seconds=20)
