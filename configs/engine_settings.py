"""Settings of the deployments that load models of the catalogue."""

from typing import Literal

from pydantic import Field

from configs.deployment_settings import Deployment, Strict

Device = Literal["auto", "cpu", "cuda"]


class ReloadableSettings(Strict):
    """``user_config`` of a model deployment: settings that change without a restart."""

    max_models: int | None = Field(
        None, ge=1, description="As max_models of the arguments; null: what these have."
    )
    idle_ttl_s: float | None = Field(
        None, ge=-1, description="As idle_ttl_s of the arguments; null: what these have."
    )


class EngineSettings(Deployment):
    """A deployment that loads models of the catalogue."""

    default_model: str = Field(description="Catalogue id used when a request names none.")
    preload: tuple[str, ...] | None = Field(
        None, description="Models loaded before the replica is ready; null: the default model."
    )
    device: Device = Field(
        "auto",
        description="auto is cuda where the replica has a GPU and the model runs on it, else cpu, "
        "with a warning that names what is missing. With cuda the replica does not start then.",
    )
    compute_type: str = Field(
        "auto",
        description="Number format of the weights: auto, int8, bfloat16, float16, float32 and "
        "others of CTranslate2. For Whisper auto is int8 on the CPU, and on a GPU bfloat16, or "
        "float16 where it has no bfloat16.",
    )

    @property
    def preloaded(self) -> tuple[str, ...]:
        """Ids that a replica loads before it takes requests."""
        return (self.default_model,) if self.preload is None else self.preload


class ModelSettings(EngineSettings):
    """A deployment that answers calls with the models of one family."""

    concurrency: int = Field(1, ge=1, description="Inferences that run at once in a replica.")
    max_models: int = Field(
        2,
        ge=1,
        description="Models that a replica keeps loaded; beyond, the least recently used is "
        "unloaded.",
    )
    idle_ttl_s: float = Field(
        -1.0,
        ge=-1,
        description="Time until an idle model is unloaded, seconds: -1 never, 0 at once.",
    )
    timeout_s: float = Field(
        3600.0, gt=0, description="Longest call, waiting included, seconds; then 504."
    )


class WhisperSettings(ModelSettings):
    """A deployment of Whisper models, which puts windows of several requests into one batch."""

    concurrency: int = Field(
        default_factory=lambda given: 32 if given["resources"].num_gpus else 8,
        ge=1,
        description="Requests at once in a replica, whose windows share batches; by default 8, and "
        "32 with a GPU: twice max_batch keeps it busy. The features of an hour of audio take 110 "
        "MiB of each.",
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Windows of a batch at most; null: 16 on a GPU, and 1 on the CPU, where "
        "windows are no faster together.",
    )
    encoder: Literal["auto", "torch", "ctranslate2"] = Field(
        "auto",
        description="Library that runs the encoder; the decoder runs in CTranslate2. auto is torch "
        "on a GPU where torch has CUDA, unless compute_type is one of int8, else ctranslate2.",
    )
