"""The settings of the jobs."""

from pydantic import Field, SecretStr, field_validator, model_validator

from configs.deployment_settings import Deployment
from configs.signing_key import signing_key


class JobSettings(Deployment):
    """Files that are processed after their request was answered; see docs/jobs.md."""

    directory: str = Field(
        "data/jobs",
        description="Directory of the jobs; a relative one as in models_dir. database and storage "
        "take its place for what they hold.",
    )
    database: SecretStr | None = Field(
        None, description="URL of PostgreSQL; null: SQLite in the directory, for one machine."
    )
    storage: str | None = Field(
        None,
        description="Where audio is kept: a directory or a URL of fsspec, such as s3://bucket; "
        "null: in the directory.",
    )
    concurrency: int = Field(1, ge=1, description="Jobs that run at once in a replica.")
    max_queued: int = Field(
        1000, ge=1, description="Jobs that wait; one more is rejected with 503."
    )
    max_stored_mb: int = Field(
        20 * 1024, ge=1, description="Audio kept for all jobs, MiB; more is rejected with 503."
    )
    max_age_s: float = Field(
        24 * 3600.0, gt=0, description="Age at which a job that is not done fails, seconds."
    )
    attempts: int = Field(5, ge=1, description="Attempts before a job fails.")
    backoff_s: float = Field(
        2.0, gt=0, description="Wait after the first attempt, seconds; it doubles with each."
    )
    max_backoff_s: float = Field(300.0, gt=0, description="Longest such wait, seconds.")
    lease_s: float = Field(
        15.0,
        gt=0,
        description="Time without a heartbeat of a worker after which another takes its jobs, "
        "seconds.",
    )
    poll_s: float = Field(
        0.5, gt=0, description="Time between two looks of an idle worker for a job, seconds."
    )
    audio_ttl_s: float = Field(
        3600.0, ge=0, description="How long audio is kept after the end of its job, seconds."
    )
    result_ttl_s: float = Field(
        7 * 24 * 3600.0,
        gt=0,
        description="How long a job and its result can be read after its end, seconds.",
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Key that signs webhooks; null: webhook_url is rejected."
    )
    webhook_attempts: int = Field(8, ge=1, description="Attempts to deliver a webhook.")
    webhook_timeout_s: float = Field(10.0, gt=0, description="Longest delivery, seconds.")
    webhook_private_addresses: bool = Field(False, description="Deliver also to private addresses.")

    @model_validator(mode="after")
    def _sound(self) -> "JobSettings":
        # The replicas measure the backlog: without one, no job would start a replica.
        if self.scaling.min_replicas == 0:
            raise ValueError("jobs need scaling.min_replicas of at least 1")
        if self.audio_ttl_s > self.result_ttl_s:
            raise ValueError("audio_ttl_s is above result_ttl_s")
        return self

    @field_validator("database")
    @classmethod
    def _postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith("postgresql"):
            raise ValueError("is no URL that begins with postgresql://")
        return url

    @field_validator("webhook_secret")
    @classmethod
    def _decodes(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            signing_key(secret.get_secret_value())
        return secret
