"""What the training recipes promise about times, cuts and splits; no bank is needed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.recipes.bank import Clip
from models.recipes.ctc_data import PhonemeSet
from models.recipes.grammar import normalise, sentences, split_of
from models.recipes.mixing import SAMPLE_RATE_HZ, Example, Sentence
from models.recipes.synth import Language
from models.recipes.whisper_data import Stage, WhisperBatches
from models.recipes.whisper_tokens import END, FIRST_TIME, WhisperTokens, closing, opening

LANGUAGES: tuple[Language, ...] = ("ru", "en")
STEP_S = 0.02
GRID_S = 0.2
TEXTS: dict[Language, str] = {"ru": "Анна звонила.", "en": "Anna called."}

times = st.floats(0, 30)


def seconds(identifier: int) -> float:
    return (identifier - FIRST_TIME) * STEP_S


@given(times)
def test_a_segment_opens_on_the_grid_at_its_first_word_or_up_to_a_grid_step_before(time_s):
    opened_s = seconds(opening(time_s))
    assert opened_s / GRID_S == pytest.approx(round(opened_s / GRID_S))
    # One of Whisper's own steps too late still counts as at the word.
    assert time_s - GRID_S <= opened_s <= time_s + STEP_S + 1e-9


@given(times)
def test_a_segment_closes_on_the_grid_at_its_last_word_or_up_to_a_grid_step_after(time_s):
    closed_s = seconds(closing(time_s))
    assert closed_s / GRID_S == pytest.approx(round(closed_s / GRID_S))
    assert time_s - STEP_S - 1e-9 <= closed_s <= time_s + GRID_S


@given(times, times)
def test_a_segment_never_closes_before_it_opens(one_s, other_s):
    assert opening(min(one_s, other_s)) <= closing(max(one_s, other_s))


@pytest.mark.parametrize(("time_s", "inside_s"), [(-1.0, 0.0), (31.0, 30.0)])
def test_time_stamps_stay_within_what_whisper_can_write(time_s, inside_s):
    assert opening(time_s) == opening(inside_s)
    assert closing(time_s) == closing(inside_s)


@pytest.fixture(scope="module")
def example() -> Example:
    """Ten seconds whose samples count up, so that each identifies its position."""
    spoken = tuple(
        Sentence("one two", "en", (("one", at, at + 0.5), ("two", at + 0.6, at + 1.0)))
        for at in (1.0, 4.0, 7.0)
    )
    phonemes = tuple(word for sentence in spoken for word in sentence.words)
    return Example(np.arange(10 * SAMPLE_RATE_HZ), spoken, phonemes)


@given(start_s=st.floats(0, 10))
def test_words_and_samples_stay_aligned_after_a_cut(example, start_s):
    left = example.since(start_s)
    kept = example.words[len(example.words) - len(left.words) :]
    assert [word for word, _, _ in left.words] == [word for word, _, _ in kept]
    for (_, _, after_s), (_, _, before_s) in zip(left.words, kept, strict=True):
        at = round(after_s * SAMPLE_RATE_HZ)
        # What began before the cut has lost its first sample.
        if at >= 0:
            assert left.samples[at] == round(before_s * SAMPLE_RATE_HZ)


@given(start_s=st.floats(0, 10))
def test_sentences_wholly_before_a_cut_are_gone_and_those_after_it_stay(example, start_s):
    left = example.since(start_s)
    tolerance_s = 1 / SAMPLE_RATE_HZ
    assert all(sentence.end_s > -tolerance_s for sentence in left.sentences)
    assert all(end_s > 0 for _, _, end_s in left.phonemes)
    after = [sentence for sentence in example.sentences if sentence.start_s >= start_s]
    assert len(left.sentences) >= len(after)


def test_a_word_that_began_before_the_cut_has_a_time_below_zero(example):
    left = example.since(4.25)
    assert left.words[0] == ("one", pytest.approx(-0.25), pytest.approx(0.25))
    assert len(left.sentences) == 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_grammar_is_deterministic(language):
    assert sentences(language, "train", 50, seed=5) == sentences(language, "train", 50, seed=5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_seed_trains_on_a_heldout_sentence(language):
    heldout = {normalise(text) for text in sentences(language, "heldout", 100, seed=1)}
    for seed in (1, 2):
        trained = {normalise(text) for text in sentences(language, "train", 300, seed)}
        assert not trained & heldout


def test_the_split_of_a_sentence_ignores_case_and_punctuation():
    texts = [text for language in LANGUAGES for text in sentences(language, "heldout", 20, seed=3)]
    assert {split_of(text.upper().strip(".?!")) for text in texts} == {"heldout"}
    assert split_of("Она всё ещё ждёт") == split_of("она все еще ждет")


def test_the_committed_sentences_are_still_held_out(demo_audio: Path):
    lines = (demo_audio / "heldout" / "reference.jsonl").read_text(encoding="utf-8").splitlines()
    assert {split_of(json.loads(line)["text"]) for line in lines} == {"heldout"}


def clips(words_s: float, tail_s: float) -> list[Clip]:
    """Two words in each language that fill the clip up to a quiet tail."""
    samples = np.full(round((words_s + tail_s) * SAMPLE_RATE_HZ), 1000, np.int16)
    middle_s = words_s / 2
    return [
        Clip(
            samples,
            language,
            text,
            "voice",
            tuple(zip(text.strip(".").split(), (0.0, middle_s), (middle_s, words_s), strict=True)),
            (("a", 0.0, words_s),),
        )
        for language, text in TEXTS.items()
    ]


@pytest.fixture(scope="module")
def tokens() -> WhisperTokens:
    return WhisperTokens(TEXTS.values())


def stamped(tokens: WhisperTokens, spoken: list[Clip], stage: Stage) -> Iterator[list[int]]:
    """What the model is to answer, up to the end, wherever time stamps are asked for."""
    batches = WhisperBatches(spoken, tokens, PhonemeSet(spoken), np.random.default_rng(7))
    for row in batches.next(stage).targets.numpy():
        # First comes the language, or that there is no speech.
        _, *body, end = tokens.full_ids[row[row >= 0]].tolist()
        assert end == END
        if body and body[0] >= FIRST_TIME:
            yield body


def test_time_stamps_never_fall(tokens):
    # Pauses are often shorter than the grid: the next sentence begins before the last one closes.
    touching = 0
    for body in stamped(tokens, clips(0.1, 0.0), Stage(window_s=4.0, batch=32, flows=True)):
        stamps = [i for i in body if i >= FIRST_TIME]
        assert stamps == sorted(stamps)
        pairs = zip(stamps[1::2], stamps[2::2], strict=False)  # the last may stay open
        touching += any(opened == closed for closed, opened in pairs)
    assert touching


def test_a_cut_sentence_leaves_only_its_start(tokens):
    stage = Stage(window_s=4.0, batch=16, flows=True)
    cut = 0
    for body in stamped(tokens, clips(0.98, 0.02), stage):
        kinds = "".join("t" if i >= FIRST_TIME else "w" for i in body)
        assert re.fullmatch("(tw+t)*t?", kinds)
        assert seconds(body[-1]) <= stage.window_s
        cut += kinds.endswith("tt")
    assert cut


def test_a_sentence_longer_than_the_window_leaves_only_its_start(tokens):
    stage = Stage(window_s=2.0, batch=12, flows=False)
    bodies = list(stamped(tokens, clips(2.9, 0.1), stage))
    assert bodies
    assert all(len(body) == 1 for body in bodies)
