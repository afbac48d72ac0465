"""Speaker diarization as a deployment: pyannote.audio, or sherpa-onnx without torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.settings import ModelSettings
from deployments.runtime.host import EngineHost
from deployments.runtime.model_access import ModelFiles, hardware
from speech.audio import Audio
from speech.ports import DiarizeOptions
from speech.transcript import Diarization as Speakers

if TYPE_CHECKING:
    from engines.diarization.backends import DiarizationEngine

ON_CPU = "@cpu"
"""Suffix of a cached engine that was asked to leave the GPU alone (``use_gpu: false``)."""


class Diarization:
    """Finds who spoke when, by voice or by channel."""

    def __init__(self, settings: ModelSettings, files: ModelFiles) -> None:
        self._files = files
        self._hardware = hardware(settings)
        self._host = EngineHost(settings, self._load, "diarization")

    def _load(self, key: str) -> "DiarizationEngine":
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.diarization.backends import load_engine

        entry = self._files.entry(key.removesuffix(ON_CPU))
        hw = self._hardware
        device = "cpu" if key.endswith(ON_CPU) else hw.device
        return load_engine(entry, self._files.locate(entry), device=device, threads=hw.threads)

    async def diarize(self, audio: Audio, options: DiarizeOptions, job: str | None) -> Speakers:
        """Turns by voice, or in ``stereo_mode`` the turns of each channel."""
        if options.stereo_mode:
            return await self._host.run_plain(lambda: self._by_channel(audio), job)
        on_gpu = self._hardware.device == "cuda"
        key = str(options.model) + (ON_CPU if on_gpu and not options.use_gpu else "")
        return await self._host.run(
            key,
            # A job does not stop half-way here: the engine holds its lock, and all would wait.
            lambda engine, call: engine.diarize(audio.mono, options, call.is_cancelled),
            job,
        )

    def _by_channel(self, audio: Audio) -> Speakers:
        from engines.diarization.channel_diarization import diarize_channels
        from engines.vad.silero_vad import SileroVad

        return diarize_channels(audio, SileroVad().speech)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """See :meth:`EngineHost.reconfigure`."""
        self._host.reconfigure(user_config)

    async def check_health(self) -> None:
        """See :meth:`EngineHost.check_health`."""
        await self._host.check_health()

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model."""
        return self._host.cache_stats()
