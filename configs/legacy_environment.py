"""The environment variables of the old servers, and the settings that each of them sets.

Names such as HOST, PORT, DEVICE, LANGUAGE or FILENAME mean something else on many machines, so the
environment of the process is never searched for them. They are read from the ``.env`` file that
``SPEECHGRAPH_LEGACY_ENV`` names, and only if it names one. A value takes precedence over the Serve
config, a variable ``SPEECHGRAPH__…`` over both. An empty value counts as unset.
"""

import ipaddress
import logging
import os
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dotenv import dotenv_values

from configs.catalogue import CATALOGUE_PATH, Catalogue, Family, resolve_path

log = logging.getLogger(f"speechgraph.{__name__}")

ENV_FILE = "SPEECHGRAPH_LEGACY_ENV"
FAMILIES = ("whisper", "onnx_asr", "emotion", "diarization")
OPTIONAL = {*FAMILIES, "live"}
"""Deployments that a configuration may leave out."""

T = TypeVar("T")
Settings = dict[str, Any]
"""Dotted names of fields, and their values."""


class Where(NamedTuple):
    """What a value may refer to: files relative to the ``.env`` file, models of the catalogue."""

    folder: Path
    catalogue: Catalogue


Read = Callable[[str, Where], Settings]
"""Turns a text into settings. Raises ValueError with the reason why it is invalid."""


def _sets(read: Callable[[str], Any], *fields: str) -> Read:
    return lambda text, where: dict.fromkeys(fields, read(text))


def _model(family: Family, *fields: str) -> Read:
    def read(text: str, where: Where) -> Settings:
        entry = where.catalogue.find(text)
        if entry is None or entry.family != family:
            raise ValueError(f"no {family} model of that name is in the catalogue")
        return dict.fromkeys(fields, entry.id)

    return read


def _vosk_model(text: str, where: Where) -> Settings:
    entry = where.catalogue.find(text)
    streaming = entry is not None and entry.streaming
    return _model("onnx_asr", f"{'live' if streaming else 'onnx_asr'}.default_model")(text, where)


def _path(field: str) -> Read:
    return lambda text, where: {field: str(where.folder / text)}


def _one_of(known: Mapping[str, T]) -> Callable[[str], T]:
    def read(text: str) -> T:
        if text.lower() not in known:
            raise ValueError(f"it must be one of {', '.join(known)}")
        return known[text.lower()]

    return read


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise ValueError("it must be a number" + ", a whole one" * (kind is int)) from None
        if not least <= number <= most:
            raise ValueError(f"it must be between {least:g} and {most:g}")
        return number

    return read


def _mebibytes(text: str) -> int:
    return int(_number(int, 1, 1024**2)(text)) * 1024**2


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not any(character.isalpha() for character in text):
            raise ValueError("it is no address to listen on") from None
        return text


def _language(text: str) -> str | None:
    return None if text.lower() in ("auto", "none", "null") else text.lower()


