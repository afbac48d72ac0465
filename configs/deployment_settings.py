"""Settings that every deployment has: replicas, resources, health checks, drain and queue."""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """Unknown fields are an error; Serve itself ignores them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scaling(Strict):
    """How many replicas a deployment has, and when that changes."""

    min_replicas: int = Field(
        1, ge=0, description="Fewest replicas. With 0 the first request waits for a replica."
    )
    max_replicas: int = Field(1, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        2.0, gt=0, description="Requests per replica that autoscaling aims at."
    )
    upscale_delay_s: float = Field(
        2.0, ge=0, description="How long the load must be high before replicas are added, seconds."
    )
    downscale_delay_s: float = Field(
        60.0, ge=0, description="How long it must be low before replicas are removed, seconds."
    )
    look_back_period_s: float = Field(
        4.0,
        gt=0,
        description="Period over which the load is averaged, seconds. With 30 s, the default of "
        "Ray, a replica is added only after 38 s.",
    )
    max_replicas_per_node: int | None = Field(
        None, ge=1, description="Most replicas on one node; null: any number."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Scaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas")
        return self


RAY_UNIT = 0.0001
"""Ray counts resources in these steps."""


class Resources(Strict):
    """What one replica takes from its node."""

    num_cpus: float = Field(
        1.0,
        ge=0,
        description="Logical CPUs of a replica. Its engine uses as many threads, at least one.",
    )
    num_gpus: float = Field(
        0.0, ge=0, description="Share of one GPU, or number of GPUs; 0 hides all GPUs."
    )
    memory_mb: int | None = Field(
        None, ge=1, description="Memory that Ray reserves on the node, MiB; null: none."
    )
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that the node must have."
    )

    @field_validator("num_cpus", "num_gpus")
    @classmethod
    def _countable(cls, value: float) -> float:
        if 0 < value < RAY_UNIT:
            raise ValueError(f"is below the least share that Ray gives, {RAY_UNIT}")
        return value

    @field_validator("num_gpus")
    @classmethod
    def whole_gpus(cls, value: float) -> float:
        """A share of one GPU or a whole number; Ray places no replica on others."""
        if value > 1 and value != int(value):
            raise ValueError("above 1 has to be a whole number of GPUs")
        return value


class Lifecycle(Strict):
    """Health, drain and the bound of the queue of one deployment."""

    max_queue: int = Field(
        32,
        ge=1,
        description="Requests of one ingress replica that wait for this deployment; one more is "
        "rejected with 503. Not of ``ingress``, which has bounds of its own.",
    )
    health_check_period_s: float = Field(
        2.0, gt=0, description="Time between two health checks of a replica, seconds."
    )
    health_check_timeout_s: float = Field(
        10.0, gt=0, description="Longest health check, seconds; three failures replace the replica."
    )
    drain_timeout_s: float = Field(
        60.0,
        ge=0,
        description="Time that running requests get when a replica is stopped, seconds.",
    )


class Deployment(Strict):
    """The settings of every deployment."""

    scaling: Scaling = Field(Scaling(), description="Number of replicas.")
    resources: Resources = Field(Resources(), description="Resources of one replica.")
    lifecycle: Lifecycle = Field(Lifecycle(), description="Health checks, drain and queue.")
