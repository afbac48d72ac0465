"""The typed arguments of the graph."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from configs import deployment_settings, engine_settings, settings
from configs.engine_settings import WhisperSettings
from configs.reasons import reasons
from configs.settings import SpeechArgs


def fields() -> Iterator[tuple[str, str | None]]:
    """Name and description of every field of every settings class."""
    files = (deployment_settings, engine_settings, settings)
    for kind in (kind for file in files for kind in vars(file).values()):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                yield f"{kind.__name__}.{name}", field.description


def test_every_setting_is_described_in_a_sentence() -> None:
    described = dict(fields())
    assert len(described) > 50
    assert [name for name, text in described.items() if not (text and text.endswith("."))] == []


def test_a_setting_in_seconds_or_bytes_names_its_unit() -> None:
    units = {"_s": "seconds", "_mb": "MiB", "_bytes": "bytes", "max_seconds": "seconds"}
    missing = [
        name
        for name, text in fields()
        for ending, unit in units.items()
        if name.endswith(ending) and unit not in (text or "")
    ]
    assert missing == ["ReloadableSettings.idle_ttl_s"], "which refers to another setting"


def test_a_section_may_have_its_former_name_and_variables_of_both_names_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPEECHGRAPH__VOSK__MAX_MODELS", "7")
    monkeypatch.setenv("SPEECHGRAPH__VOSK__CONCURRENCY", "2")
    monkeypatch.setenv("SPEECHGRAPH__ONNX_ASR__CONCURRENCY", "3")
    ingress = {"default_transcriber": "demo-vosk"}
    for name in ("vosk", "onnx_asr"):
        args = SpeechArgs(**{"ingress": ingress, name: {"default_model": "demo-vosk"}})
        section = args.onnx_asr
        assert section is not None
        assert (section.default_model, section.max_models) == ("demo-vosk", 7), name
        assert section.concurrency == 3, "the present name precedes"


def test_a_whisper_replica_has_more_requests_in_progress_with_a_gpu_unless_it_is_set() -> None:
    gpu = {"num_gpus": 0.5}
    assert WhisperSettings(default_model="a").concurrency == 8
    assert WhisperSettings(default_model="a", resources=gpu).concurrency == 32
    assert WhisperSettings(default_model="a", resources=gpu, concurrency=3).concurrency == 3
    with pytest.raises(ValidationError) as failure:
        WhisperSettings(default_model="a", resources={"num_gpus": -1})
    (reason,) = reasons(failure.value)
    assert reason.startswith("resources.num_gpus: ")
