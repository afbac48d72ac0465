import importlib.util
import multiprocessing
import sys
import wave
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from configs.catalogue import REPOSITORY_ROOT, Catalogue
from engines.diarization.backends import DiarizationEngine, load_engine
from engines.diarization.channel_diarization import BLEED_DB, diarize_channels
from engines.diarization.pyannote_diarization import PyannoteEngine
from engines.diarization.sherpa_diarization import SherpaDiarizationEngine
from engines.out_of_memory import is_out_of_memory
from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    ModelNotInstalled,
    ModelUnavailable,
)
from speech.ports import DiarizeOptions
from speech.transcript import Diarization, Turn

DEMO = REPOSITORY_ROOT / "models/demo"
PYANNOTE = DEMO / "demo-pyannote"
Regions = list[tuple[float, float]]


def read_only(samples: Samples) -> Samples:
    samples.flags.writeable = False
    return samples


def silence(seconds: float) -> Samples:
    return read_only(np.zeros(round(seconds * SAMPLE_RATE), np.float32))


def assert_sane(diarization: Diarization, duration: float) -> None:
    for turns in (diarization.turns, diarization.exclusive):
        assert list(turns) == sorted(turns, key=lambda t: t.start)
        assert all(0 <= t.start < t.end <= duration for t in turns)
        assert all(round(t.start, 3) == t.start and round(t.end, 3) == t.end for t in turns)
    for earlier, later in zip(diarization.exclusive, diarization.exclusive[1:], strict=False):
        assert later.start >= earlier.end
    appeared = list(dict.fromkeys(t.speaker for t in diarization.turns))
    assert appeared == [f"SPEAKER_{n:02d}" for n in range(len(appeared))]


