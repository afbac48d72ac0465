"""The whole service: every model family, the decoder, and the ingress that composes them."""

from functools import partial
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.exceptions import RayServeException

from configs.catalogue import Catalogue, resolve_path
from configs.engine_settings import EngineSettings, ModelSettings
from configs.job_settings import JobSettings
from configs.reasons import reasons
from configs.settings import SpeechArgs
from deployments.decoder import Decoder
from deployments.diarization import Diarization
from deployments.emotion import Emotion
from deployments.ingress import Ingress
from deployments.jobs import JobRunner, job_options
from deployments.key_limits import counter_options
from deployments.live.recogniser import Live, live_options
from deployments.onnx_asr import OnnxAsr
from deployments.runtime.model_access import ModelFiles
from deployments.runtime.model_check import missing_on_nodes, not_loadable
from deployments.runtime.options import model_options, serve_options
from deployments.runtime.rollout import has_room, surge_percent
from deployments.runtime.scaling import FollowRequests
from deployments.runtime.versions import bind
from deployments.whisper import Whisper
from graphs.replacement import refuse_to_replace, running_replicas
from speech.errors import InvalidRequest
from speech.languages import language_code

MODEL_DEPLOYMENTS: dict[str, type] = {
    "whisper": Whisper,
    "onnx_asr": OnnxAsr,
    "emotion": Emotion,
    "diarization": Diarization,
}
HTTP_SLACK = 256
"""Requests that an ingress replica accepts beyond those it processes and its live streams: health
checks, rejections."""
INGRESS_QUEUE = 4096
"""Requests that wait for a replica to accept them, per proxy. The ingress rejects by itself, and at
once; beyond this Serve does, with 500 for a socket and a 503 without Retry-After for a request."""


