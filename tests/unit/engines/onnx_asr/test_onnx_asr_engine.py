"""Recognisers in ONNX: files, words, options, long audio; toy models are on sherpa-onnx."""

import io
import itertools
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import sentencepiece

from configs.catalogue import Catalogue, ModelEntry
from engines.onnx_asr.hypothesis import Hypothesis, words_of
from engines.onnx_asr.offline import OnnxAsrEngine, ignored_options
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
)
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Word
from tests.unit.engines.onnx_asr import toy_transducer
from tests.unit.heldout import Clip, clips, conversation, plain

PLAIN = TranscribeOptions()
DEMO_MODELS = ("demo-vosk", "demo-gigaam", "demo-vosk-streaming", "demo-nemo")


@pytest.fixture(scope="module", params=DEMO_MODELS)
def engine(request: pytest.FixtureRequest, repository: Path) -> OnnxAsrEngine:
    """Each model of this family in the demo pack: offline, GigaAM, frame-synchronous, onnx-asr."""
    entry = Catalogue.load().find(request.param)
    assert entry is not None
    return OnnxAsrEngine(entry, repository / "models" / "demo" / request.param, device="cpu")


@pytest.fixture(scope="module")
def spoken(demo_audio: Path) -> list[Clip]:
    return clips(demo_audio)


@pytest.fixture(scope="module")
def minute(spoken: list[Clip]) -> Samples:
    return conversation(spoken, seconds=62)


def toy_entry(format_: str, languages: tuple[str, ...] = ("ru",), **options: Any) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "id": "toy",
            "family": "onnx_asr",
            "format": format_,
            "source": {"path": "toy"},
            "languages": languages,
            "licence": "Apache-2.0",
            "memory_mb": 1,
            "options": options,
        }
    )


def toy_engine(folder: Path, *, streaming: bool = False, **options: Any) -> OnnxAsrEngine:
    toy_transducer.write(folder, streaming=streaming)
    format_ = "streaming_transducer" if streaming else "transducer"
    return OnnxAsrEngine(toy_entry(format_, **options), folder, device="cpu")


def text_of(recognition: Recognition) -> str:
    return plain("".join(s.text for s in recognition.segments))


def edges_of(words: Sequence[Word]) -> list[float]:
    return [edge for word in words for edge in (word.start, word.end)]


def assert_sound(recognition: Recognition, samples: Samples) -> None:
    """What holds for every recognition with words, whatever its words."""
    assert recognition.segments
    edges = edges_of([word for segment in recognition.segments for word in segment.words])
    assert edges == sorted(edges)
    assert 0 <= edges[0] <= edges[-1] <= len(samples) / SAMPLE_RATE
    for segment in recognition.segments:
        assert segment.text == "".join(word.text for word in segment.words)
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert all(re.fullmatch(r" \S+", word.text) for word in segment.words)


def test_most_words_of_unseen_sentences_are_recognised(
    engine: OnnxAsrEngine, spoken: list[Clip]
) -> None:
    found = [text_of(engine.transcribe(clip.samples, PLAIN)) for clip in spoken]
    assert jiwer.wer([plain(clip.text) for clip in spoken], found) < 0.5


def test_words_have_the_times_at_which_they_were_spoken(
    engine: OnnxAsrEngine, spoken: list[Clip]
) -> None:
    late_s = []
    for clip in spoken:
        truth = {plain(word): start for word, start, _ in clip.words}
        for segment in engine.transcribe(clip.samples, PLAIN).segments:
            late_s += [w.start - truth[k] for w in segment.words if (k := w.text.strip()) in truth]
    assert len(late_s) > 10
    assert abs(float(np.median(late_s))) < 0.4


def test_audio_of_any_length_is_recognised_utterance_by_utterance(
    engine: OnnxAsrEngine, spoken: list[Clip], minute: Samples
) -> None:
    recognition = engine.transcribe(minute, PLAIN)
    assert_sound(recognition, minute)
    assert len(recognition.segments) >= 4
    assert all(s.end - s.start <= 15 for s in recognition.segments)
    assert recognition.segments[-1].end > len(minute) / SAMPLE_RATE - 5
    once = " ".join(plain(clip.text) for clip in spoken)
    times = round(len(minute) / len(conversation(spoken, seconds=1)))
    assert jiwer.wer(" ".join([once] * times), text_of(recognition)) < 0.5


def test_words_of_ctc_models_have_a_probability_on_onnx_asr_alone(
    engine: OnnxAsrEngine, spoken: list[Clip], request: pytest.FixtureRequest
) -> None:
    words = engine.transcribe(spoken[0].samples, PLAIN).segments[0].words
    probabilities = [word.probability for word in words]
    if request.node.callspec.params["engine"] == "demo-nemo":
        assert all(p is not None and 0 < p <= 1 for p in probabilities)
        assert len(set(probabilities)) > 1
    else:
        assert set(probabilities) == {None}


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05, 20.0])
def test_silence_of_any_length_gives_no_segments(engine: OnnxAsrEngine, seconds: float) -> None:
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    assert engine.transcribe(silence, PLAIN).segments == ()


