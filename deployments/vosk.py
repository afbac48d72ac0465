"""Vosk and GigaAM models, on sherpa-onnx, as a deployment."""

from typing import TYPE_CHECKING

from deployments.runtime.host import RecogniserHost
from engines import device

if TYPE_CHECKING:
    from engines.vosk.offline import VoskEngine


class Vosk(RecogniserHost):
    """Recognises speech with the Vosk and GigaAM models of the catalogue."""

    def load(self, model: str) -> "device.Loaded[VoskEngine]":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.vosk.offline import VoskEngine

        entry = self._files.entry(model)
        path = self._files.locate(entry)
        hw = self._hardware
        return device.load(
            model,
            hw.target,
            "sherpa_onnx",
            lambda on: VoskEngine(entry, path, device=on, threads=hw.threads),
        )
