"""The variables of the old servers: when they count, what each sets, what is refused."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import legacy_environment
from configs.legacy_environment import ENV_FILE, IGNORED, TABLE
from configs.settings import SpeechArgs
from graphs.launch import main
from graphs.validate import problems

Env = Callable[[str], Path]

EXAMPLES = {
    "HOST": ("0.0.0.0", "http_options.host", "0.0.0.0"),
    "PORT": ("9854", "http_options.port", 9854),
    "LOG_LEVEL": ("trace", "logging_config.log_level", "DEBUG"),
    "DEFAULT_MODEL": ("turbo", "whisper.default_model", "whisper-large-v3-turbo"),
    "MODEL_DEVICE": ("cuda", "whisper.device", "cuda"),
    "AUDIO_SPEEDUP": ("1.25", "ingress.asr.speedup", 1.25),
    "DEFAULT_LANGUAGE": ("RU", "ingress.asr.language", "ru"),
    "MAX_UPLOAD_SIZE_MB": ("50", "ingress.max_upload_bytes", 50 * 1024**2),
    "NUM_THREADS": ("2", "onnx_asr.resources.num_cpus", 2),
    "LOGGING_LEVEL": ("DEBUG", "logging_config.log_level", "DEBUG"),
    "MODEL_NAME": ("Vosk5", "onnx_asr.default_model", "vosk-model-ru"),
    "PROVIDER": ("CUDA", "onnx_asr.device", "cuda"),
    "VOSK_SERVER_INTERFACE": ("127.0.0.1", "http_options.host", "127.0.0.1"),
    "VOSK_SERVER_PORT": ("2700", "http_options.port", 2700),
    "VOSK_SAMPLE_RATE": ("16000.0", "ingress.vosk.sample_rate", 16_000),
    "SERVER_PORT": ("8080", "http_options.port", 8080),
    "WHISPER_WORKERS": ("3", "whisper.concurrency", 3),
    "WHISPER_MODEL_SIZE": ("large", "ingress.default_transcriber", "whisper-large-v3"),
    "DEFAULT_MODEL_NAME": ("large-v3", "whisper.default_model", "whisper-large-v3"),
    "PYANN_MODEL_NAME": (
        "pyannote/speaker-diarization-3.1",
        "diarization.default_model",
        "pyannote-3.1",
    ),
    "GIGAAM_EMO_MODEL_NAME": ("gigaam_emo", "emotion.default_model", "gigaam-emo"),
    "GIGAAM_MODEL_NAME": ("gigaam_emo", "emotion.default_model", "gigaam-emo"),
    "WHISPER_CPU_THREADS": ("8", "whisper.resources.num_cpus", 8),
    "WHISPER_DEVICE": ("cpu", "whisper.device", "cpu"),
    "GIGAAM_EMO_DEVICE": ("cuda", "emotion.device", "cuda"),
    "PYANNOTE_USE_GPU": ("true", "diarization.device", "cuda"),
    "MODEL_CACHE_TIMEOUT_SEC": ("30", "onnx_asr.idle_ttl_s", 30.0),
    "MODEL_CACHE_MAX": ("5", "emotion.max_models", 5),
    "WHISPER_MODEL": ("medium", "whisper.default_model", "whisper-medium"),
    "FILE_MODEL": ("large", "ingress.default_transcriber", "whisper-large-v3"),
    "DEVICE": ("auto", "whisper.device", "auto"),
    "HTTP_PORT": ("8013", "http_options.port", 8013),
    "MAX_FILE_SIZE_MB": ("500", "ingress.max_upload_bytes", 500 * 1024**2),
}
"""A value of each variable, a field that it sets, and to what; the directories are tested apart."""


@pytest.fixture
def args(repository: Path) -> dict[str, Any]:
    """The arguments of configs/demo.yaml, which has every deployment."""
    config = yaml.safe_load((repository / "configs/demo.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["applications"][0]["args"]
    return found


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
    """Writes an old .env file and asks for it."""

    def write(text: str) -> Path:
        file = tmp_path / "old.env"
        file.write_text(text, encoding="utf-8")
        monkeypatch.setenv(ENV_FILE, str(file))
        return file

    return write


def at(value: Any, place: str) -> Any:
    for step in place.split("."):
        value = value[step] if isinstance(value, dict) else getattr(value, step)
    return value


# ---------------------------------------------------------------- when they count


def test_the_environment_itself_is_never_searched(
    args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (text, _, _) in EXAMPLES.items():
        monkeypatch.setenv(name, text)
    assert legacy_environment.read(args) == {}
    assert SpeechArgs(**args).ingress.asr.speedup == 1.0


def test_a_file_goes_before_the_config_and_behind_our_own_names(
    args: dict[str, Any], env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    env("MODEL_CACHE_MAX=5\nWHISPER_WORKERS=3\n")
    monkeypatch.setenv("SPEECHGRAPH__ONNX_ASR__MAX_MODELS", "7")
    merged = SpeechArgs(**args)
    assert merged.whisper is not None
    assert merged.onnx_asr is not None
    assert (merged.whisper.max_models, merged.whisper.concurrency) == (5, 3)
    assert merged.onnx_asr.max_models == 7, "SPEECHGRAPH__ wins"
    assert merged.onnx_asr.preload == ("demo-vosk", "demo-gigaam"), "what nobody names stays"


def test_empty_values_comments_and_quotes_are_those_of_dotenv_files(
    args: dict[str, Any], env: Env
) -> None:
    env('# old\nexport AUDIO_SPEEDUP="1.5"  # faster\nDEFAULT_LANGUAGE=\nMODEL_CACHE_MAX\n')
    merged = SpeechArgs(**args)
    assert merged.ingress.asr.speedup == 1.5
    assert merged.ingress.asr.language is None


# ---------------------------------------------------------------- what they set


def test_every_variable_has_an_example_here() -> None:
    assert set(EXAMPLES) | {"MODEL_DOWNLOAD_ROOT", "MODEL_PATH", "KEYS_FILE"} == set(TABLE)
    assert not set(TABLE) & set(IGNORED)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_variable_sets_its_field(args: dict[str, Any], env: Env, name: str) -> None:
    text, place, value = EXAMPLES[name]
    env(f"{name}={text}\n")
    nested = legacy_environment.read(args)
    assert at(nested, place) == value
    merged = SpeechArgs(**args)
    if place.partition(".")[0] in SpeechArgs.model_fields:
        assert at(merged, place) == value


def test_the_model_of_old_requests_that_name_none_is_loaded_and_used(
    args: dict[str, Any], env: Env
) -> None:
    env("DEFAULT_MODEL=turbo\n")
    merged = SpeechArgs(**args)
    assert merged.whisper is not None
    assert merged.whisper.preloaded == ("whisper-large-v3-turbo",)
    assert merged.ingress.default_transcriber == "whisper-large-v3-turbo"


def test_a_streaming_vosk_model_is_that_of_live_streams(args: dict[str, Any], env: Env) -> None:
    env("MODEL_NAME=Vosk5SmallStreaming\n")
    merged = SpeechArgs(**args)
    assert merged.live is not None
    assert merged.onnx_asr is not None
    assert merged.live.default_model == "vosk-model-small-streaming-ru"
    assert merged.onnx_asr.default_model == "demo-vosk"


@pytest.mark.parametrize("name", ["MODEL_DOWNLOAD_ROOT", "MODEL_PATH"])
def test_directories_are_relative_to_the_file(args: dict[str, Any], env: Env, name: str) -> None:
    file = env(f"{name}=./weights\n")
    assert SpeechArgs(**args).models_dir == str(file.parent / "weights")
    env(f"{name}=/srv/weights\n")
    assert SpeechArgs(**args).models_dir == "/srv/weights"


def test_the_key_file_is_relative_to_the_file(args: dict[str, Any], env: Env) -> None:
    file = env("KEYS_FILE=./data/keys.txt\n")
    assert SpeechArgs(**args).ingress.keys_file == str(file.parent / "data" / "keys.txt")


def test_a_deployment_that_is_not_there_is_left_alone(
    args: dict[str, Any], env: Env, caplog: pytest.LogCaptureFixture
) -> None:
    del args["whisper"], args["emotion"]
    args["ingress"]["default_transcriber"] = "demo-vosk"
    env("DEFAULT_MODEL=turbo\nGIGAAM_EMO_DEVICE=cpu\nMODEL_CACHE_MAX=5\n")
    merged = SpeechArgs(**args)
    assert merged.whisper is None
    assert merged.emotion is None
    assert merged.onnx_asr is not None
    assert merged.onnx_asr.max_models == 5
    assert merged.ingress.default_transcriber == "demo-vosk"
    assert "DEFAULT_MODEL has no effect" in caplog.text


def test_two_names_of_one_setting_may_agree(args: dict[str, Any], env: Env) -> None:
    env("WHISPER_MODEL_SIZE=turbo\nDEFAULT_MODEL_NAME=large-v3-turbo\n")
    assert SpeechArgs(**args).ingress.default_transcriber == "whisper-large-v3-turbo"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HOST", "0.0.0.0.0"),
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("LOG_LEVEL", "loud"),
        ("DEFAULT_MODEL", "enormous"),
        ("DEFAULT_MODEL", "Vosk5"),
        ("MODEL_DEVICE", "cuda:1"),
        ("AUDIO_SPEEDUP", "0.2"),
        ("AUDIO_SPEEDUP", "4.5"),
        ("AUDIO_SPEEDUP", "fast"),
        ("AUDIO_SPEEDUP", "nan"),
        ("MAX_UPLOAD_SIZE_MB", "0"),
        ("NUM_THREADS", "1.5"),
        ("MODEL_NAME", "turbo"),
        ("PYANNOTE_USE_GPU", "maybe"),
        ("MODEL_CACHE_TIMEOUT_SEC", "-2"),
        ("MODEL_CACHE_MAX", "0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    args: dict[str, Any], env: Env, name: str, text: str
) -> None:
    file = env(f"{name}={text}\n")
    with pytest.raises(ValueError, match=re.escape(f"{file}: {name}={text}: ")):
        SpeechArgs(**args)


def test_names_that_contradict_each_other_are_refused(args: dict[str, Any], env: Env) -> None:
    env("PORT=9854\nSERVER_PORT=8080\n")
    with pytest.raises(ValueError, match=r"PORT and SERVER_PORT both set http_options\.port"):
        SpeechArgs(**args)


def test_a_file_that_is_not_there_is_refused(
    args: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ENV_FILE, str(tmp_path / "none.env"))
    with pytest.raises(ValueError, match=ENV_FILE):
        SpeechArgs(**args)


def test_a_name_that_no_old_server_had_is_told(
    args: dict[str, Any], env: Env, caplog: pytest.LogCaptureFixture
) -> None:
    env("AUDIO_SPEDUP=1.25\nCONTROL_PORT=8011\n")
    with caplog.at_level(logging.WARNING):
        SpeechArgs(**args)
    assert "AUDIO_SPEDUP is no variable" in caplog.text
    assert "CONTROL_PORT" not in caplog.text, "known, and documented as without effect"


def test_the_launcher_and_the_check_say_what_is_wrong(
    repository: Path, env: Env, capsys: pytest.CaptureFixture[str]
) -> None:
    env("PORT=http\n")
    config = repository / "configs/demo.yaml"
    (found,) = problems(config)
    assert "PORT=http: it must be a number" in found
    assert main([str(config)]) == 2
    assert "PORT=http" in capsys.readouterr().err


# ---------------------------------------------------------------- what is written about them


def test_the_example_file_names_every_variable_and_its_values_are_taken(
    repository: Path, args: dict[str, Any], env: Env
) -> None:
    text = (repository / ".env.example").read_text(encoding="utf-8")
    lines = re.findall(r"^#([A-Z][A-Z_0-9]+)=(.*)$", text, re.MULTILINE)
    assert sorted(name for name, _ in lines) == sorted([*TABLE, *IGNORED])
    for name, value in lines:
        env(f"{name}={value}\n")
        nested = legacy_environment.read(args)
        assert bool(nested) == (name in TABLE), name


def test_the_page_names_every_variable(repository: Path) -> None:
    page = (repository / "docs/configuration.md").read_text(encoding="utf-8")
    assert {name for name in [*TABLE, *IGNORED] if f"`{name}`" not in page} == set()
