"""Whisper on faster-whisper: every option, any length, every error."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import jiwer
import numpy as np
import pytest
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.transcribe import Segment as LibrarySegment
from faster_whisper.transcribe import Word as LibraryWord
from faster_whisper.vad import VadOptions

from engines.whisper.batched import BatchedInfo, BatchedTranscription
from engines.whisper.engine import WhisperEngine
from engines.whisper.log_mel import BlockwiseFeatures
from engines.whisper.whisper_options import runs_batched
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
)
from speech.ports import TranscribeOptions
from speech.transcript import Recognition
from tests.unit.heldout import Clip, clips, conversation, plain

FAST = TranscribeOptions(beam_size=1, temperature=(0.0,), condition_on_previous_text=False)
BATCHED = replace(FAST, vad_filter=True)


@pytest.fixture(scope="module")
def model(repository: Path, request: pytest.FixtureRequest) -> Path:
    """The Whisper of the demo pack, or the one among the recordings until that is trained."""
    demo = repository / "models" / "demo" / "demo-whisper"
    if (demo / "model.bin").is_file():
        return demo
    assets: Path = request.getfixturevalue("assets")
    return assets / "whisper-micro"


@pytest.fixture(scope="module")
def engine(model: Path) -> WhisperEngine:
    return WhisperEngine(model, device="cpu", compute_type="auto", threads=1)


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio, count=2)


@pytest.fixture(scope="module")
def minute(spoken: list[Clip]) -> Samples:
    return conversation(spoken, seconds=62)


def assert_sound(recognition: Recognition, samples: Samples) -> None:
    """What holds for every recognition with words, whatever its words."""
    duration = len(samples) / SAMPLE_RATE
    assert recognition.segments
    edges = [t for s in recognition.segments for w in s.words for t in (w.start, w.end)]
    assert edges == sorted(edges)
    assert all(0 <= t <= duration for t in edges)
    for segment in recognition.segments:
        assert 0 <= segment.start <= segment.end <= duration
        assert "".join(w.text for w in segment.words) == segment.text
        assert all(0 <= (w.probability or 0) <= 1 for w in segment.words)
        assert len({w.probability for w in segment.words}) > 1 or len(segment.words) == 1


def text(recognition: Recognition) -> str:
    return "".join(s.text for s in recognition.segments)


def test_most_words_of_unseen_sentences_are_recognised(
    engine: WhisperEngine, model: Path, spoken: list[Clip]
) -> None:
    if model.name != "demo-whisper":
        pytest.skip("the Whisper of the demo pack is not there")
    for options in (FAST, BATCHED):
        found = [plain(text(engine.transcribe(clip.samples, options))) for clip in spoken]
        assert jiwer.wer([plain(clip.text) for clip in spoken], found) < 0.5


def test_segments_carry_words_and_the_statistics_of_their_window(
    engine: WhisperEngine, spoken: list[Clip]
) -> None:
    clip = spoken[0]
    recognition = engine.transcribe(clip.samples, FAST)
    assert_sound(recognition, clip.samples)
    segment = recognition.segments[0]
    assert segment.words[0].text.startswith(" ")
    assert segment.tokens
    assert segment.seek == 0
    assert segment.temperature == 0.0
    assert segment.avg_logprob is not None
    assert segment.avg_logprob < 0
    assert segment.compression_ratio is not None
    assert segment.compression_ratio > 0
    assert segment.no_speech_prob is not None
    assert 0 <= segment.no_speech_prob <= 1


def test_the_language_is_detected_unless_it_is_given(
    engine: WhisperEngine, spoken: list[Clip]
) -> None:
    detected = engine.transcribe(spoken[0].samples, FAST)
    assert detected.language == spoken[0].language
    assert detected.language_probability is not None
    assert 0.5 < detected.language_probability < 1.0
    given = engine.transcribe(spoken[0].samples, replace(FAST, language="en"))
    assert (given.language, given.language_probability) == ("en", 1.0)


def test_without_word_timestamps_segments_have_no_words(
    engine: WhisperEngine, spoken: list[Clip]
) -> None:
    recognition = engine.transcribe(spoken[0].samples, replace(FAST, word_timestamps=False))
    assert text(recognition).strip()
    assert all(segment.words == () for segment in recognition.segments)


@pytest.mark.parametrize(
    "options",
    [FAST, BATCHED, replace(BATCHED, batch_size=1), replace(BATCHED, chunk_length=10)],
    ids=["sequential", "batched", "sequential with vad", "batched in short windows"],
)
def test_audio_longer_than_a_window_is_recognised_to_its_end(
    engine: WhisperEngine, minute: Samples, options: TranscribeOptions
) -> None:
    recognition = engine.transcribe(minute, options)
    assert_sound(recognition, minute)
    assert recognition.segments[-1].end > 45
    assert {int(s.start) // 30 for s in recognition.segments} >= {0, 1}


@pytest.mark.parametrize("options", [FAST, BATCHED, replace(BATCHED, batch_size=1)])
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 0.5, 35.0])
def test_silence_of_any_length_gives_no_segments(
    engine: WhisperEngine, options: TranscribeOptions, seconds: float
) -> None:
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    recognition = engine.transcribe(silence, options)
    assert recognition.segments == ()
    assert recognition.language is None


def test_digital_silence_around_speech_gives_no_text(
    engine: WhisperEngine, spoken: list[Clip]
) -> None:
    quiet = np.zeros(40 * SAMPLE_RATE, np.float32)
    samples = np.concatenate([quiet, spoken[0].samples, quiet])
    for segment in engine.transcribe(samples, FAST).segments:
        assert segment.end > 40
        assert segment.start < 40 + len(spoken[0].samples) / SAMPLE_RATE


def test_clips_are_recognised_alone_and_only_their_speech_with_vad(
    engine: WhisperEngine, minute: Samples
) -> None:
    for options in (FAST, BATCHED):
        clipped = replace(options, clip_timestamps="0,8,30,40")
        found = engine.transcribe(minute, clipped).segments
        assert found
        for segment in found:
            assert segment.end <= 8.5 or 29.5 <= segment.start <= segment.end <= 40.5
    to_the_end = engine.transcribe(minute, replace(FAST, clip_timestamps=(50.0,))).segments
    assert all(segment.start >= 49.5 for segment in to_the_end)
    silent = np.concatenate([np.zeros(5 * SAMPLE_RATE, np.float32), minute[: 5 * SAMPLE_RATE]])
    assert not engine.transcribe(silent, replace(BATCHED, clip_timestamps="0,3")).segments


def test_suppressed_tokens_are_not_in_the_text(engine: WhisperEngine, spoken: list[Clip]) -> None:
    tokens = engine.transcribe(spoken[0].samples, FAST).segments[0].tokens or ()
    token = tokens[1]
    other = engine.transcribe(spoken[0].samples, replace(FAST, suppress_tokens=(token,)))
    assert all(token not in (segment.tokens or ()) for segment in other.segments)


def test_a_window_has_no_more_new_tokens_than_asked_for(
    engine: WhisperEngine, spoken: list[Clip]
) -> None:
    short = engine.transcribe(spoken[0].samples, replace(FAST, max_new_tokens=3))
    assert all(len(segment.tokens or ()) <= 3 for segment in short.segments)


def test_context_and_hints_longer_than_the_model_can_hold_are_cut(
    engine: WhisperEngine, minute: Samples
) -> None:
    hints = replace(FAST, initial_prompt="one two three " * 200, hotwords="four five six " * 200)
    for options in (hints, replace(hints, vad_filter=True), replace(hints, max_new_tokens=100)):
        engine.transcribe(minute, options)


def test_a_chunk_length_does_not_outlive_its_request(
    engine: WhisperEngine, minute: Samples
) -> None:
    before = engine.transcribe(minute, FAST)
    engine.transcribe(minute[: 12 * SAMPLE_RATE], replace(FAST, chunk_length=3))
    assert engine.transcribe(minute, FAST) == before


def test_requests_at_the_same_time_do_not_disturb_each_other(
    engine: WhisperEngine, minute: Samples
) -> None:
    part = minute[: 20 * SAMPLE_RATE]
    asked = [FAST, replace(FAST, chunk_length=5), BATCHED, replace(FAST, language="en")]
    alone = [engine.transcribe(part, options) for options in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        assert list(threads.map(lambda o: engine.transcribe(part, o), asked)) == alone


@pytest.mark.parametrize("options", [FAST, BATCHED], ids=["sequential", "batched"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_the_task_is_in_the_prompt_of_the_model(
    engine: WhisperEngine,
    spoken: list[Clip],
    options: TranscribeOptions,
    task: Literal["transcribe", "translate"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts: list[tuple[Any, list[int]]] = []
    get_prompt = WhisperModel.get_prompt

    def record(self: Any, tokenizer: Any, *rest: Any, **hints: Any) -> Any:
        prompt = get_prompt(self, tokenizer, *rest, **hints)
        prompts.append((tokenizer, prompt))
        return prompt

    monkeypatch.setattr(WhisperModel, "get_prompt", record)
    engine.transcribe(spoken[0].samples, replace(options, task=task))
    assert prompts
    for tokenizer, prompt in prompts:
        tasks = {tokenizer.transcribe: "transcribe", tokenizer.translate: "translate"}
        assert [tasks[token] for token in prompt if token in tasks] == [task]


@pytest.mark.parametrize("options", [FAST, replace(BATCHED, chunk_length=3, batch_size=2)])
@pytest.mark.parametrize("polls", [0, 1, 2])
def test_cancelled_work_stops(
    engine: WhisperEngine, minute: Samples, options: TranscribeOptions, polls: int
) -> None:
    with pytest.raises(Cancelled):
        engine.transcribe(minute, options, after(polls))


def after(polls: int) -> Callable[[], bool]:
    """True from the poll after so many."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= polls


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"language": "xx"}, "language 'xx'"),
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 10_000}, "beam_size"),
        ({"best_of": 0}, "best_of"),
        ({"batch_size": 0}, "batch_size"),
        ({"patience": 0.0}, "patience"),
        ({"patience": 0.1, "beam_size": 1}, "patience"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"temperature": ()}, "temperature"),
        ({"temperature": (-0.1,)}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 448}, "max_new_tokens must be at most 443"),
        ({"max_initial_timestamp": -1.0}, "max_initial_timestamp"),
        ({"chunk_length": 31}, "chunk_length"),
        ({"hallucination_silence_threshold": -1.0}, "hallucination_silence_threshold"),
        ({"language_detection_segments": 0}, "language_detection_segments"),
        ({"suppress_tokens": (10**7,)}, "suppress_tokens"),
        ({"clip_timestamps": "zero"}, "clip_timestamps"),
        ({"clip_timestamps": "0,,3"}, "clip_timestamps"),
        ({"clip_timestamps": (5.0, 3.0)}, "clip_timestamps"),
        ({"clip_timestamps": (0.0, 3.0, 2.0)}, "clip_timestamps"),
        ({"clip_timestamps": (-1.0, 3.0)}, "clip_timestamps"),
        ({"clip_timestamps": (0.0, float("nan"))}, "clip_timestamps"),
        ({"vad_parameters": {"treshold": 0.5}}, "does not know treshold"),
        ({"vad_parameters": {"threshold": 2.0}}, "vad_parameters.threshold"),
        ({"vad_parameters": {"min_speech_duration_ms": "1"}}, "min_speech_duration_ms"),
        ({"vad_filter": True, "vad_parameters": {"speech_pad_ms": 20_000}}, "speech_pad_ms"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_options_that_make_no_sense_are_refused_by_name(
    engine: WhisperEngine, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.transcribe(np.zeros(100, np.float32), TranscribeOptions(**wrong))


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        ({"vad_parameters": {"threshold": 0.4}}, "vad_parameters has no effect"),
        ({"prefix": "one", "hotwords": "two"}, "hotwords has no effect on the first window"),
        ({"prefix": "one", "clip_timestamps": "1,2"}, "prefix has no effect"),
    ],
)
def test_an_option_that_another_makes_idle_is_named_in_a_warning(
    engine: WhisperEngine, idle: dict[str, Any], message: str
) -> None:
    silence = np.zeros(100, np.float32)
    assert engine.transcribe(silence, TranscribeOptions()).warnings == ()
    (warning,) = engine.transcribe(silence, TranscribeOptions(**idle)).warnings
    assert message in warning