class TestByChannel:
    """Stereo mode: one speaker per channel, found by voice activity alone."""

    RATE = SAMPLE_RATE

    def stereo(self, left: Samples, right: Samples) -> Audio:
        channels = read_only(np.stack([left, right]))
        return Audio(read_only(channels.mean(axis=0)), channels)

    def tone(self, seconds: float, *parts: tuple[float, float, float]) -> Samples:
        """Noise of the given level (dB) from start to end of each part, silence elsewhere."""
        samples = np.zeros(round(seconds * self.RATE), np.float32)
        noise = np.random.default_rng(1).uniform(-1, 1, len(samples)).astype(np.float32)
        for start, end, level_db in parts:
            part = slice(round(start * self.RATE), round(end * self.RATE))
            samples[part] = noise[part] * 10 ** (level_db / 20)
        return samples

    def loud(self, samples: Samples) -> Regions:
        """A stand-in for voice activity detection: runs of samples that are not zero."""
        edges = np.flatnonzero(np.diff(np.concatenate([[0], (samples != 0).astype(int), [0]])))
        return [(a / self.RATE, b / self.RATE) for a, b in edges.reshape(-1, 2) if b - a > 10]

    def test_each_channel_is_a_speaker(self) -> None:
        audio = self.stereo(
            self.tone(6, (0.5, 2.0, -20)), self.tone(6, (1.5, 3.0, -20), (4.0, 5.0, -20))
        )
        assert diarize_channels(audio, self.loud).turns == (
            Turn(0.5, 2.0, "L0", 0),
            Turn(1.5, 3.0, "R0", 1),
            Turn(4.0, 5.0, "R0", 1),
        )

    def test_where_both_talk_the_exclusive_turns_leave_the_floor_to_who_began(self) -> None:
        audio = self.stereo(
            self.tone(6, (0.5, 2.0, -20)), self.tone(6, (1.5, 3.0, -20), (4.0, 5.0, -20))
        )
        assert diarize_channels(audio, self.loud).exclusive == (
            Turn(0.5, 2.0, "L0", 0),
            Turn(2.0, 3.0, "R0", 1),
            Turn(4.0, 5.0, "R0", 1),
        )

    def test_an_interjection_during_a_longer_turn_is_no_exclusive_turn(self) -> None:
        audio = self.stereo(self.tone(6, (0.5, 4.0, -20)), self.tone(6, (1.0, 1.5, -20)))
        diarization = diarize_channels(audio, self.loud)
        assert len(diarization.turns) == 2
        assert diarization.exclusive == (Turn(0.5, 4.0, "L0", 0),)

    def test_speech_that_leaks_from_the_other_channel_is_no_turn(self) -> None:
        leak = -20 - BLEED_DB - 1
        audio = self.stereo(self.tone(4, (0.5, 3.0, -20)), self.tone(4, (0.4, 3.1, leak)))
        assert diarize_channels(audio, self.loud).turns == (Turn(0.5, 3.0, "L0", 0),)

    def test_a_softer_voice_at_the_same_time_is_a_turn(self) -> None:
        soft = -20 - BLEED_DB + 1
        audio = self.stereo(self.tone(4, (0.5, 3.0, -20)), self.tone(4, (0.5, 3.0, soft)))
        assert [t.speaker for t in diarize_channels(audio, self.loud).turns] == ["L0", "R0"]

    def test_only_the_leaked_part_of_a_turn_goes(self) -> None:
        leak = -20 - BLEED_DB - 5
        audio = self.stereo(
            self.tone(8, (2.0, 4.0, -20)),
            self.tone(8, (0.5, 2.0, -20), (2.0, 4.0, leak), (4.0, 6.0, -20)),
        )
        assert diarize_channels(audio, self.loud).turns == (
            Turn(0.5, 2.0, "R0", 1),
            Turn(2.0, 4.0, "L0", 0),
            Turn(4.0, 6.0, "R0", 1),
        )

    def test_a_quiet_voice_alone_is_a_turn(self) -> None:
        audio = self.stereo(self.tone(4, (0.5, 1.0, -10)), self.tone(4, (2.0, 3.0, -60)))
        assert [t.speaker for t in diarize_channels(audio, self.loud).turns] == ["L0", "R0"]

    def test_silence_has_no_turns(self) -> None:
        audio = self.stereo(silence(2), silence(2))
        assert diarize_channels(audio, self.loud) == Diarization((), ())

    @pytest.mark.parametrize("channels", [None, 1, 3])
    def test_anything_but_two_channels_is_refused(self, channels: int | None) -> None:
        kept = None if channels is None else np.zeros((channels, 10), np.float32)
        with pytest.raises(InvalidRequest, match="two channels"):
            diarize_channels(Audio(silence(1), kept), self.loud)

    def test_real_speech_is_found_on_its_own_channel(self, assets: Path) -> None:
        from engines.vad.silero_vad import SileroVad

        audio = self.stereo(*wav(assets / "en-faster-whisper-tests/stereo_diarization.wav"))
        turns = diarize_channels(audio, SileroVad().speech).turns
        assert {t.speaker: t.channel for t in turns} == {"L0": 0, "R0": 1}
        assert all(0 <= t.start < t.end <= audio.duration for t in turns)


def wav(path: Path) -> Samples:
    """Channels of a 16 kHz WAV, float32 [channels, samples]."""
    with wave.open(str(path)) as file:
        assert file.getframerate() == SAMPLE_RATE
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        channels = pcm.reshape(-1, file.getnchannels()).T.astype(np.float32) / 32768
    return read_only(np.ascontiguousarray(channels))


