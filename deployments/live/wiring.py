"""The models of an ingress replica for live streams: detectors, engines of its own, or lanes."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from api.live.registry import LiveModels
from configs.catalogue import Catalogue, Family
from configs.settings import IngressSettings, LiveSettings
from deployments.live.lane_client import LaneRecognizer
from deployments.live.recogniser import lane_directory
from deployments.runtime.handle_ports import ServedEmotions, ServedTranscriber
from deployments.runtime.metrics import observe_lag
from deployments.runtime.model_access import (
    ModelFiles,
    hardware,
    streaming_engine,
    streaming_models,
)
from deployments.runtime.options import threads
from speech.audio import Samples
from speech.errors import ModelNotInstalled, ModelUnavailable, SpeechError
from speech.live.endpointing import LONGEST_UTTERANCE_S, EndpointOptions
from speech.live.session_options import LivePorts
from speech.ports import SpeakerEmbedder, StreamingRecognizer, VoiceActivity

if TYPE_CHECKING:
    from deployments.runtime.model_access import StreamingModels


def live_models(
    live: LiveSettings | None, ingress: IngressSettings, defaults: Mapping[Family, str]
) -> LiveModels:
    """The models of live streams that name none."""
    return LiveModels(
        streaming=live.default_model if live else None,
        utterance=defaults.get("onnx_asr"),
        general=ingress.default_transcriber,
        speaker=ingress.sessions.speaker_model,
    )


def live_ports(
    live: LiveSettings | None,
    ingress: IngressSettings,
    files: ModelFiles,
    catalogue: Catalogue,
    handles: Mapping[str, DeploymentHandle[Any]],
    timeouts_s: Mapping[str, float],
    local: "StreamingModels | None",
) -> LivePorts:
    """The ports of one ingress replica; ``local`` are the streaming models that run in it."""
    emotion = handles.get("emotion")
    speaker = ingress.sessions.speaker_model
    return LivePorts(
        voice_activity=_Detectors().open,
        streaming=_streaming(live, ingress, handles, local),
        transcriber=ServedTranscriber(catalogue, handles, timeouts_s),
        emotions=ServedEmotions(emotion, timeouts_s["emotion"]) if emotion else None,
        embedder=LazyEmbedder(partial(_speaker_engine, files, speaker)) if speaker else None,
        observe_lag=observe_lag,
    )


def local_models(
    live: LiveSettings | None, ingress: IngressSettings, files: ModelFiles
) -> "StreamingModels | None":
    """The streaming models of an ingress replica, on its resources; None where it runs none.

    They load when the first stream needs them: on a GPU that takes long, so there they load now.
    """
    if live is None or live.placement == "replicas":
        return None
    found = hardware(live.model_copy(update={"resources": ingress.resources}))
    models = streaming_models(files, found)
    if found.target.tries_gpu:
        for model in live.preloaded:
            streaming_engine(models, model)
    return models


def _streaming(
    live: LiveSettings | None,
    ingress: IngressSettings,
    handles: Mapping[str, DeploymentHandle[Any]],
    local: "StreamingModels | None",
) -> StreamingRecognizer | None:
    if live is None:
        return None
    if local is None:
        return LaneRecognizer(
            lane_directory(handles["live"]),
            tick_s=live.tick_s,
            recover_s=live.recover_s,
            max_utterance_s=LONGEST_UTTERANCE_S,
        )
    from engines.onnx_asr.local_recognizer import LocalRecognizer

    load = partial(streaming_engine, local)
    return LocalRecognizer(
        load, tick_s=live.tick_s, max_streams=live.max_streams, threads=threads(ingress)
    )


def recognition_lag_s(ports: LivePorts) -> float:
    """The lag of the recogniser in this process; recogniser replicas scale by their own."""
    if ports.streaming is None or isinstance(ports.streaming, LaneRecognizer):
        return 0.0
    from engines.onnx_asr.local_recognizer import LocalRecognizer

    assert isinstance(ports.streaming, LocalRecognizer)
    return ports.streaming.lag_s()


class _Detectors:
    """Voice activity detectors. The network loads in a thread, with the first stream."""

    def __init__(self) -> None:
        self._silero: Any = None
        self._missing: ImportError | None = None
        # Imported before the replica takes requests: on its event loop it would delay all streams.
        try:
            import engines.vad.silero_vad  # noqa: F401
        except ImportError as error:
            self._missing = error

    def open(self, options: EndpointOptions) -> VoiceActivity:
        """A detector for one stream. Raises ModelNotInstalled, ModelUnavailable."""
        if self._missing is not None:
            raise ModelNotInstalled(
                "voice activity detection is not installed on this server", str(self._missing)
            )
        from engines.vad.silero_vad import StreamingSilero

        if self._silero is None:
            self._silero = StreamingSilero()
        silero: VoiceActivity = self._silero.open()
        if options.webrtc_mode is None:
            return silero
        from engines.vad.webrtc_vad import WebRtcVad

        return _Both(silero, WebRtcVad(options.webrtc_mode))


class _Both:
    """Speech where two detectors agree; both process the same windows."""

    def __init__(self, first: VoiceActivity, second: VoiceActivity) -> None:
        self._first = first
        self._second = second

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        return np.minimum(await self._first.feed(samples), await self._second.feed(samples))


class LazyEmbedder:
    """A :class:`speech.ports.SpeakerEmbedder` that loads in a thread when it is first used.

    Streams that need it meanwhile wait for the same load. After a failure the next call loads
    again.
    """

    def __init__(self, load: Callable[[], SpeakerEmbedder]) -> None:
        """``load`` blocks, for as long as a download takes."""
        self._load = load
        self._loading: asyncio.Task[SpeakerEmbedder] | None = None

    async def embed(self, samples: Samples) -> NDArray[np.float32]:
        """See the port; raises ModelUnavailable where the model does not load."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._loaded())
        # Shielded: a stream that ends must not end the load for the others.
        engine = await asyncio.shield(self._loading)
        return await engine.embed(samples)

    async def _loaded(self) -> SpeakerEmbedder:
        try:
            return await asyncio.to_thread(self._load)
        except Exception as error:
            self._loading = None
            if isinstance(error, SpeechError):
                raise
            raise ModelUnavailable("the speaker model does not load", detail=str(error)) from error


def _speaker_engine(files: ModelFiles, model: str) -> SpeakerEmbedder:
    from engines.diarization.speaker_embedding import SpeakerEngine

    engine = SpeakerEngine(files.locate(files.entry(model)), device="cpu")
    engine.warm_up()
    return engine