def test_options_that_only_the_sequential_way_honours_lead_there() -> None:
    base = TranscribeOptions(vad_filter=True)
    assert runs_batched(base)
    assert runs_batched(replace(base, temperature=(0.0,), condition_on_previous_text=False))
    assert runs_batched(replace(base, language="en", beam_size=1, hotwords="Anna"))
    for sequential in (
        {"vad_filter": False},
        {"batch_size": 1},
        {"temperature": (0.0, 0.5)},
        {"best_of": 3},
        {"compression_ratio_threshold": None},
        {"log_prob_threshold": -2.0},
        {"prompt_reset_on_temperature": 0.1},
        {"prefix": "one"},
        {"max_initial_timestamp": 0.5},
        {"hallucination_silence_threshold": 2.0},
        {"clip_timestamps": "0,5"},
    ):
        assert not runs_batched(replace(base, **sequential)), sequential


UNUSUAL = TranscribeOptions(
    language="en",
    task="translate",
    word_timestamps=False,
    vad_filter=True,
    vad_parameters={"threshold": 0.4, "min_silence_duration_ms": 300},
    beam_size=2,
    best_of=3,
    patience=1.5,
    length_penalty=0.9,
    repetition_penalty=1.1,
    no_repeat_ngram_size=4,
    temperature=(0.0, 0.3),
    compression_ratio_threshold=2.0,
    log_prob_threshold=-0.8,
    no_speech_threshold=0.5,
    condition_on_previous_text=False,
    prompt_reset_on_temperature=0.4,
    initial_prompt="one",
    prefix="two",
    suppress_blank=False,
    suppress_tokens=(5, 6),
    without_timestamps=True,
    max_initial_timestamp=0.5,
    prepend_punctuations="(",
    append_punctuations=")",
    multilingual=True,
    max_new_tokens=50,
    chunk_length=8,
    clip_timestamps="0",
    hallucination_silence_threshold=2.0,
    hotwords="three",
    language_detection_threshold=0.4,
    language_detection_segments=2,
    log_progress=True,
)


