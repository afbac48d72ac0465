"""Windows of different requests in one batch: what shares it, in which order, and what fails."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest

from engines.whisper import scheduler as scheduling
from engines.whisper.engine import WhisperEngine
from engines.whisper.finite import Encoded, FiniteWhisper
from engines.whisper.scheduler import Request, Scheduler
from engines.whisper.shared_model import SharedModel
from engines.whisper.windows import Window
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled
from speech.ports import TranscribeOptions
from speech.transcript import Recognition
from tests.unit.heldout import clips, conversation

START, NO_TIMESTAMPS = 1, 2


class Recorder:
    """A model that answers each window with its first feature, and keeps what a batch was."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.encoded = 0
        self.fails: Callable[[Sequence[float]], Exception | None] = lambda values: None

    def encode(self, features: Any) -> Encoded:
        self.encoded += features.shape[0]
        return Encoded(features, ctranslate2.StorageView.from_array(np.array(features)), 0)

    def compute(self, encoded: Encoded) -> list[float]:
        values = [float(value) for value in np.asarray(encoded.output)[:, 0, 0]]
        error = self.fails(values)
        if error is not None:
            raise error
        self.batches.append(values)
        return values


def window(value: float) -> Window:
    return Window(np.full((2, 4), value, np.float32))


class Bench:
    """A scheduler on a recorder; :meth:`hold` keeps its thread busy, so that calls gather."""

    def __init__(self, max_batch: int) -> None:
        self.recorder = Recorder()
        model: Any = self.recorder
        self.scheduler = Scheduler(model, max_batch, 1)
        self._release = threading.Event()

    def submit(self, request: Request, value: float, kind: str = "text") -> "Future[Any]":
        return self.submit_window(request, window(value), kind)

    def submit_window(self, request: Request, item: Window, kind: str = "text") -> "Future[Any]":
        place = (kind, item.encoded)
        return self.scheduler.submit(
            request, item, None, lambda _, encoded, __: self.recorder.compute(encoded), place
        )

    def hold(self, request: Request) -> None:
        began = threading.Event()

        def run(*_: Any) -> list[None]:
            began.set()
            self._release.wait()
            return [None]

        self.scheduler.submit(request, window(-1), None, run, object())
        began.wait()

    def release(self) -> None:
        self._release.set()


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "LONGEST_WAIT_S", 0.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(max_batch=4)
    yield bench
    bench.release()


def results(futures: Sequence["Future[Any]"]) -> list[Any]:
    return [future.result(timeout=10) for future in futures]


def test_calls_of_different_requests_share_batches_up_to_the_bound(bench: Bench) -> None:
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        futures = [bench.submit(Request(background=False), value) for value in range(6)]
        bench.release()
        assert results(futures) == [0, 1, 2, 3, 4, 5]
    assert bench.recorder.batches == [[0, 1, 2, 3], [4, 5]]


def test_calls_of_another_kind_run_in_another_batch(bench: Bench) -> None:
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        kinds = ["a", "b", "a", "b"]
        futures = [
            bench.submit(Request(background=False), value, kind) for value, kind in enumerate(kinds)
        ]
        bench.release()
        results(futures)
    assert bench.recorder.batches == [[0, 2], [1, 3]]


def test_a_new_request_goes_before_the_rest_of_a_long_one_and_both_before_a_job() -> None:
    bench = Bench(max_batch=1)
    long, job = Request(background=False), Request(background=True)
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        futures = [bench.submit(job, 100)]
        futures += [bench.submit(long, value) for value in (10, 11, 12)]
        futures += [bench.submit(Request(background=False), 1)]
        bench.release()
        results(futures)
    assert bench.recorder.batches == [[10], [1], [11], [12], [100]]


def test_a_job_is_not_starved_by_requests_that_never_end() -> None:
    bench = Bench(max_batch=1)
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        job = bench.submit(Request(background=True), 1000)
        asked = 0

        def ask(_: object = None) -> None:
            nonlocal asked
            if not job.done() and asked < 500:
                asked += 1
                bench.submit(Request(background=False), asked).add_done_callback(ask)

        ask()
        bench.release()
        job.result(timeout=10)
    assert 60 < asked < 70


def test_a_batch_waits_for_the_other_requests_in_progress_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduling, "LONGEST_WAIT_S", 60.0)
    bench = Bench(max_batch=4)
    with bench.scheduler.request(background=False) as first:
        with bench.scheduler.request(background=False) as second:
            future = bench.submit(first, 1)
            assert results([future, bench.submit(second, 2)]) == [1, 2]
            future = bench.submit(first, 3)
        assert results([future]) == [3], "the second has ended"
        assert results([bench.submit(first, 4)]) == [4], "no other is in progress"
    assert bench.recorder.batches == [[1, 2], [3], [4]]


def test_an_error_is_that_of_the_window_that_causes_it(bench: Bench) -> None:
    bench.recorder.fails = lambda values: ValueError("bad window") if 2 in values else None
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        futures = [bench.submit(Request(background=False), value) for value in range(4)]
        bench.release()
        with pytest.raises(ValueError, match="bad window"):
            futures[2].result(timeout=10)
        assert results([futures[0], futures[1], futures[3]]) == [0, 1, 3]