def save_embedding(file: Path) -> None:
    """A speaker embedding in sherpa-onnx's format: a projection of the mean log spectrum."""
    weights = np.random.default_rng(0).normal(0, 1, (80, 32)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["feats"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["embs"]),
        ],
        "embedding",
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["batch", "frames", 80])],
        [helper.make_tensor_value_info("embs", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        model,
        {
            "framework": "wespeaker",
            "language": "en",
            "url": "",
            "comment": "",
            "sample_rate": "16000",
            "output_dim": "32",
            "normalize_samples": "1",
        },
    )
    onnx.save(model, file)


@pytest.fixture(scope="module")
def conversation(assets: Path) -> Samples:
    """Sixteen seconds of people talking, with short pauses."""
    recording = wav(assets / "diarization-ami/sample.wav")[0]
    return read_only(recording[6 * SAMPLE_RATE : 22 * SAMPLE_RATE])


@pytest.fixture(scope="module")
def light(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> DiarizationEngine:
    """The light backend with a real segmentation and a crude embedding."""
    pytest.importorskip("sherpa_onnx")
    folder = tmp_path_factory.mktemp("light")
    segmentation = assets / "pyannote-segmentation-3.0-int8/model.int8.onnx"
    (folder / "segmentation.onnx").symlink_to(segmentation)
    save_embedding(folder / "embedding.onnx")
    return SherpaDiarizationEngine(folder, device="cpu", threads=1)


class TestLightBackend:
    def test_turns_of_a_conversation(self, light: DiarizationEngine, conversation: Samples) -> None:
        diarization = light.diarize(conversation, DiarizeOptions())
        assert_sane(diarization, 16)
        talked = sum(t.end - t.start for t in diarization.exclusive)
        assert 10 < talked < 16

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_the_number_of_speakers_is_kept_to(
        self, light: DiarizationEngine, conversation: Samples, number: int
    ) -> None:
        for options in (
            DiarizeOptions(num_speakers=number),
            DiarizeOptions(min_speakers=number, max_speakers=number),
        ):
            diarization = light.diarize(conversation, options)
            assert_sane(diarization, 16)
            assert len({t.speaker for t in diarization.turns}) == number

    def test_a_request_leaves_no_trace_on_the_next(
        self, light: DiarizationEngine, conversation: Samples
    ) -> None:
        before = light.diarize(conversation, DiarizeOptions())
        light.diarize(conversation, DiarizeOptions(num_speakers=3))
        assert light.diarize(conversation, DiarizeOptions()) == before

    @pytest.mark.parametrize("samples", [0, 1, 10, 399, 1600, 16_000, 170_000])
    def test_audio_of_any_length_gives_valid_turns(
        self, light: DiarizationEngine, conversation: Samples, samples: int
    ) -> None:
        clip = conversation[2 * SAMPLE_RATE :][:samples]
        assert_sane(light.diarize(clip, DiarizeOptions()), samples / SAMPLE_RATE)

    def test_silence_has_no_turns(self, light: DiarizationEngine) -> None:
        assert light.diarize(silence(12), DiarizeOptions()) == Diarization((), ())

    def test_cancelling_stops_the_work(
        self, light: DiarizationEngine, conversation: Samples
    ) -> None:
        with pytest.raises(Cancelled):
            light.diarize(conversation, DiarizeOptions(), lambda: True)
        assert light.diarize(conversation, DiarizeOptions()).turns

    def test_other_threads_go_on_while_it_works(
        self, light: DiarizationEngine, conversation: Samples
    ) -> None:
        polls = count()
        light.diarize(conversation, DiarizeOptions(), lambda: next(polls) < 0)
        assert next(polls) > 0

    def test_a_worker_that_dies_fails_one_request_and_not_the_next(
        self, light: DiarizationEngine, conversation: Samples
    ) -> None:
        def kill() -> bool:
            for child in multiprocessing.active_children():
                child.kill()
            return False

        with pytest.raises(EngineFailed, match="died"):
            light.diarize(conversation, DiarizeOptions(), kill)
        assert light.diarize(conversation, DiarizeOptions()).turns

    def test_models_that_cannot_be_read_are_unavailable(self, tmp_path: Path) -> None:
        pytest.importorskip("sherpa_onnx")
        for name in ("segmentation.onnx", "embedding.onnx"):
            (tmp_path / name).write_bytes(b"no model")
        with pytest.raises(ModelUnavailable, match="does not load"):
            SherpaDiarizationEngine(tmp_path, device="cpu", threads=1)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        pytest.importorskip("sherpa_onnx")
        with pytest.raises(ModelNotInstalled, match=r"segmentation\.onnx and no embedding\.onnx"):
            SherpaDiarizationEngine(tmp_path, device="cpu", threads=1)


def test_the_error_without_pyannote_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyannote.audio", None)
    with pytest.raises(ModelNotInstalled, match=r"speechgraph\[diarization\]"):
        PyannoteEngine(tmp_path, device="cpu", threads=1)


def test_the_error_without_sherpa_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotInstalled, match=r"speechgraph\[diarization-light\]"):
        SherpaDiarizationEngine(tmp_path, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (DiarizeOptions(num_speakers=0), "num_speakers must be at least 1"),
        (DiarizeOptions(min_speakers=-1), "min_speakers must be at least 1"),
        (DiarizeOptions(max_speakers=0), "max_speakers must be at least 1"),
        (DiarizeOptions(min_speakers=3, max_speakers=2), "above max_speakers"),
        (DiarizeOptions(num_speakers=5, max_speakers=2), "outside"),
        (DiarizeOptions(num_speakers=1, min_speakers=2), "outside"),
    ],
)
def test_numbers_of_speakers_that_cannot_be_are_refused(
    light: DiarizationEngine, options: DiarizeOptions, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        light.diarize(silence(1), options)


@pytest.mark.skipif(
    not (DEMO / "demo-diarization-light/embedding.onnx").exists(),
    reason="the demo model is not here",
)
def test_the_light_demo_model_is_loaded_from_its_catalogue_entry() -> None:
    entry = Catalogue.load().find("demo-diarization-light")
    assert entry is not None
    engine = load_engine(entry, DEMO / entry.id, device="cpu", threads=1)
    assert isinstance(engine, SherpaDiarizationEngine)


@pytest.fixture(scope="module")
def pyannote() -> DiarizationEngine:
    pytest.importorskip("pyannote.audio")
    entry = Catalogue.load().find("demo-pyannote")
    assert entry is not None
    return load_engine(entry, PYANNOTE, device="cpu", threads=1)


@pytest.mark.skipif(not PYANNOTE.is_dir(), reason="the demo model is not here")
class TestPyannote:
    """With the demo pipeline; what it gets right is measured elsewhere."""

    def test_turns_of_a_conversation(
        self, pyannote: DiarizationEngine, conversation: Samples
    ) -> None:
        diarization = pyannote.diarize(conversation, DiarizeOptions())
        assert_sane(diarization, 16)
        assert diarization.turns

    def test_at_most_one_speaker_when_asked_for(
        self, pyannote: DiarizationEngine, conversation: Samples
    ) -> None:
        diarization = pyannote.diarize(conversation, DiarizeOptions(max_speakers=1))
        assert {t.speaker for t in diarization.turns} == {"SPEAKER_00"}

    @pytest.mark.parametrize("samples", [0, 1, 399, 1600, 8000])
    def test_audio_shorter_than_a_window_gives_valid_turns(
        self, pyannote: DiarizationEngine, samples: int
    ) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
        diarization = pyannote.diarize(read_only(noise), DiarizeOptions())
        assert_sane(diarization, samples / SAMPLE_RATE)

    def test_silence_has_no_turns(self, pyannote: DiarizationEngine) -> None:
        assert pyannote.diarize(silence(12), DiarizeOptions()) == Diarization((), ())

    def test_cancelling_stops_the_work(self, pyannote: DiarizationEngine) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE).astype(np.float32)
        with pytest.raises(Cancelled):
            pyannote.diarize(noise, DiarizeOptions(), lambda: True)

    def test_an_out_of_memory_halves_the_batches_of_one_call(
        self,
        pyannote: DiarizationEngine,
        conversation: Samples,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import torch
        from pyannote.audio import Inference

        short = conversation[: 13 * SAMPLE_RATE]
        sizes: list[int] = []
        most, infer = 2, Inference.infer

        def infer_in_memory(self: Inference, chunks: Any, *rest: Any) -> Any:
            sizes.append(len(chunks))
            if len(chunks) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return infer(self, chunks, *rest)

        expected = pyannote.diarize(short, DiarizeOptions())
        monkeypatch.setattr(Inference, "infer", infer_in_memory)
        assert pyannote.diarize(short, DiarizeOptions()) == expected
        assert sizes[-1] <= most < sizes[0], sizes
        most = 0
        with pytest.raises(EngineFailed) as error:
            pyannote.diarize(short, DiarizeOptions())
        assert is_out_of_memory(error.value)
        first, most = len(sizes), 99
        assert pyannote.diarize(short, DiarizeOptions()) == expected
        assert sizes[first] == sizes[0], "the next call has whole batches"

    def test_telemetry_is_off(self, pyannote: DiarizationEngine) -> None:
        from pyannote.audio.telemetry.metrics import is_metrics_enabled

        assert not is_metrics_enabled()

    def test_a_folder_without_a_pipeline_is_unavailable(
        self, pyannote: DiarizationEngine, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelUnavailable, match="does not load"):
            PyannoteEngine(tmp_path, device="cpu", threads=1)
