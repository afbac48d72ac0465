"""Typed arguments of the graph: the fields that `args:` of a Serve config may have.

Environment variables named ``SPEECHGRAPH__<DEPLOYMENT>__<FIELD>`` override the file; those of the
old servers can, see :mod:`configs.legacy_environment`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from configs import legacy_environment
from configs.deployment_settings import Deployment, Strict
from configs.engine_settings import EngineSettings, ModelSettings, WhisperSettings
from configs.job_settings import JobSettings

Dialect = Literal["v1", "openai", "asr", "whisper"]

ORIGIN = r"^(\*|https?://[^/*\s]+(:\*)?)$"

METRICS_INTERVAL_S = 1.0
"""Seconds until autoscaling sees a change of load; Ray's default is 10."""

SERVE_ENVIRONMENT = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.runtime.proxy:set_up_proxy",
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "deployments.runtime.spreading:spread_replicas",
}
"""For the environment of every node before Ray starts: Serve 2.60 reads these only from there."""

TELEMETRY_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Where a cluster reports, by default to Ray's makers, that its usage statistics are off.
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}
"""For the same environment: defaults, so that Ray connects to nobody."""


OPENAI_MODELS = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
)
"""Names that OpenAI's clients send; each means the default model unless an alias is configured."""


class DecoderSettings(Deployment):
    """Decoding of uploads, in replicas of its own: a malformed file can crash no other process."""

    max_seconds: float = Field(
        4 * 3600.0, gt=0, description="Longest audio, seconds; longer is 413."
    )
    max_channels: int = Field(8, ge=1, description="Most channels of one file; more is 422.")
    timeout_s: float = Field(300.0, gt=0, description="Longest decode of one file, seconds.")
    concurrency: int = Field(1, ge=1, description="Files decoded at once in a replica.")


class LiveSettings(EngineSettings):
    """Frame-synchronous recognisers of live streams.

    With placement *local* they share the resources and the scaling of the ingress.
    """

    placement: Literal["local", "replicas"] = Field(
        "local",
        description="local: inside the ingress replicas; replicas: in replicas that scale on their "
        "own.",
    )
    max_streams: int = Field(100, ge=1, description="Streams of one replica; one more is rejected.")
    target_streams: float = Field(
        50.0, gt=0, description="Streams per replica that autoscaling aims at."
    )
    tick_s: float = Field(
        0.04,
        ge=0,
        description="Shortest time between two batches, seconds; a longer one makes larger "
        "batches.",
    )
    recover_s: float = Field(
        30.0,
        gt=0,
        description="How long a stream looks for another replica after its own has died, seconds.",
    )

    @model_validator(mode="after")
    def _reachable(self) -> "LiveSettings":
        # Streams are no requests of Serve, which alone start the first replica of a deployment.
        if self.placement == "replicas" and self.scaling.min_replicas == 0:
            raise ValueError("live replicas need scaling.min_replicas of at least 1")
        return self


class SessionSettings(Strict):
    """Bounds of the live streams of one ingress replica."""

    max_sessions: int = Field(
        100, ge=1, description="Streams at once; one more is rejected with 503."
    )
    max_stream_s: float = Field(
        3 * 3600.0,
        gt=0,
        description="Longest stream, seconds of audio; what was received until then is recognised.",
    )
    max_pending_mb: int = Field(
        128, ge=1, description="Audio of one stream that waits for recognition, at most, MiB."
    )
    max_pending_total_mb: int = Field(
        512, ge=1, description="Audio of all streams that waits for recognition, at most, MiB."
    )
    window_s: float = Field(
        30.0,
        ge=2,
        description="How far a native client may send ahead of the recognition, seconds.",
    )
    start_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Longest wait for the first frame, seconds; the sockets of Vosk's clients wait "
        "for their first audio without a bound. Where all places are taken, one that has waited "
        "for more than 10 seconds loses its place to a new one.",
    )
    idle_timeout_s: float = Field(
        1800.0, gt=0, description="Longest wait for any other frame, seconds."
    )
    speaker_model: str | None = Field(
        None,
        description="Catalogue id of the model that separates the speakers of a stream, of format "
        "sherpa_onnx; null: streams that ask for speakers are rejected.",
    )
    retention_s: float = Field(
        30.0, ge=0, description="How long a session waits for its client to reconnect, seconds."
    )


class AsrSettings(Strict):
    """Defaults of ``POST /transcribe``, for what a request leaves out."""

    speedup: float = Field(
        1.0,
        ge=0.25,
        le=4,
        description="Factor by which audio is sped up before recognition; 1 is off.",
    )
    language: str | None = Field(None, description="Code or name of the language; null: detected.")


class VoskSocketSettings(Strict):
    """The sockets of vosk-server's protocol: ``/vosk`` and ``/asr/LANGUAGE``."""

    sample_rate: int = Field(
        8000,
        ge=8000,
        le=48_000,
        description="Hz, where neither the configuration of a client nor its URL names a rate; the "
        "default is vosk-server's.",
    )
    root_path: bool = Field(
        False,
        description="Serve the protocol on a WebSocket at / too, where most of vosk-server's "
        "clients connect.",
    )


