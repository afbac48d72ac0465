"""The models of an ingress replica for live streams: detectors, engines of its own, or lanes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

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
from deployments.runtime.model_access import ModelFiles, hardware, streaming_engine
from speech.audio import Samples
from speech.errors import ModelUnavailable
from speech.live.endpointing import LONGEST_UTTERANCE_S, EndpointOptions
from speech.live.session import LivePorts
from speech.ports import SpeakerEmbedder, StreamingRecognizer, VoiceActivity


def live_models(
    live: LiveSettings | None, ingress: IngressSettings, defaults: Mapping[Family, str]
) -> LiveModels:
    """The models of live streams that name none."""
    return LiveModels(
        streaming=live.default_model if live else None,
        utterance=defaults.get("vosk"),
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
) -> LivePorts:
    """The ports of one ingress replica; engines load when the first stream needs them."""
    emotion = handles.get("emotion")
    speaker = ingress.sessions.speaker_model
    return LivePorts(
        voice_activity=_Detectors().open,
        streaming=_streaming(live, ingress, files, handles),
        transcriber=ServedTranscriber(catalogue, handles, timeouts_s),
        emotions=ServedEmotions(emotion, timeouts_s["emotion"]) if emotion else None,
        embedder=_LazyEmbedder(files, speaker) if speaker else None,
        observe_lag=observe_lag,
    )


def _streaming(
    live: LiveSettings | None,
    ingress: IngressSettings,
    files: ModelFiles,
    handles: Mapping[str, DeploymentHandle[Any]],
) -> StreamingRecognizer | None:
    if live is None:
        return None
    if live.placement == "replicas":
        return LaneRecognizer(
            lane_directory(handles["live"]),
            tick_s=live.tick_s,
            recover_s=live.recover_s,
            max_utterance_s=LONGEST_UTTERANCE_S,
        )
    from engines.vosk.local_recognizer import LocalRecognizer

    # The engine runs in the ingress replica, on its resources.
    found = hardware(live.model_copy(update={"resources": ingress.resources}))
    load = partial(streaming_engine, files, found)
    return LocalRecognizer(load, tick_s=live.tick_s, max_streams=live.max_streams)


def recognition_lag_s(ports: LivePorts) -> float:
    """The lag of the recogniser in this process; recogniser replicas scale by their own."""
    if ports.streaming is None or isinstance(ports.streaming, LaneRecognizer):
        return 0.0
    from engines.vosk.local_recognizer import LocalRecognizer

    assert isinstance(ports.streaming, LocalRecognizer)
    return ports.streaming.lag_s()


class _Detectors:
    """Voice activity detectors; the libraries load with the first stream."""

    def __init__(self) -> None:
        self._silero: Any = None

    def open(self, options: EndpointOptions) -> VoiceActivity:
        try:
            from engines.vad.silero_vad import StreamingSilero
        except ImportError as error:
            raise ModelUnavailable(f"voice activity detection is not installed: {error}") from error
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


class _LazyEmbedder:
    def __init__(self, files: ModelFiles, model: str) -> None:
        self._files = files
        self._model = model
        self._engine: SpeakerEmbedder | None = None

    async def embed(self, samples: Samples) -> NDArray[np.float32]:
        if self._engine is None:
            from engines.diarization.speaker_embedding import SpeakerEngine

            entry = self._files.entry(self._model)
            self._engine = SpeakerEngine(self._files.locate(entry), device="cpu")
        return await self._engine.embed(samples)