def test_every_option_reaches_the_library(
    engine: WhisperEngine, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: dict[str, Any] = {}

    def record(_: object, __: Samples, **options: Any) -> None:
        received.update(options)
        raise RuntimeError("recorded")

    monkeypatch.setattr(WhisperModel, "transcribe", record)
    default = TranscribeOptions()
    away = {f.name for f in fields(UNUSUAL)} - {"model", "batch_size", "clip_timestamps"}
    assert all(getattr(UNUSUAL, name) != getattr(default, name) for name in away)
    with pytest.raises(EngineFailed, match="recorded"):
        engine.transcribe(spoken[0].samples, UNUSUAL)
    expected = {name: getattr(UNUSUAL, name) for name in away - {"vad_parameters"}}
    expected["word_timestamps"] = True  # the words by which hallucinations are found
    assert received["vad_parameters"] == VadOptions(threshold=0.4, min_silence_duration_ms=300)
    assert {**expected, "suppress_tokens": [5, 6]}.items() <= received.items()


def library_segment(text: str, no_speech: float, logprob: float, *times: float) -> Any:
    """A segment as the library gives it, with a word for each pair of times."""
    pairs = zip(times[::2], times[1::2], strict=True)
    words = [LibraryWord(start, end, f" {text}", 0.9) for start, end in pairs]
    return LibrarySegment(
        id=1,
        seek=0,
        start=times[0],
        end=times[-1],
        text=f" {text}" * len(words),
        tokens=[1],
        avg_logprob=logprob,
        compression_ratio=1.0,
        no_speech_prob=no_speech,
        words=words,
        temperature=0.0,
    )


def test_times_and_silence_of_the_batched_mode_are_corrected(
    engine: WhisperEngine, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        library_segment("sure", 0.1, -0.2, -0.1, 0.5, 0.4, 0.8),
        library_segment("doubtful", 0.9, -1.5, 0.8, 1.0),
        library_segment("confident", 0.9, -0.2, 0.7, 1.0, 1.0, 999.0),
    ]
    info = BatchedInfo("en", 0.9)
    monkeypatch.setattr(BatchedTranscription, "transcribe", lambda *_: (iter(given), info))
    samples = spoken[0].samples
    recognition = engine.transcribe(samples, BATCHED)
    edges = [t for s in recognition.segments for w in s.words for t in (w.start, w.end)]
    assert edges == sorted(edges)
    assert edges[0] == 0.0
    assert text(recognition) == " sure sure confident confident"
    assert recognition.segments[-1].end == len(samples) / SAMPLE_RATE
    kept = engine.transcribe(samples, replace(BATCHED, no_speech_threshold=None))
    assert "doubtful" in text(kept)


def test_features_in_blocks_are_those_of_the_library() -> None:
    noise = np.random.default_rng(3).standard_normal(130 * SAMPLE_RATE + 77).astype(np.float32)
    for samples in (noise, noise[:1600]):
        expected = FeatureExtractor(feature_size=80)(samples)
        np.testing.assert_array_equal(BlockwiseFeatures(feature_size=80)(samples), expected)


def test_the_error_of_a_directory_without_a_model_names_the_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalled, match=r"no model\.bin and no tokenizer\.json"):
        WhisperEngine(tmp_path, device="cpu", compute_type="auto", threads=1)


def test_a_damaged_model_is_unavailable(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged, copy_function=shutil.copyfile)
    (damaged / "model.bin").write_bytes(b"no weights")
    with pytest.raises(ModelUnavailable, match="does not load"):
        WhisperEngine(damaged, device="cpu", compute_type="auto", threads=1)


def test_an_unknown_compute_type_is_unavailable(model: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not load"):
        WhisperEngine(model, device="cpu", compute_type="int3", threads=1)
