"""Vosk and GigaAM models, on sherpa-onnx, as a deployment."""

from typing import TYPE_CHECKING

from deployments.runtime.host import RecogniserHost

if TYPE_CHECKING:
    from engines.vosk.offline import VoskEngine


class Vosk(RecogniserHost):
    """Recognises speech with the Vosk and GigaAM models of the catalogue."""

    def load(self, model: str) -> "VoskEngine":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.vosk.offline import VoskEngine

        entry = self._files.entry(model)
        hw = self._hardware
        return VoskEngine(entry, self._files.locate(entry), device=hw.device, threads=hw.threads)