class IngressSettings(Deployment):
    """The HTTP surface."""

    max_upload_bytes: int = Field(
        256 * 1024**2,
        gt=0,
        description="Largest request body, bytes; a replica may hold one per request. More is 413.",
    )
    max_openai_upload_bytes: int = Field(
        25 * 1024**2,
        gt=0,
        description="Largest request body on OpenAI's routes, bytes; the default is OpenAI's "
        "bound.",
    )
    min_upload_bytes_per_s: int = Field(
        2048,
        ge=1,
        description="Slowest average rate of a request body, bytes per second. An upload that is "
        "more than two seconds behind it yields its place when all places are taken.",
    )
    upload_stall_timeout_s: float = Field(
        30.0,
        gt=0,
        description="How far an upload may fall behind that rate, and so the longest wait for its "
        "next bytes, seconds; then 408.",
    )
    max_concurrent_requests: int = Field(
        32,
        ge=1,
        description="Requests at once per ingress replica, uploads included; one more is rejected "
        "with 503.",
    )
    request_timeout_s: float = Field(
        3600.0, gt=0, description="Longest request, seconds; then 504."
    )
    default_transcriber: str = Field(description="Catalogue id used when a request names no model.")
    openai_aliases: dict[str, str | None] = Field(
        default_factory=lambda: dict.fromkeys(OPENAI_MODELS),
        description="Model names on OpenAI's routes: each is a catalogue id, or null for the "
        "default model of the task. It replaces the whole table.",
    )
    whisper_rest_aliases: dict[str, str | None] = Field(
        default_factory=dict,
        description="Model names on /api/transcribe, likewise.",
    )
    asr: AsrSettings = Field(AsrSettings(), description="Defaults of POST /transcribe.")
    vosk: VoskSocketSettings = Field(
        VoskSocketSettings(), description="Sockets of vosk-server's clients."
    )
    max_seconds: dict[Dialect, float] = Field(
        default_factory=dict,
        description="Longest audio of a dialect, seconds, where it is shorter than max_seconds of "
        "the decoder.",
    )
    url_input: bool = Field(
        False, description="Fetch files that requests name by URL, from public addresses only."
    )
    url_timeout_s: float = Field(60.0, gt=0, description="Longest fetch of such a file, seconds.")
    cors_origins: tuple[Annotated[str, Field(pattern=ORIGIN)], ...] = Field(
        (),
        description="Origins of the pages that may call this service from a browser, such as "
        "https://app.example; http://localhost:* is any port, and * is any origin.",
    )
    keys_file: str | None = Field(
        None,
        description="File of the API keys; a relative path as in models_dir. null: no keys are "
        "asked for.",
    )
    keys_required: bool = Field(False, description="Do not start without a keys_file.")
    sessions: SessionSettings = Field(SessionSettings(), description="Live streams.")

    @model_validator(mode="after")
    def _locked(self) -> "IngressSettings":
        if self.keys_required and self.keys_file is None:
            raise ValueError("keys_required, but there is no keys_file")
        return self


FORMER_NAMES = {"vosk": "onnx_asr"}
"""Sections of :class:`SpeechArgs` that have been renamed; the former name is accepted."""


def _under_present_names(args: Mapping[str, Any]) -> dict[str, Any]:
    for former, present in FORMER_NAMES.items():
        if former in args and present in args:
            raise ValueError(f"{former} is the former name of {present}; keep one of them")
    return {FORMER_NAMES.get(name, name): value for name, value in args.items()}


class _Variables(EnvSettingsSource):
    """The variables of the environment; where two names of one setting are set, the present one."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        former = {}
        for name, value in self.env_vars.items():  # in lower case
            prefix, *place = name.split("__")
            if f"{prefix}__" == self.env_prefix.lower() and place and place[0] in FORMER_NAMES:
                former["__".join([prefix, FORMER_NAMES[place[0]], *place[1:]])] = value
        self.env_vars = {**former, **self.env_vars}


class SpeechArgs(BaseSettings):
    """Arguments of ``graphs.speech:build``. A model deployment that is absent is not started."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="SPEECHGRAPH__", env_nested_delimiter="__"
    )

    catalogue: str | None = Field(
        None, description="File of another catalogue; null: configs/models.yaml."
    )
    models_dir: str = Field(
        "models/hub",
        description="Directory of fetched models, looked up before the hub. A relative path counts "
        "from the checkout, or from the working directory where the package is installed.",
    )
    offline: bool = Field(False, description="Never fetch from the hub, as with HF_HUB_OFFLINE=1.")
    ingress: IngressSettings = Field(description="HTTP and WebSockets.")
    decoder: DecoderSettings = Field(DecoderSettings(), description="Decoding of files.")
    whisper: WhisperSettings | None = Field(None, description="Whisper models; null: none.")
    onnx_asr: ModelSettings | None = Field(
        None,
        description="Speech recognisers in ONNX, such as Vosk and GigaAM; null: none. vosk, its "
        "former name, is taken as well.",
    )
    live: LiveSettings | None = Field(None, description="Streaming models; null: none.")
    emotion: ModelSettings | None = Field(None, description="Emotion models; null: none.")
    diarization: ModelSettings | None = Field(None, description="Diarization; null: none.")
    jobs: JobSettings | None = Field(None, description="Jobs; null: none.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment precedes the file; variables of the old servers are between the two."""
        variables, given = _Variables(settings_cls), _under_present_names(init_settings())
        legacy = legacy_environment.read({**given, **variables()})
        ours = {name: legacy[name] for name in legacy if name in settings_cls.model_fields}
        return (variables, *(InitSettingsSource(settings_cls, s) for s in (ours, given)))

    @property
    def live_deployment(self) -> LiveSettings | None:
        """The settings of the deployment Live; None where the ingress recognises streams."""
        return self.live if self.live is not None and self.live.placement == "replicas" else None

    def deployments(self) -> list[Deployment]:
        """The settings of every deployment to start."""
        others = (self.ingress, self.decoder, self.live_deployment, self.jobs)
        return [d for d in (*others, *self.model_deployments().values()) if d is not None]

    def model_deployments(self) -> dict[str, ModelSettings]:
        """The model deployments to start, by family."""
        families: dict[str, Any] = {
            name: getattr(self, name) for name in ("whisper", "onnx_asr", "emotion", "diarization")
        }
        return {name: settings for name, settings in families.items() if settings is not None}
