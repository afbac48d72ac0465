"""Vectors of voices on sherpa-onnx."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from engines.diarization.speaker_embedding import SpeakerEngine
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import EngineFailed, ModelNotInstalled, ModelUnavailable
from tests.unit.heldout import load


@pytest.fixture(scope="module")
def model(repository: Path) -> Path:
    return repository / "models" / "demo" / "demo-diarization-light"


@pytest.fixture(scope="module")
def engine(model: Path) -> SpeakerEngine:
    return SpeakerEngine(model, device="cpu")


@pytest.fixture(scope="module")
def turns(demo_audio: Path) -> list[tuple[str, Samples]]:
    """Speaker and samples of the turns of a dialogue."""
    samples = load(demo_audio / "dialogue-en.flac")
    lines = (demo_audio / "dialogue-en.rttm").read_text(encoding="utf-8").splitlines()
    fields = [line.split() for line in lines]
    spans = [(f[7], float(f[3]), float(f[4])) for f in fields]
    return [
        (who, samples[round(start * SAMPLE_RATE) : round((start + length) * SAMPLE_RATE)])
        for who, start, length in spans
        if length > 1.5
    ]


async def test_turns_of_one_speaker_are_nearer_than_turns_of_two(
    engine: SpeakerEngine, turns: list[tuple[str, Samples]]
) -> None:
    vectors = await asyncio.gather(*(engine.embed(samples) for _, samples in turns))
    near: dict[bool, list[float]] = {True: [], False: []}
    for (one, a), (other, b) in itertools.combinations(
        zip([who for who, _ in turns], vectors, strict=True), 2
    ):
        near[one == other].append(float(a @ b))
    assert np.median(near[True]) > np.median(near[False]) + 0.2


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.3, 5.0, 30.0, 31.0])
async def test_an_utterance_of_any_length_gives_a_vector_of_length_one(
    engine: SpeakerEngine, turns: list[tuple[str, Samples]], seconds: float
) -> None:
    vector = await engine.embed(np.resize(turns[0][1], round(seconds * SAMPLE_RATE)))
    assert vector.dtype == np.float32
    assert vector.ndim == 1
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


async def test_the_middle_of_a_long_utterance_is_embedded(
    engine: SpeakerEngine, turns: list[tuple[str, Samples]]
) -> None:
    middle = np.resize(turns[0][1], 10 * SAMPLE_RATE)
    around = np.resize(turns[1][1], 11 * SAMPLE_RATE)
    long = np.concatenate((around, middle, around))
    np.testing.assert_array_equal(await engine.embed(long), await engine.embed(middle))


async def test_audio_that_is_no_audio_fails_alone(
    engine: SpeakerEngine, turns: list[tuple[str, Samples]]
) -> None:
    expected = await engine.embed(turns[0][1])
    outcome, found = await asyncio.gather(
        engine.embed(np.full(SAMPLE_RATE, np.nan, np.float32)),
        engine.embed(turns[0][1]),
        return_exceptions=True,
    )
    assert isinstance(outcome, EngineFailed)
    np.testing.assert_array_equal(found, expected)


def test_a_model_without_its_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ModelNotInstalled, match=r"embedding\.onnx"):
        SpeakerEngine(tmp_path, device="cpu")


def test_a_damaged_model_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "embedding.onnx").write_bytes(b"no network")
    with pytest.raises(ModelUnavailable, match="does not load"):
        SpeakerEngine(tmp_path, device="cpu")
