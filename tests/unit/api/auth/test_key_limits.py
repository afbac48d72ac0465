"""How requests of a key are counted: so many a minute, so many at once."""

import pytest

from api.auth.key_limits import KeyCounter, Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refusal_of(
    counter: KeyCounter, key: str = "k", *, rate: int | None = None,
    concurrent: int | None = None, place: str = "p",
) -> Refusal | None:  # fmt: skip
    return counter.enter(key, rate, concurrent, place)


def test_a_minute_holds_as_many_requests_as_the_rate(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    assert [refusal_of(counter, rate=3) for _ in range(3)] == [None] * 3
    refused = refusal_of(counter, rate=3)
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == ("rate_limit_exceeded", pytest.approx(20))


def test_a_bucket_fills_evenly_and_not_above_its_minute(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    for _ in range(3):
        refusal_of(counter, rate=3)
    clock.now += 19.9
    refused = refusal_of(counter, rate=3)
    assert refused is not None
    assert refused.retry_after_s == pytest.approx(0.1)
    clock.now += 0.2
    assert refusal_of(counter, rate=3) is None
    clock.now += 3600
    assert [refusal_of(counter, rate=3) is None for _ in range(4)] == [True] * 3 + [False]


def test_a_lower_rate_counts_at_once(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    refusal_of(counter, rate=100)
    assert refusal_of(counter, rate=1) is None
    assert refusal_of(counter, rate=1) is not None


def test_a_place_is_taken_until_it_is_given_back(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    assert refusal_of(counter, concurrent=2, place="a") is None
    assert refusal_of(counter, concurrent=2, place="b") is None
    clock.now += 1e6
    refused = refusal_of(counter, concurrent=2, place="c")
    assert refused is not None
    assert refused.code == "concurrency_limit_exceeded"
    assert refused.retry_after_s > 0
    counter.leave("k", "a")
    counter.leave("k", "a")
    assert refusal_of(counter, concurrent=2, place="c") is None
    assert counter.held() == {"k": ["b", "c"]}


def test_a_refusal_for_want_of_a_place_costs_nothing_of_the_minute(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    refusal_of(counter, rate=2, concurrent=1, place="a")
    refusal_of(counter, rate=2, concurrent=1, place="b")
    counter.leave("k", "a")
    assert refusal_of(counter, rate=2, concurrent=1, place="b") is None


def test_keys_do_not_share(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    assert refusal_of(counter, "k", rate=1, concurrent=1) is None
    assert refusal_of(counter, "l", rate=1, concurrent=1) is None


def test_a_place_that_nobody_renews_is_free_again(clock: Clock) -> None:
    counter = KeyCounter(lease_s=10, clock=clock)
    refusal_of(counter, concurrent=2, place="a")
    refusal_of(counter, concurrent=2, place="b")
    clock.now += 9
    counter.renew({"k": ["a"]})
    clock.now += 2
    assert refusal_of(counter, concurrent=2, place="c") is None
    assert refusal_of(counter, concurrent=2, place="d") is not None


def test_a_counter_that_forgot_learns_what_is_held(clock: Clock) -> None:
    counter = KeyCounter(lease_s=10, clock=clock)
    counter.renew({"k": ["a"]})
    assert refusal_of(counter, concurrent=1, place="b") is not None


def test_nothing_is_kept_of_places_that_were_given_back(clock: Clock) -> None:
    counter = KeyCounter(clock=clock)
    refusal_of(counter, concurrent=1)
    counter.leave("k", "p")
    counter.leave("nobody", "p")
    assert counter.held() == {}
