"""Whisper models as a deployment."""

from typing import TYPE_CHECKING

from deployments.runtime.host import RecogniserHost

if TYPE_CHECKING:
    from engines.whisper.engine import WhisperEngine


class Whisper(RecogniserHost):
    """Recognises speech with the Whisper models of the catalogue."""

    def load(self, model: str) -> "WhisperEngine":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.whisper.engine import WhisperEngine

        path = self._files.locate(self._files.entry(model))
        hw = self._hardware
        return WhisperEngine(
            path, device=hw.device, compute_type=hw.compute_type, threads=hw.threads
        )
