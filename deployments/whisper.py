"""Whisper models as a deployment."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.settings import ModelSettings
from deployments.runtime.host import EngineHost
from deployments.runtime.model_access import ModelFiles, hardware
from speech.audio import Audio
from speech.ports import TranscribeOptions

if TYPE_CHECKING:
    from engines.whisper.engine import WhisperEngine


class Whisper:
    """Recognises speech with the Whisper models of the catalogue."""

    def __init__(self, settings: ModelSettings, files: ModelFiles) -> None:
        self._files = files
        self._hardware = hardware(settings)
        self._host = EngineHost(settings, self._load, "transcribe")

    def _load(self, model: str) -> "WhisperEngine":
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.whisper.engine import WhisperEngine

        path = self._files.locate(self._files.entry(model))
        hw = self._hardware
        return WhisperEngine(
            path, device=hw.device, compute_type=hw.compute_type, threads=hw.threads
        )

    async def transcribe(
        self,
        audio: Audio,
        options: TranscribeOptions,
        channel: int | None,
        job: str | None,
    ) -> dict[str, Any]:
        """Recognise one channel; a packed :class:`speech.transcript.Recognition`."""
        samples = audio.track(channel)
        recognition = await self._host.run(
            str(options.model),
            lambda engine, call: engine.transcribe(samples, options, call.checkpoint, call.report),
            job,
        )
        return recognition.pack()

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """See :meth:`EngineHost.reconfigure`."""
        self._host.reconfigure(user_config)

    async def check_health(self) -> None:
        """See :meth:`EngineHost.check_health`."""
        await self._host.check_health()

    def progress(self) -> dict[str, float]:
        """See :meth:`EngineHost.progress`."""
        return self._host.progress()

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model."""
        return self._host.cache_stats()