def test_without_word_timestamps_segments_have_text_and_times_but_no_words(
    engine: OnnxAsrEngine, spoken: list[Clip]
) -> None:
    whole = engine.transcribe(spoken[0].samples, PLAIN).segments
    bare = engine.transcribe(spoken[0].samples, replace(PLAIN, word_timestamps=False)).segments
    assert bare == tuple(replace(segment, words=()) for segment in whole)


def test_the_size_of_a_batch_does_not_change_the_words(
    engine: OnnxAsrEngine, minute: Samples
) -> None:
    alone = text_of(engine.transcribe(minute, replace(PLAIN, batch_size=1)))
    assert jiwer.wer(alone, text_of(engine.transcribe(minute, replace(PLAIN, batch_size=64)))) < 0.1


def test_requests_at_the_same_time_do_not_disturb_each_other(
    engine: OnnxAsrEngine, spoken: list[Clip]
) -> None:
    alone = [engine.transcribe(clip.samples, PLAIN) for clip in spoken]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda clip: engine.transcribe(clip.samples, PLAIN), spoken)
        assert list(found) == alone


@pytest.mark.parametrize("polls", [0, 1, 3])
def test_cancelled_work_stops(engine: OnnxAsrEngine, minute: Samples, polls: int) -> None:
    asked = itertools.count()
    with pytest.raises(Cancelled):
        engine.transcribe(minute, replace(PLAIN, batch_size=1), lambda: next(asked) >= polls)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "translate"}, "does not translate"),
        ({"language": "de"}, "language 'de' is not supported .* which supports ru, en"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 65}, "batch_size"),
        ({"hotwords": "a" * 5001}, "hotwords"),
    ],
)
def test_a_request_that_the_model_cannot_fulfil_is_refused(
    engine: OnnxAsrEngine, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.transcribe(np.zeros(100, np.float32), replace(PLAIN, **wrong))


def test_options_without_effect_are_named_in_one_warning(engine: OnnxAsrEngine) -> None:
    silence = np.zeros(100, np.float32)
    asked = replace(PLAIN, beam_size=2, hotwords="Anna", vad_filter=True, batch_size=4)
    (warning,) = engine.transcribe(silence, asked).warnings
    assert warning.endswith("does not honour beam_size, hotwords")
    assert engine.transcribe(silence, PLAIN).warnings == ()


def test_ignored_options_are_those_away_from_their_default() -> None:
    assert ignored_options(PLAIN) == ()
    assert ignored_options(replace(PLAIN, language="ru", word_timestamps=False)) == ()
    assert ignored_options(replace(PLAIN, temperature=(0.0,), prefix="a")) == (
        "temperature",
        "prefix",
    )
    assert ignored_options(replace(PLAIN, hotwords="a"), takes_hotwords=True) == ()


def test_the_language_is_set_only_for_a_model_with_one_language(
    tmp_path: Path, spoken: list[Clip]
) -> None:
    toy_transducer.write(tmp_path)
    for languages, expected in ((("ru",), "ru"), (("ru", "en"), None), ((), None)):
        engine = OnnxAsrEngine(toy_entry("transducer", languages), tmp_path, device="cpu")
        recognition = engine.transcribe(spoken[0].samples, replace(PLAIN, language="ru"))
        assert recognition.language == expected
        assert recognition.language_probability is None
        assert bool(recognition.warnings) == (expected is None)


@pytest.mark.parametrize("streaming", [False, True])
def test_words_of_a_transducer_have_the_probabilities_of_their_tokens(
    tmp_path: Path, spoken: list[Clip], streaming: bool
) -> None:
    recognition = toy_engine(tmp_path, streaming=streaming).transcribe(spoken[0].samples, PLAIN)
    assert_sound(recognition, spoken[0].samples)
    words = [word for segment in recognition.segments for word in segment.words]
    assert {word.text for word in words} == {" да", " нет"}
    probabilities = [word.probability for word in words]
    assert all(p is not None and 0 < p < 1 for p in probabilities)
    assert len(set(probabilities)) > 3


@pytest.mark.parametrize("streaming", [False, True])
def test_hotwords_steer_a_beam_search(tmp_path: Path, spoken: list[Clip], streaming: bool) -> None:
    (tmp_path / "bpe.vocab").write_text("<blk>\t0\n▁да\t-1\n▁нет\t-2\n", encoding="utf-8")
    engine = toy_engine(tmp_path, streaming=streaming, decoding_method="modified_beam_search")
    unsteered = engine.transcribe(spoken[0].samples, PLAIN)
    steered = engine.transcribe(spoken[0].samples, replace(PLAIN, hotwords="нет :x; #, no such"))
    assert steered.warnings == ()
    assert steered.segments != unsteered.segments


def test_hotwords_work_with_the_sentencepiece_model_that_vosk_ships(
    tmp_path: Path, spoken: list[Clip]
) -> None:
    toy_transducer.write(tmp_path / "am-onnx")
    (tmp_path / "lang").mkdir()
    (tmp_path / "am-onnx" / "tokens.txt").rename(tmp_path / "lang" / "tokens.txt")
    (tmp_path / "lang" / "bpe.model").write_bytes(sentencepiece_model(["да нет"] * 9, 16))
    entry = toy_entry("transducer", decoding_method="modified_beam_search")
    engine = OnnxAsrEngine(entry, tmp_path, device="cpu")
    unsteered = engine.transcribe(spoken[0].samples, PLAIN)
    steered = engine.transcribe(spoken[0].samples, replace(PLAIN, hotwords="нет"))
    assert steered.segments != unsteered.segments


def sentencepiece_model(sentences: list[str], size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        minloglevel=logging.FATAL,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("compute_type", "loaded"), [("auto", "full"), ("float32", "full"), ("int8", "quantised")]
)
def test_quantised_files_serve_when_int8_is_asked_for(
    tmp_path: Path, compute_type: str, loaded: str
) -> None:
    toy_transducer.write(tmp_path)
    toy_transducer.write(tmp_path, suffix=".int8")
    spoilt = ".int8" if loaded == "full" else ""
    (tmp_path / f"encoder{spoilt}.onnx").write_bytes(b"spoilt")
    OnnxAsrEngine(toy_entry("transducer"), tmp_path, device="cpu", compute_type=compute_type)


def test_the_variant_that_is_there_serves(tmp_path: Path) -> None:
    toy_transducer.write(tmp_path, suffix="-epoch-9.int8")
    OnnxAsrEngine(toy_entry("transducer"), tmp_path, device="cpu", compute_type="auto")


@pytest.mark.parametrize("missing", ["tokens.txt", "joiner.onnx", "encoder.onnx"])
def test_the_error_of_an_incomplete_model_names_the_missing_file(
    tmp_path: Path, missing: str
) -> None:
    toy_transducer.write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelNotInstalled, match=f"holds no {missing}"):
        OnnxAsrEngine(toy_entry("transducer"), tmp_path, device="cpu")


