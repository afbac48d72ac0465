"""Typed arguments of the graph: what `args:` of a Serve config may say, and nothing else.

Environment variables named ``SPEECHGRAPH__<DEPLOYMENT>__<FIELD>`` override the file; those of the
old servers can, see :mod:`configs.legacy_environment`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from configs import legacy_environment

Device = Literal["auto", "cpu", "cuda"]
Dialect = Literal["v1", "openai", "asr", "whisper"]

METRICS_INTERVAL_S = 1.0
"""Seconds until autoscaling sees a change of load; Ray's default is 10."""

METRICS_ENVIRONMENT = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(METRICS_INTERVAL_S),
}
"""For the environment of every node before Ray starts: Ray 2.60 reads the interval from there."""


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
"""Names that OpenAI's clients send; each means the default model unless the table says else."""


class Strict(BaseModel):
    """Unknown fields are an error: Serve itself would take a misspelt one in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scaling(Strict):
    """How many replicas a deployment has, and when that changes."""

    min_replicas: int = Field(1, ge=0, description="Fewest replicas; 0 starts one on demand.")
    max_replicas: int = Field(1, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        2.0, gt=0, description="Requests per replica that autoscaling aims at."
    )
    upscale_delay_s: float = Field(
        2.0, ge=0, description="Seconds that more replicas must be wanted before they are added."
    )
    downscale_delay_s: float = Field(
        60.0, ge=0, description="Seconds that fewer replicas must suffice before some are stopped."
    )
    look_back_period_s: float = Field(
        4.0,
        gt=0,
        description="Seconds of load that a decision looks at; with Ray's own 30 a start takes 38.",
    )
    max_replicas_per_node: int | None = Field(
        None, ge=1, description="Most replicas on one node; no limit if absent."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Scaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


class Resources(Strict):
    """What one replica takes from its node."""

    num_cpus: float = Field(1.0, ge=0, description="Logical CPUs; threads are pinned to it.")
    num_gpus: float = Field(0.0, ge=0, description="Share of one GPU; 0 hides all GPUs.")
    memory_mb: int | None = Field(
        None, ge=1, description="Memory that Ray reserves for it, MiB; none if absent."
    )
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels of the nodes that may run it."
    )


class Lifecycle(Strict):
    """Health, drain and the bound of the queue of one deployment."""

    max_queue: int = Field(
        32,
        ge=1,
        description="Requests that wait for this deployment, per caller; one more is refused.",
    )
    health_check_period_s: float = Field(
        2.0, gt=0, description="Seconds between two health checks of a replica."
    )
    health_check_timeout_s: float = Field(
        10.0, gt=0, description="Seconds until an unanswered health check counts as failed."
    )
    drain_timeout_s: float = Field(
        60.0, ge=0, description="Time that running requests get when a replica is stopped."
    )


class Deployment(Strict):
    """What every deployment is told: its replicas, their resources, their life."""

    scaling: Scaling = Scaling()
    resources: Resources = Resources()
    lifecycle: Lifecycle = Lifecycle()


class DecoderSettings(Deployment):
    """Decoding of uploads; its replicas may die of a malformed file, nothing else does."""

    max_seconds: float = Field(4 * 3600.0, gt=0, description="Longest audio, seconds.")
    max_channels: int = Field(8, ge=1, description="Most channels of one file.")
    timeout_s: float = Field(300.0, gt=0, description="Longest decode of one file, seconds.")
    concurrency: int = Field(1, ge=1, description="Files decoded at once in a replica.")


class ReloadableSettings(Strict):
    """What ``user_config`` of a model deployment changes without a restart."""

    max_models: int | None = Field(None, ge=1, description="Models kept loaded.")
    idle_ttl_s: float | None = Field(
        None, ge=-1, description="See ``idle_ttl_s`` of the arguments."
    )


class EngineSettings(Deployment):
    """A deployment that loads models of the catalogue."""

    default_model: str = Field(description="Catalogue id used when a request names none.")
    preload: tuple[str, ...] | None = Field(
        None, description="Models loaded before the replica is ready; the default model if absent."
    )
    device: Device = Field(
        "auto", description="Where inference runs; auto is the GPU that Ray assigned, else the CPU."
    )
    compute_type: str = Field(
        "auto", description="Number format of the weights: auto, int8, float16, float32…"
    )

    @property
    def preloaded(self) -> tuple[str, ...]:
        """Ids that a replica loads before it takes requests."""
        return (self.default_model,) if self.preload is None else self.preload


class ModelSettings(EngineSettings):
    """A deployment that answers calls with the models of one family."""

    concurrency: int = Field(1, ge=1, description="Inferences that run at once in a replica.")
    max_models: int = Field(
        2, ge=1, description="Models kept loaded; the least recently used goes."
    )
    idle_ttl_s: float = Field(
        -1.0, ge=-1, description="Seconds until an idle model is unloaded: -1 never, 0 at once."
    )
    timeout_s: float = Field(3600.0, gt=0, description="Longest single call, queueing included.")


class LiveSettings(EngineSettings):
    """Frame-synchronous recognisers of live streams, which hold streams instead of calls.

    With placement *local* they share the resources and the scaling of the ingress.
    """

    placement: Literal["local", "replicas"] = Field(
        "local", description="Inside the ingress replicas, or in replicas that scale on their own."
    )
    max_streams: int = Field(100, ge=1, description="Streams of one replica; one more is refused.")
    target_streams: float = Field(
        50.0, gt=0, description="Streams per replica that autoscaling aims at."
    )
    tick_s: float = Field(
        0.04, ge=0, description="Least seconds between two batches; more makes larger batches."
    )
    recover_s: float = Field(
        30.0, gt=0, description="Seconds until a stream whose replica is gone is given up."
    )

    @model_validator(mode="after")
    def _reachable(self) -> "LiveSettings":
        # Streams do not wait as requests of Serve, which alone would wake a deployment of none.
        if self.placement == "replicas" and self.scaling.min_replicas == 0:
            raise ValueError("live replicas need scaling.min_replicas of at least 1")
        return self


class SessionSettings(Strict):
    """Live streams of one ingress replica, and their bounds."""

    max_sessions: int = Field(100, ge=1, description="Streams at once; one more gets 503.")
    max_stream_s: float = Field(
        3 * 3600.0, gt=0, description="Longest stream, seconds; what came until then is finished."
    )
    max_pending_mb: int = Field(
        128, ge=1, description="Audio of one stream that may wait to be recognised, MiB."
    )
    max_pending_total_mb: int = Field(512, ge=1, description="The same of all streams, MiB.")
    window_s: float = Field(
        30.0, ge=2, description="How far a native client may be ahead of the recognition, seconds."
    )
    start_timeout_s: float = Field(10.0, gt=0, description="Longest wait for the first frame.")
    idle_timeout_s: float = Field(60.0, gt=0, description="Longest wait for any other frame.")
    speaker_model: str | None = Field(
        None, description="Tells the speakers of a stream apart; a model of format sherpa_onnx."
    )
    retention_s: float = Field(
        30.0, ge=0, description="How long a session waits for a dropped socket to come back."
    )


class AsrSettings(Strict):
    """What ``POST /transcribe`` does when the request does not say."""

    speedup: float = Field(
        1.0, ge=0.25, le=4, description="Times as fast as it is the audio is heard; 1 is off."
    )
    language: str | None = Field(None, description="Language that is spoken; found if absent.")


class JobSettings(Deployment):
    """Files that are worked on after their request was answered; see docs/jobs.md."""

    directory: str = Field(
        "data/jobs", description="Local directory of the jobs, unless the two below say otherwise."
    )
    database: SecretStr | None = Field(
        None, description="URL of PostgreSQL; SQLite in the directory, for one machine, if absent."
    )
    storage: str | None = Field(
        None, description="Where audio waits: a directory or a URL of fsspec, such as s3://bucket."
    )
    concurrency: int = Field(1, ge=1, description="Jobs that run at once in a replica.")
    max_queued: int = Field(1000, ge=1, description="Jobs that wait; one more gets 503.")
    max_stored_mb: int = Field(
        20 * 1024, ge=1, description="Audio kept for all jobs, MiB; more gets 503."
    )
    max_age_s: float = Field(
        24 * 3600.0, gt=0, description="A job that is not done after so long fails."
    )
    attempts: int = Field(5, ge=1, description="Attempts before a job fails for good.")
    backoff_s: float = Field(
        2.0, gt=0, description="Wait after the first attempt; it doubles with each."
    )
    max_backoff_s: float = Field(300.0, gt=0, description="Longest such wait.")
    lease_s: float = Field(
        15.0, gt=0, description="Silence of a worker after which another takes its jobs."
    )
    poll_s: float = Field(0.5, gt=0, description="How often an idle worker looks for a job.")
    audio_ttl_s: float = Field(
        3600.0, ge=0, description="How long the audio is kept once its job has ended."
    )
    result_ttl_s: float = Field(
        7 * 24 * 3600.0, gt=0, description="How long a job is told of once it has ended."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks; without it webhook_url is refused."
    )
    webhook_attempts: int = Field(8, ge=1, description="Deliveries tried before giving up.")
    webhook_timeout_s: float = Field(10.0, gt=0, description="Longest delivery.")
    webhook_private_addresses: bool = Field(
        False, description="Also deliver to addresses that are not of the public internet."
    )

    @model_validator(mode="after")
    def _sound(self) -> "JobSettings":
        # The backlog is measured by the replicas: without one nobody would see a job wait.
        if self.scaling.min_replicas == 0:
            raise ValueError("jobs need scaling.min_replicas of at least 1")
        if self.audio_ttl_s > self.result_ttl_s:
            raise ValueError("audio_ttl_s is above result_ttl_s")
        return self


class IngressSettings(Deployment):
    """The HTTP surface."""

    max_upload_bytes: int = Field(
        256 * 1024**2,
        gt=0,
        description="Largest request body, bytes; a replica may hold one per request.",
    )
    max_openai_upload_bytes: int = Field(
        25 * 1024**2,
        gt=0,
        description="The same on OpenAI's routes, where it is OpenAI's own bound.",
    )
    min_upload_bytes_per_s: int = Field(
        2048,
        ge=1,
        description="Slowest average rate of a request body. An upload that is more than two "
        "seconds behind it yields its place when all places are taken.",
    )
    upload_stall_timeout_s: float = Field(
        30.0,
        gt=0,
        description="How far an upload may fall behind that rate, and so the longest wait for its "
        "next bytes; answered with 408.",
    )
    max_concurrent_requests: int = Field(
        32,
        ge=1,
        description="Requests at once per ingress replica, uploads included; one more gets 503.",
    )
    request_timeout_s: float = Field(
        3600.0, gt=0, description="Longest request, answered with 504."
    )
    default_transcriber: str = Field(description="Catalogue id used when a request names no model.")
    openai_aliases: dict[str, str | None] = Field(
        default_factory=lambda: dict.fromkeys(OPENAI_MODELS),
        description="What OpenAI's model names mean on its routes: a catalogue id, or null for the "
        "default model of the task. It replaces the whole table.",
    )
    whisper_rest_aliases: dict[str, str | None] = Field(
        default_factory=dict,
        description="The same for the names that clients of /api/transcribe send.",
    )
    asr: AsrSettings = AsrSettings()
    max_seconds: dict[Dialect, float] = Field(
        default_factory=dict,
        description="Longest audio of a dialect, seconds, where that is to be below the decoder's "
        "max_seconds.",
    )
    url_input: bool = Field(
        False, description="Fetch files that requests name by their URL, from public hosts only."
    )
    url_timeout_s: float = Field(60.0, gt=0, description="Longest time such a file may take.")
    keys_file: str | None = Field(
        None, description="File of the API keys, relative to the repository; none: open to all."
    )
    keys_required: bool = Field(False, description="Never start without a keys_file.")
    sessions: SessionSettings = SessionSettings()

    @model_validator(mode="after")
    def _locked(self) -> "IngressSettings":
        if self.keys_required and self.keys_file is None:
            raise ValueError("keys_required, but there is no keys_file")
        return self


class SpeechArgs(BaseSettings):
    """Arguments of ``graphs.speech:build``. A model deployment that is absent is not started."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="SPEECHGRAPH__", env_nested_delimiter="__"
    )

    catalogue: str | None = Field(None, description="Path of another model catalogue.")
    models_dir: str = Field(
        "models/hub", description="Directory of fetched models; looked up before the hub."
    )
    offline: bool = Field(False, description="Never ask the hub, like HF_HUB_OFFLINE=1.")
    ingress: IngressSettings
    decoder: DecoderSettings = DecoderSettings()
    whisper: ModelSettings | None = None
    vosk: ModelSettings | None = None
    live: LiveSettings | None = None
    emotion: ModelSettings | None = None
    diarization: ModelSettings | None = None
    jobs: JobSettings | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file, the names of the old servers between the two."""
        legacy = legacy_environment.read({**init_settings(), **env_settings()})
        ours = {name: legacy[name] for name in legacy if name in settings_cls.model_fields}
        return env_settings, InitSettingsSource(settings_cls, ours), init_settings

    def model_deployments(self) -> dict[str, ModelSettings]:
        """The model deployments that are to be started, by family."""
        families: dict[str, Any] = {
            name: getattr(self, name) for name in ("whisper", "vosk", "emotion", "diarization")
        }
        return {name: settings for name, settings in families.items() if settings is not None}