class InvalidArguments(RayServeException):
    """``args`` from which no graph can be built. Of this class, Serve's status shows the text."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def build(args: SpeechArgs | dict[str, Any]) -> Application:
    """The application of ``import_path: graphs.speech:build``.

    Raises InvalidArguments, also when a default model is not in the catalogue or not of its family,
    and on a cluster when replicas could not load their models: before Serve stops any that run.
    Raises RayServeException where Serve must not replace an application.
    """
    if isinstance(args, dict) and ray.is_initialized():  # Serve builds it
        refuse_to_replace()
    try:
        return _graph(args if isinstance(args, SpeechArgs) else SpeechArgs(**args))
    except ValidationError as error:
        raise InvalidArguments(reasons(error, "args")) from None
    except (ValueError, OSError) as error:
        raise InvalidArguments([f"args: {' '.join(str(error).split())}"]) from None


def _graph(args: SpeechArgs) -> Application:
    files = ModelFiles.of(args)
    catalogue = files.catalogue
    models = args.model_deployments()
    _check_models(args, catalogue, models)
    surge = True
    if ray.is_initialized():  # not where a config is validated
        surge = has_room(args.deployments(), _node_cpus())
        _check_files(args, files, surge)
    jobs = _jobs_here(args.jobs)
    at_once = 0 if jobs is None else jobs.concurrency * jobs.scaling.max_replicas
    drain_s = max(s.lifecycle.drain_timeout_s for s in (args.ingress, jobs) if s is not None)
    deployed = partial(_deployed, surge=surge)
    handles: dict[str, Any] = {
        "decoder": bind(
            deployed(
                Decoder, model_options(args.decoder, args.decoder.concurrency, drain_s, at_once)
            ),
            args.decoder,
        )
    }
    for family, settings in models.items():
        options = model_options(settings, settings.concurrency, drain_s, at_once)
        handles[family] = bind(deployed(MODEL_DEPLOYMENTS[family], options), settings, files)
    if (live := args.live_deployment) is not None:
        handles["live"] = bind(deployed(Live, live_options(live, drain_s)), live, files)
    defaults = {family: settings.default_model for family, settings in models.items()}
    timeouts_s = {"decoder": args.decoder.timeout_s} | {
        family: settings.timeout_s for family, settings in models.items()
    }
    if jobs is not None:
        handles["jobs"] = bind(
            deployed(JobRunner, job_options(jobs)),
            jobs,
            catalogue,
            dict(handles),
            defaults,
            timeouts_s,
            args.ingress.default_transcriber,
            args.ingress.max_seconds.get("v1"),
        )
    running = args.ingress.max_concurrent_requests + args.ingress.sessions.max_sessions + HTTP_SLACK
    options = serve_options(args.ingress, running)
    options["max_queued_requests"] = INGRESS_QUEUE
    options["autoscaling_config"]["policy"] = {"policy_function": FollowRequests}
    if args.ingress.keys_file is not None:
        options |= counter_options()
    return bind(
        deployed(Ingress, options),
        args.ingress,
        catalogue,
        handles,
        defaults,
        timeouts_s,
        args.live,
        files,
        jobs,
        args.decoder.max_seconds,
    )


def _check_files(args: SpeechArgs, files: ModelFiles, surge: bool) -> None:
    """Raises InvalidArguments where the replicas of this version would not start."""
    engines: dict[str, tuple[type, EngineSettings]] = {
        family: (MODEL_DEPLOYMENTS[family], settings)
        for family, settings in args.model_deployments().items()
    }
    if (live := args.live_deployment) is not None:
        engines["live"] = Live, live
    running = {deployment for _, deployment in running_replicas()}
    # A single replica that is stopped before its successor has started; of others Serve keeps
    # those that run when a new one does not start.
    alone = {
        name: (cls, settings)
        for name, (cls, settings) in engines.items()
        if settings.scaling.min_replicas <= 1
        and not (surge and surge_percent(settings))
        and cls.__name__ in running
    }
    deployments = {name: settings for name, (_, settings) in engines.items()}
    found = missing_on_nodes(deployments, files) or not_loadable(alone, files)
    if found:
        raise InvalidArguments([f"args.{problem}" for problem in found])


def _jobs_here(jobs: JobSettings | None) -> JobSettings | None:
    if jobs is None:
        return None
    return jobs.model_copy(update={"directory": str(resolve_path(jobs.directory))})


def _node_cpus() -> list[float]:
    """The logical CPUs of each node that has any."""
    cpus = (node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    return [count for count in cpus if count]


def _deployed(cls: type, options: dict[str, Any], *, surge: bool) -> Deployment:
    if not surge:
        options = options | {"max_surge_percent": 0}
    deployment = serve.deployment(cls, **options)
    assert isinstance(deployment, Deployment)
    return deployment


def _check_models(args: SpeechArgs, catalogue: Catalogue, models: dict[str, ModelSettings]) -> None:
    wanted = [(f, m) for f, s in models.items() for m in (s.default_model, *s.preloaded)]
    for family, model in wanted:
        entry = catalogue.find(model)
        if entry is None or entry.family != family:
            known = ", ".join(m.id for m in catalogue.models if m.family == family)
            raise ValueError(f"{family}: no model {model!r} in the catalogue; it has {known}")
    if args.live is not None:
        for model in (args.live.default_model, *args.live.preloaded):
            entry = catalogue.find(model)
            if entry is None or not entry.streaming:
                raise ValueError(f"live: {model!r} is no streaming model of the catalogue")
    speaker = args.ingress.sessions.speaker_model
    if speaker is not None:
        entry = catalogue.find(speaker)
        if entry is None or entry.format != "sherpa_onnx":
            raise ValueError(
                f"ingress.sessions.speaker_model: {speaker!r} is no speaker model of the catalogue "
                "(format sherpa_onnx)"
            )
    for table in ("openai_aliases", "whisper_rest_aliases"):
        for alias, meant in getattr(args.ingress, table).items():
            if meant is not None and catalogue.find(meant) is None:
                raise ValueError(f"ingress.{table}: {alias!r} means {meant!r}, which is unknown")
    try:
        language_code(args.ingress.asr.language)
    except InvalidRequest as error:
        raise ValueError(f"ingress.asr.language: {error}") from None
    recogniser = catalogue.find(args.ingress.default_transcriber)
    if recogniser is None or recogniser.family not in models:
        raise ValueError(
            f"ingress.default_transcriber: {args.ingress.default_transcriber!r} is not served"
        )
