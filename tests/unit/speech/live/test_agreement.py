"""What two hypotheses in a row agree on stays; how often an utterance is recognised again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE
from speech.live.agreement import Agreement, next_pass
from speech.transcript import Word

Words = tuple[Word, ...]


def hypothesis_of(text: str, late_s: float = 0.0) -> Words:
    """Words of half a second each, one after the other."""
    return tuple(
        Word(f" {word}", late_s + i / 2, late_s + (i + 1) / 2)
        for i, word in enumerate(text.split())
    )


def text(words: Words) -> str:
    return "".join(word.text for word in words).strip()


def after(*hypotheses: str) -> Agreement:
    agreement = Agreement()
    for hypothesis in hypotheses:
        agreement.update(hypothesis_of(hypothesis))
    return agreement


@pytest.mark.parametrize(
    ("hypotheses", "committed", "tentative"),
    [
        (["the cat"], "", "the cat"),
        (["the cat", "the cat sat"], "the cat", "sat"),
        (["the cat", "the hat sat"], "the", "hat sat"),
        (["the cat", "a cat", "a cat"], "a cat", ""),
        (["the cat", "the cat sat", "the cat"], "the cat", ""),
        (["the cat", "", "the cat sat"], "", "the cat sat"),
        (["The cat,", "the cat. Sat"], "the cat.", "Sat"),
        (["the cat", "the cat sat", "The Cat! sat on", "THE CAT sat on a"], "the cat sat on", "a"),
        (["क", "का"], "", "का"),
        (["one —", "one — two"], "one —", "two"),
        (["", ""], "", ""),
    ],
)
def test_what_two_hypotheses_agree_on_is_committed(
    hypotheses: list[str], committed: str, tentative: str
) -> None:
    agreement = Agreement()
    answers = [agreement.update(hypothesis_of(hypothesis)) for hypothesis in hypotheses]
    assert (text(answers[-1][0]), text(answers[-1][1])) == (committed, tentative)


def test_a_committed_word_keeps_its_text_and_times() -> None:
    agreement = after("hello world", "Hello world")
    committed, _ = agreement.update(hypothesis_of("HELLO, WORLD! again", late_s=0.2))
    assert committed == hypothesis_of("Hello world")


def test_a_hypothesis_that_takes_back_committed_words_continues_behind_them_in_time() -> None:
    agreement = after("the cat sat", "the cat sat", "a hat mat on the")
    committed, tentative = agreement.update(hypothesis_of("a hat mat on the bed"))
    assert (text(committed), text(tentative)) == ("the cat sat on the", "bed")


@pytest.mark.parametrize(
    ("final", "whole"),
    [
        ("The cat sat on it.", "the cat sat on it."),
        ("the cat", "the cat"),
        ("that cat sat on it", "the cat sat on it"),
        ("", "the cat"),
    ],
)
def test_the_final_is_the_committed_words_and_what_comes_after(final: str, whole: str) -> None:
    assert text(after("the cat", "the cat sat").final(hypothesis_of(final))) == whole


def test_without_a_commitment_the_final_is_the_last_hypothesis() -> None:
    assert after("a", "the cat").final(hypothesis_of("The cat.")) == hypothesis_of("The cat.")


@pytest.mark.parametrize(
    ("late_s", "final", "whole"),
    [
        (0.3, "that cat sat", "the cat sat"),  # "cat" is recognised a little later, not twice
        (0.0, "that cat cat sat", "the cat cat sat"),
    ],
)
def test_a_word_at_the_border_is_neither_doubled_nor_lost(
    late_s: float, final: str, whole: str
) -> None:
    assert text(after("the cat", "the cat").final(hypothesis_of(final, late_s))) == whole


SPOKEN = st.lists(
    st.tuples(st.sampled_from("abcA,B."), st.floats(0.0, 0.6), st.floats(0.0, 0.5)), max_size=8
)


@st.composite
def hypotheses(draw: st.DrawFn) -> list[Words]:
    """Hypotheses in a row, in any disagreement about words and times."""
    rows = []
    for spoken in draw(st.lists(SPOKEN, min_size=1, max_size=8)):
        at, words = 0.0, []
        for letters, pause_s, length_s in spoken:
            at += pause_s
            words.append(Word(f" {letters}", at, at + length_s))
            at += length_s
        rows.append(tuple(words))
    return rows


@given(hypotheses())
def test_committed_words_are_the_beginning_of_all_that_follows(rows: list[Words]) -> None:
    agreement = Agreement()
    before: Words = ()
    for row in rows:
        committed, tentative = agreement.update(row)
        for words in (committed, (*committed, *tentative), agreement.final(row)):
            assert words[: len(before)] == before
            starts = [word.start for word in words]
            assert starts == sorted(starts)
            assert all(word.start <= word.end for word in words)
        before = committed


@given(hypotheses())
def test_hypotheses_that_only_grow_are_taken_over_word_by_word(rows: list[Words]) -> None:
    whole = rows[0]
    agreement = Agreement()
    for length in range(len(whole) + 1):
        committed, tentative = agreement.update(whole[:length])
        assert committed == whole[: max(length - 1, 0)]
        assert committed + tentative == whole[:length]
    assert agreement.final(whole) == whole


@given(
    st.integers(SAMPLE_RATE // 10, 3 * SAMPLE_RATE),
    st.lists(st.integers(0, 5 * SAMPLE_RATE), min_size=1, max_size=40),
)
def test_all_passes_together_cover_at_most_five_times_the_utterance(
    min_step: int, delays: list[int]
) -> None:
    """Passes begin when they are due or any time later."""
    covered = total = 0
    for delay in delays:
        due = next_pass(covered, min_step)
        assert due >= covered + min_step
        covered = due + delay
        total += covered
        assert total <= 5 * covered


def test_the_first_passes_come_at_every_step_and_later_ones_less_often() -> None:
    passes = [0]
    while passes[-1] < 30 * SAMPLE_RATE:
        passes.append(next_pass(passes[-1]))
    assert passes[:6] == [n * SAMPLE_RATE for n in range(6)]
    assert len(passes) < 16