def test_a_damaged_model_is_unavailable(tmp_path: Path) -> None:
    toy_transducer.write(tmp_path)
    (tmp_path / "encoder.onnx").write_bytes(b"no network")
    with pytest.raises(ModelUnavailable, match="does not load"):
        OnnxAsrEngine(toy_entry("transducer"), tmp_path, device="cpu")


def test_an_option_that_the_catalogue_misspells_is_named(tmp_path: Path) -> None:
    toy_transducer.write(tmp_path)
    with pytest.raises(ModelUnavailable, match="max_utterance"):
        OnnxAsrEngine(toy_entry("transducer", max_utterance=9), tmp_path, device="cpu")


def test_the_longest_utterance_is_the_catalogues(tmp_path: Path, minute: Samples) -> None:
    segments = toy_engine(tmp_path, max_utterance_s=5).transcribe(minute, PLAIN).segments
    assert max(s.end - s.start for s in segments) <= 5


def test_a_failure_of_the_library_is_an_error_of_the_family(
    tmp_path: Path, spoken: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = toy_engine(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a broken graph")

    monkeypatch.setattr("sherpa_onnx.OfflineRecognizer.decode_streams", fail)
    with pytest.raises(EngineFailed, match="model 'toy' failed: a broken graph"):
        engine.transcribe(spoken[0].samples, PLAIN)


def test_tokens_become_words_with_the_times_of_the_tokens() -> None:
    hypothesis = Hypothesis(
        tokens=["▁при", "вет", " мир", "▁", "а", "х"],
        times=[0.0, 0.2, 1.0, 1.2, 1.4, 1.5],
        log_probabilities=[np.log(0.8), np.log(0.4), np.log(0.9), 0.0, np.log(0.5), np.log(0.5)],
    )
    words = words_of(hypothesis, (10.0, 11.6))
    assert [w.text for w in words] == [" привет", " мир", " ах"]
    assert edges_of(words) == pytest.approx([10.0, 10.5, 11.0, 11.2, 11.4, 11.6])
    assert [w.probability for w in words] == pytest.approx([0.6, 0.9, 0.5])


def test_a_first_token_without_a_space_begins_a_word() -> None:
    (word,) = words_of(Hypothesis(["а", "га"], [0.1, 0.2], []), (0.0, 1.0))
    assert word.text == " ага"
    assert word.probability is None


def test_tokens_after_the_end_of_the_utterance_end_with_it() -> None:
    words = words_of(Hypothesis(["▁да", "▁нет"], [0.9, 1.3], []), (5.0, 6.0))
    assert edges_of(words) == pytest.approx([5.9, 6.0, 6.0, 6.0])


def test_an_utterance_without_tokens_has_no_words() -> None:
    assert words_of(Hypothesis(["▁", " "], [0.1, 0.2], []), (0.0, 1.0)) == ()