_device = _one_of({"auto": "auto", "cpu": "cpu", "cuda": "cuda"})
_gpu = _one_of(
    dict.fromkeys(("true", "1", "yes", "on"), "cuda")
    | dict.fromkeys(("false", "0", "no", "off"), "cpu")
)
_level = _one_of(
    {level.lower(): level for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
    | {"trace": "DEBUG", "warn": "WARNING", "fatal": "CRITICAL"}
)
_port = _sets(_number(int, 1, 65535), "http_options.port")
_log_level = _sets(_level, "logging_config.log_level")
_default_whisper = _model("whisper", "whisper.default_model", "ingress.default_transcriber")
_upload_bound = _sets(_mebibytes, "ingress.max_upload_bytes")
_emotion_model = _model("emotion", "emotion.default_model")
_cpus = _number(int, 1, 1024)


def _rate(text: str) -> int:
    return round(_number(float, 8000, 48_000)(text))  # vosk-server's own is written as 8000.0


TABLE: Mapping[str, Read] = {
    # Of several servers
    "HOST": _sets(_host, "http_options.host"),
    "PORT": _port,
    "LOG_LEVEL": _log_level,
    # A, the simple ASR server
    "DEFAULT_MODEL": _default_whisper,
    "MODEL_DEVICE": _sets(_device, "whisper.device"),
    "MODEL_DOWNLOAD_ROOT": _path("models_dir"),
    "KEYS_FILE": _path("ingress.keys_file"),
    "AUDIO_SPEEDUP": _sets(_number(float, 0.25, 4), "ingress.asr.speedup"),
    "DEFAULT_LANGUAGE": _sets(_language, "ingress.asr.language"),
    "MAX_UPLOAD_SIZE_MB": _upload_bound,
    # B, the Vosk server on sherpa-onnx
    "NUM_THREADS": _sets(_cpus, "onnx_asr.resources.num_cpus", "live.resources.num_cpus"),
    "LOGGING_LEVEL": _log_level,
    "MODEL_NAME": _vosk_model,
    "PROVIDER": _sets(_device, "onnx_asr.device"),
    # vosk-server
    "VOSK_SERVER_INTERFACE": _sets(_host, "http_options.host"),
    "VOSK_SERVER_PORT": _port,
    "VOSK_SAMPLE_RATE": _sets(_rate, "ingress.vosk.sample_rate"),
    # C, the Whisper micro-services
    "SERVER_PORT": _port,
    "WHISPER_WORKERS": _sets(_number(int, 1, 64), "whisper.concurrency"),
    # D, the v1 API
    "WHISPER_MODEL_SIZE": _default_whisper,
    "DEFAULT_MODEL_NAME": _default_whisper,
    "PYANN_MODEL_NAME": _model("diarization", "diarization.default_model"),
    "GIGAAM_EMO_MODEL_NAME": _emotion_model,
    "GIGAAM_MODEL_NAME": _emotion_model,
    "WHISPER_CPU_THREADS": _sets(_cpus, "whisper.resources.num_cpus"),
    "WHISPER_DEVICE": _sets(_device, "whisper.device"),
    "GIGAAM_EMO_DEVICE": _sets(_device, "emotion.device"),
    "PYANNOTE_USE_GPU": _sets(_gpu, "diarization.device"),
    "MODEL_PATH": _path("models_dir"),
    "MODEL_CACHE_TIMEOUT_SEC": _sets(
        _number(float, -1, 1e9), *(f"{family}.idle_ttl_s" for family in FAMILIES)
    ),
    "MODEL_CACHE_MAX": _sets(
        _number(int, 1, 1000), *(f"{family}.max_models" for family in FAMILIES)
    ),
    # E, the realtime server
    "WHISPER_MODEL": _model("whisper", "whisper.default_model"),
    "FILE_MODEL": _model("whisper", "ingress.default_transcriber"),
    "DEVICE": _sets(_device, "whisper.device"),
    "HTTP_PORT": _port,
    "MAX_FILE_SIZE_MB": _upload_bound,
}
"""By name, the fields that it sets: of :class:`configs.settings.SpeechArgs`, and of the Serve
config's ``http_options`` and ``logging_config``."""

_TCP = "the TCP service is not part of this one"
_REALTIME = "the sockets of the realtime server are not part of this service"
_OF_THE_SESSION = "a stream sets it when it opens"
_CLIENT = "a client reads it"
_LOGS = "Ray writes and rotates the log files; logging_config of the Serve config sets them"
_PUNCTUATION = "models that write punctuation are models of their own: gigaam-v3-e2e-rnnt, …-ctc"
_GPUS = "Ray assigns the GPU of a replica; resources.num_gpus asks for one"

IGNORED: Mapping[str, str] = {
    # A
    "HSA_OVERRIDE_GFX_VERSION": "the ROCm driver reads it, and no engine here runs on ROCm",
    "CACHE_DIR": "transcripts are not cached",
    "ENABLE_CACHE": "transcripts are not cached",
    "CORS_ORIGINS": "ingress.cors_origins names pages that may call; /api/ is open to all",
    "MAX_REQUESTS_PER_MINUTE": "the rate is a matter of each key",
    # B
    "LOGGING_FORMAT": _LOGS,
    "FILENAME": _LOGS,
    "FILEMODE": _LOGS,
    "LOG_BACKUP_COUNT": _LOGS,
    "IS_PROD": _LOGS,
    "BASE_SAMPLE_RATE": "every model takes 16 kHz; a stream names the rate of its audio",
    "MAX_OVERLAP_DURATION": "/ws cuts at 15 s; max_utterance_s of a model is in the catalogue",
    "RECOGNITION_ATTEMPTS": "a call whose replica died is sent once more, and no other",
    "VAD_SENSE": _OF_THE_SESSION,
    "VAD_WITH_GPU": "voice activity detection runs on the CPU",
    "BETWEEN_WORDS_PERCENTILE": "sentences end where the model ends them",
    "CAN_PUNCTUATE": _PUNCTUATION,
    "PUNCTUATE_WITH_GPU": _PUNCTUATION,
    "CAN_DIAR": "a request asks for speakers",
    "DIAR_MODEL_NAME": "those models are not in the catalogue; set diarization.default_model",
    "DO_LOCAL_FILE_RECOGNITIONS": "no directory is watched",
    "DELETE_LOCAL_FILE_AFTR_ASR": "no directory is watched",
    # vosk-server
    "VOSK_MODEL_PATH": "a model in a directory of its own is an entry of the catalogue",
    "VOSK_SPK_MODEL_PATH": "these answers have no speakers; those of /v1/ws have",
    "VOSK_ALTERNATIVES": _OF_THE_SESSION,
    "VOSK_SHOW_WORDS": _OF_THE_SESSION,
    # C
    "WHISPER_HOST": _TCP,
    "WHISPER_PORT": _TCP,
    "GIN_MODE": "there is no Gin",
    # D
    "APP_NAME": "the name of the service is fixed",
    "APP_VERSION": "the version of the service is its own",
    "PYANNOTE_AUTH_TOKEN": "set HF_TOKEN where Ray is started",
    "PYANNOTE_PATH": "a model in a directory of its own is an entry of the catalogue",
    "WORKER_PHYSICAL_GPU_ID": _GPUS,
    # E
    "CONTROL_PORT": _REALTIME,
    "DATA_PORT": _REALTIME,
    "LANGUAGE": _REALTIME,
    "REALTIME_MODEL_TYPE": _REALTIME,
    "ENABLE_REALTIME_TRANSCRIPTION": _REALTIME,
    "SILERO_USE_ONNX": _REALTIME,
    "SILERO_SENSITIVITY": _REALTIME,
    "WEBRTC_SENSITIVITY": _REALTIME,
    "POST_SPEECH_SILENCE_DURATION": _REALTIME,
    "MIN_LENGTH_OF_RECORDING": _REALTIME,
    "BEAM_SIZE": _REALTIME,
    "BEAM_SIZE_REALTIME": _REALTIME,
    "REALTIME_PROCESSING_PAUSE": _REALTIME,
    "INITIAL_PROMPT": _REALTIME,
    "SERVER_HOST": _CLIENT,
    "CONTROL_URL": _CLIENT,
    "DATA_URL": _CLIENT,
}
"""By name, the reason why it sets nothing."""


def read(args: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the file, nested as in a Serve config; empty without a file.

    ``args`` are those of the application: they name the catalogue and the deployments. Settings of
    other deployments are left out. Raises ValueError for a missing file, an invalid value, and two
    variables that contradict each other.
    """
    named = os.environ.get(ENV_FILE)
    if not named:
        return {}
    path = Path(named)
    if not path.is_file():
        raise ValueError(f"{ENV_FILE}: there is no file {path}")
    catalogue = Catalogue.load(resolve_path(args.get("catalogue") or CATALOGUE_PATH))
    where = Where(path.parent.absolute(), catalogue)
    given = {deployment for deployment in OPTIONAL if args.get(deployment)}
    settings: dict[str, tuple[str, Any]] = {}
    for name, text in dotenv_values(path, interpolate=False).items():
        if not text:
            continue
        for field, value in _settings(path, name, text, where, given).items():
            other, before = settings.setdefault(field, (name, value))
            if before != value:
                raise ValueError(f"{path}: {other} and {name} both set {field}; keep one of them")
    nested: dict[str, Any] = {}
    for field, (_, value) in settings.items():
        *sections, last = field.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def _settings(path: Path, name: str, text: str, where: Where, given: Set[str]) -> Settings:
    """The fields that one variable sets, of the deployments in ``given``."""
    if name not in TABLE:
        if name in IGNORED:
            log.info("%s: %s has no effect: %s", path, name, IGNORED[name])
        else:
            log.warning("%s: %s is no variable of the old servers", path, name)
        return {}
    try:
        settings = TABLE[name](text, where)
    except ValueError as error:
        raise ValueError(f"{path}: {name}={text}: {error}") from None
    about = {field.partition(".")[0] for field in settings} & OPTIONAL
    if about and not about & given:
        log.warning("%s: %s has no effect: there is no %s", path, name, ", ".join(sorted(about)))
        return {}
    absent = OPTIONAL - given
    return {f: value for f, value in settings.items() if f.partition(".")[0] not in absent}
