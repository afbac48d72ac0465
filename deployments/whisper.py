"""Whisper models as a deployment."""

from typing import TYPE_CHECKING

from configs.engine_settings import WhisperSettings
from deployments.runtime.host import RecogniserHost
from deployments.runtime.metrics import count_reruns
from engines import device

if TYPE_CHECKING:
    from engines.whisper.engine import WhisperEngine


class Whisper(RecogniserHost):
    """Recognises speech with the Whisper models of the catalogue."""

    _settings: WhisperSettings

    def load(self, model: str) -> "device.Loaded[WhisperEngine]":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.whisper.engine import WhisperEngine

        path = self._files.locate(self._files.entry(model))
        hw = self._hardware
        return device.load(
            model,
            hw.target,
            "ctranslate2",
            lambda on: WhisperEngine(
                path,
                device=on,
                compute_type=hw.compute_type,
                threads=hw.threads,
                encoder=self._settings.encoder,
                on_rerun=lambda windows: count_reruns(model, windows),
            ),
        )