def test_batches_that_do_not_fit_are_halved_until_no_request_is_in_progress(bench: Bench) -> None:
    tried: list[int] = []

    def fails(values: Sequence[float]) -> Exception | None:
        tried.append(len(values))
        return RuntimeError("CUDA out of memory") if len(values) > 2 else None

    bench.recorder.fails = fails
    with bench.scheduler.request(background=False) as request:
        bench.hold(request)
        futures = [bench.submit(Request(background=False), value) for value in range(8)]
        bench.release()
        assert results(futures) == list(range(8))
    assert tried == [4, 2, 2, 2, 2]
    bench = Bench(max_batch=4)
    bench.recorder.fails = fails
    tried.clear()
    for _ in range(2):
        bench._release.clear()
        with bench.scheduler.request(background=False) as request:
            bench.hold(request)
            futures = [bench.submit(Request(background=False), value) for value in range(4)]
            bench.release()
            results(futures)
    assert tried == [4, 2, 2, 4, 2, 2]


def test_calls_of_a_request_that_has_ended_never_run(bench: Bench) -> None:
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        with bench.scheduler.request(background=False) as request:
            left = bench.submit(request, 1)
        kept = bench.submit(Request(background=False), 2)
        bench.release()
        results([kept])
    assert left.cancelled()
    assert bench.recorder.batches == [[2]]


def test_a_cancelled_request_stops_waiting_for_its_batch(bench: Bench) -> None:
    with bench.scheduler.request(background=False) as holder:
        bench.hold(holder)
        with bench.scheduler.request(background=False) as request:
            model = SharedModel(bench.scheduler, request, START, NO_TIMESTAMPS, lambda: True)
            with pytest.raises(Cancelled):
                model.detect_language(window(1))
        bench.release()


def test_a_window_is_encoded_once_and_its_further_calls_take_their_rows(bench: Bench) -> None:
    windows = [window(value) for value in range(4)]
    requests = [Request(background=False) for _ in windows]
    for chosen in ([0, 1, 2, 3], [3, 1], [1], [0, 2], [2]):
        bench._release.clear()
        with bench.scheduler.request(background=False) as holder:
            bench.hold(holder)
            futures = [bench.submit_window(requests[n], windows[n]) for n in chosen]
            bench.release()
            assert results(futures) == chosen
    assert bench.recorder.encoded == 4 + 5, "the windows, and those that held the thread"
    assert bench.recorder.batches[1] == [1, 3]


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Samples]:
    return [clip.samples for clip in clips(demo_audio, count=4)]


FAST = TranscribeOptions(beam_size=2, condition_on_previous_text=False)
ASKED = (
    FAST,
    replace(FAST, language="ru"),
    replace(FAST, vad_filter=True, batch_size=2),
    replace(FAST, vad_filter=True, multilingual=True),
    replace(FAST, task="translate", without_timestamps=True, word_timestamps=False),
    replace(FAST, condition_on_previous_text=True, initial_prompt="one two"),
)


def times(recognition: Recognition) -> list[float]:
    return [time for s in recognition.segments for w in s.words for time in (w.start, w.end)]


def test_requests_that_share_batches_have_the_text_that_they_have_alone(
    repository: Path, spoken: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "models" / "demo" / "demo-whisper"
    engine = WhisperEngine(path, device="cpu", compute_type="auto", threads=1, max_batch=8)
    sizes: list[int] = []
    generate = FiniteWhisper.generate

    def record(self: Any, encoded: Any, prompts: Any, **options: Any) -> Any:
        if "max_initial_timestamp_index" in options:  # a sequential request has one window at once
            sizes.append(len(prompts))
        return generate(self, encoded, prompts, **options)

    monkeypatch.setattr(FiniteWhisper, "generate", record)
    # Eight requests: each kind of options, over different speech longer than a window.
    speech = [np.concatenate([clip, spoken[0]])[: 14 * SAMPLE_RATE] for clip in spoken]
    asked = [(speech[n % 4], ASKED[n % len(ASKED)]) for n in range(8)]
    alone = [engine.transcribe(samples, options) for samples, options in asked]
    assert max(sizes) == 1
    monkeypatch.setattr(scheduling, "LONGEST_WAIT_S", 5.0)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda one: engine.transcribe(*one), asked))
    assert 2 <= max(sizes) <= 8
    for found, expected in zip(together, alone, strict=True):
        assert found.language == expected.language
        assert [s.text for s in found.segments] == [s.text for s in expected.segments]
        assert [s.avg_logprob for s in found.segments] == [s.avg_logprob for s in expected.segments]
        # CTranslate2 aligns shorter texts padded to the longest: a word may move by two frames.
        np.testing.assert_allclose(times(found), times(expected), atol=0.041)


def test_a_file_in_the_batched_mode_fills_batches_with_its_own_windows(
    repository: Path, demo_audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "models" / "demo" / "demo-whisper"
    engine = WhisperEngine(path, device="cpu", compute_type="auto", threads=1, max_batch=3)
    samples = conversation(clips(demo_audio, count=2), seconds=40)
    sizes: dict[str, list[int]] = {"generate": [], "align": []}
    for name, kept in sizes.items():
        call = getattr(FiniteWhisper, name)

        def record(
            self: Any, *given: Any, _call: Any = call, _kept: Any = kept, **options: Any
        ) -> Any:
            found = _call(self, *given, **options)
            _kept.append(len(found))
            return found

        monkeypatch.setattr(FiniteWhisper, name, record)
    options = replace(FAST, vad_filter=True, chunk_length=5, batch_size=4)
    assert engine.transcribe(samples, options).segments
    for kept in sizes.values():
        assert max(kept) == 3
        assert sum(kept) > 6
