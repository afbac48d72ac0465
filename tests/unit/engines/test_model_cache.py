import gc
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.cache import ModelCache
from speech.errors import Overloaded


@pytest.fixture(autouse=True)
def collections_that_are_quick() -> Iterator[None]:
    """A load collects garbage first; all that other tests left in the process is not looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


class Model:
    def __init__(self, name: str) -> None:
        self.name = name


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cache_of(
    max_models: int = 2,
    idle_ttl_s: float = -1,
    load: Callable[[str], Model] = Model,
    clock: Clock | None = None,
    wait_s: float = 5.0,
) -> ModelCache[Model]:
    return ModelCache(
        load, max_models, idle_ttl_s, task_type="asr", wait_s=wait_s, clock=clock or Clock()
    )


def touch(cache: ModelCache[Model], *keys: str) -> None:
    for key in keys:
        with cache.use(key):
            pass


def loaded(cache: ModelCache[Model]) -> list[str]:
    return [row["model_name"] for row in cache.stats()]


@contextmanager
def held(cache: ModelCache[Model], key: str) -> Iterator[Callable[[], None]]:
    """Another thread that uses a model until it is released."""
    taken, let_go = threading.Event(), threading.Event()

    def work() -> None:
        with cache.use(key):
            taken.set()
            let_go.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert taken.wait(10)
    try:
        yield let_go.set
    finally:
        let_go.set()
        thread.join(10)


def test_a_model_is_loaded_once_and_then_shared() -> None:
    cache = cache_of()
    with cache.use("a") as first, cache.use("a") as second:
        assert first is second
    with cache.use("a") as third:
        assert third is first


def test_the_least_recently_used_model_goes_when_there_is_no_room() -> None:
    cache = cache_of(max_models=2)
    touch(cache, "a", "b", "a", "c")
    assert loaded(cache) == ["a", "c"]


def test_a_model_in_use_is_never_evicted() -> None:
    cache = cache_of(max_models=2)
    with cache.use("a"):
        touch(cache, "b", "c")
        assert loaded(cache) == ["a", "c"]


def test_when_every_model_is_in_use_the_next_one_waits_for_a_place() -> None:
    cache = cache_of(max_models=1)
    with held(cache, "a") as let_go, ThreadPoolExecutor() as pool:
        waiting = pool.submit(touch, cache, "b")
        assert not waiting.done()
        let_go()
        waiting.result(10)
    assert loaded(cache) == ["b"]


def test_waiting_for_a_place_is_bounded() -> None:
    cache = cache_of(max_models=1, wait_s=0.01)
    with cache.use("a"), pytest.raises(Overloaded, match="b"), cache.use("b"):
        pass
    touch(cache, "b")


def test_waiting_for_the_load_of_another_thread_is_bounded() -> None:
    started, finish = threading.Event(), threading.Event()

    def load(key: str) -> Model:
        started.set()
        finish.wait(10)
        return Model(key)

    cache = cache_of(load=load, wait_s=0.01)
    with ThreadPoolExecutor() as pool:
        loader = pool.submit(touch, cache, "a")
        assert started.wait(10)
        with pytest.raises(Overloaded, match="loading"), cache.use("a"):
            pass
        finish.set()
        loader.result(10)
    assert loaded(cache) == ["a"]


def test_a_slow_load_does_not_delay_a_model_that_is_there() -> None:
    started, finish = threading.Event(), threading.Event()

    def load(key: str) -> Model:
        if key == "slow":
            started.set()
            finish.wait(10)
        return Model(key)

    cache = cache_of(load=load)
    touch(cache, "a")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(touch, cache, "slow")
        assert started.wait(10)
        touch(cache, "a")
        assert loaded(cache) == ["a"]
        assert not slow.done()
        finish.set()
        slow.result(10)
    assert loaded(cache) == ["a", "slow"]


def test_a_load_that_fails_leaves_nothing_behind_and_is_tried_again() -> None:
    attempts = Counter[str]()

    def load(key: str) -> Model:
        attempts[key] += 1
        if attempts[key] == 1:
            raise TimeoutError("the disk is slow")
        return Model(key)

    cache = cache_of(max_models=1, load=load)
    with pytest.raises(TimeoutError, match="disk"), cache.use("a"):
        pass
    assert cache.stats() == []
    with cache.use("a") as model:
        assert model.name == "a"
    assert attempts["a"] == 2


def test_everyone_who_asks_for_a_model_that_fails_to_load_gets_the_error() -> None:
    together = threading.Barrier(4)

    def load(key: str) -> Model:
        raise ValueError("broken weights")

    def ask() -> None:
        together.wait(10)
        touch(cache, "a")

    cache = cache_of(load=load)
    with ThreadPoolExecutor(4) as pool:
        for waiting in [pool.submit(ask) for _ in range(4)]:
            with pytest.raises(ValueError, match="broken"):
                waiting.result(10)
    assert cache.stats() == []


def test_an_idle_model_goes_after_its_time_and_not_before() -> None:
    clock = Clock()
    cache = cache_of(idle_ttl_s=30, clock=clock)
    touch(cache, "a")
    clock.now = 20
    touch(cache, "b")
    clock.now = 30
    assert cache.evict_idle() == ["a"]
    assert loaded(cache) == ["b"]


def test_a_model_in_use_is_not_idle_however_long_it_takes() -> None:
    clock = Clock()
    cache = cache_of(idle_ttl_s=30, clock=clock)
    with cache.use("a"):
        clock.now = 1000
        assert cache.evict_idle() == []
        assert cache.stats()[0]["idle_seconds"] == 0
    clock.now = 1029
    assert cache.evict_idle() == []
    clock.now = 1030
    assert cache.evict_idle() == ["a"]


def test_a_ttl_of_minus_one_keeps_models_for_ever() -> None:
    clock = Clock()
    cache = cache_of(idle_ttl_s=-1, clock=clock)
    touch(cache, "a")
    clock.now = 1e9
    assert cache.evict_idle() == []


def test_a_ttl_of_zero_unloads_when_the_last_user_is_done() -> None:
    cache = cache_of(idle_ttl_s=0)
    with cache.use("a"):
        touch(cache, "a")
        assert loaded(cache) == ["a"]
    assert loaded(cache) == []


def test_smaller_limits_apply_at_once_to_idle_models_and_later_to_used_ones() -> None:
    cache = cache_of(max_models=3)
    touch(cache, "a")
    with cache.use("b"), cache.use("c"):
        cache.configure(max_models=1, idle_ttl_s=-1)
        assert loaded(cache) == ["b", "c"]
    assert len(loaded(cache)) == 1


def test_larger_limits_let_a_waiting_load_begin() -> None:
    cache = cache_of(max_models=1)
    with cache.use("a"), ThreadPoolExecutor() as pool:
        waiting = pool.submit(touch, cache, "b")
        cache.configure(max_models=2, idle_ttl_s=-1)
        waiting.result(10)


@pytest.mark.parametrize(("max_models", "idle_ttl_s"), [(0, -1), (1, -2)])
def test_senseless_limits_are_refused(max_models: int, idle_ttl_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        cache_of(max_models=max_models, idle_ttl_s=idle_ttl_s)


def test_statistics_carry_the_published_names() -> None:
    clock = Clock()
    cache = cache_of(clock=clock)
    touch(cache, "a", "a")
    clock.now = 7
    (row,) = cache.stats()
    assert row["model_name"] == "a"
    assert row["task_type"] == "asr"
    assert row["wrapper_class"] == "Model"
    assert row["use_count"] == 2
    assert row["in_use"] == 0
    assert row["idle_seconds"] == 7
    assert row["estimated_mem_bytes"] >= 0
    assert row["last_used"] >= row["loaded_at"] > 1e9


def test_estimated_memory_is_what_the_load_added_to_the_process() -> None:
    class Heavy(Model):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.weights = bytearray(b"\1" * 64 * 1024**2)

    cache = cache_of(load=Heavy)
    touch(cache, "a")
    assert 50 * 1024**2 < cache.stats()[0]["estimated_mem_bytes"] < 200 * 1024**2


@given(
    max_models=st.integers(1, 3),
    steps=st.lists(
        st.tuples(st.sampled_from(["use", "hold", "release", "tick"]), st.sampled_from("abcd")),
        max_size=40,
    ),
)
def test_any_sequence_keeps_the_bound_and_the_models_in_use(
    max_models: int, steps: list[tuple[str, str]]
) -> None:
    clock = Clock()
    cache = cache_of(max_models=max_models, idle_ttl_s=5, clock=clock, wait_s=0.0)
    holds: dict[str, ExitStack] = {}
    for step, key in steps:
        free = len(holds) < max_models or key in holds
        if step == "use" and free:
            touch(cache, key)
        elif step == "hold" and free and key not in holds:
            holds[key] = ExitStack()
            holds[key].enter_context(cache.use(key))
        elif step == "release" and key in holds:
            holds.pop(key).close()
        elif step == "tick":
            clock.now += 2
            assert not set(cache.evict_idle()) & set(holds)
        assert len(loaded(cache)) <= max_models
        assert set(holds) <= set(loaded(cache))
    for hold in holds.values():
        hold.close()


def test_many_threads_share_few_places_without_a_double_load_or_a_stolen_model() -> None:
    loading, in_use = Counter[str](), Counter[str]()
    lock = threading.Lock()

    def load(key: str) -> Model:
        with lock:
            loading[key] += 1
            assert loading[key] == 1, "two loads of one model at once"
            assert in_use[key] == 0, "a model in use was loaded again"
        model = Model(key)
        with lock:
            loading[key] -= 1
        return model

    cache = cache_of(max_models=3, load=load, wait_s=30)

    def work(seed: int) -> None:
        for step in range(100):
            key = "abcde"[(seed * 7 + step * 3) % 5]
            with cache.use(key) as model:
                with lock:
                    in_use[key] += 1
                    assert len(+in_use) <= 3, "more models in use than there are places"
                assert model.name == key
                with lock:
                    in_use[key] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result(60)
    assert sum(row["in_use"] for row in cache.stats()) == 0


def test_the_models_that_nobody_uses_are_evicted_but_one() -> None:
    cache = cache_of(max_models=4)
    touch(cache, "a", "b", "c")
    with cache.use("d"):
        assert cache.evict_unused(but="b") == ["a", "c"]
        assert loaded(cache) == ["b", "d"]
    assert cache.evict_unused(but="b") == ["d"]
    assert cache.evict_unused(but="b") == []


def test_the_blocks_that_torch_keeps_are_freed_after_an_evicted_model_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class InCycle(Model):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.itself = self  # as in the modules of torch
            models.append(weakref.ref(self))

    def empty_cache() -> None:
        alive.append(sum(model() is not None for model in models))

    models: list[weakref.ref[Model]] = []
    alive: list[int] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True, memory_reserved=lambda: 0, empty_cache=empty_cache
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    clock = Clock()
    cache = cache_of(idle_ttl_s=10, load=InCycle, clock=clock)
    touch(cache, "a")
    cache.evict_idle()
    assert alive == [], "nothing was evicted"
    clock.now = 11
    assert cache.evict_idle() == ["a"]
    assert alive == [0]
