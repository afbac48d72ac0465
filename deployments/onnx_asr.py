"""Speech recognisers in ONNX, such as Vosk and GigaAM, as a deployment."""

from typing import TYPE_CHECKING

from deployments.runtime.host import RecogniserHost
from engines import device

if TYPE_CHECKING:
    from engines.onnx_asr.offline import OnnxAsrEngine


class OnnxAsr(RecogniserHost["OnnxAsrEngine"]):
    """Recognises speech with the models of the catalogue that are in ONNX."""

    def load(self, model: str) -> "device.Loaded[OnnxAsrEngine]":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.onnx_asr.offline import OnnxAsrEngine

        entry = self._files.entry(model)
        path = self._files.locate(entry)
        hw = self._hardware
        return device.load(
            model,
            hw.target,
            "onnxruntime" if entry.backend == "onnx_asr" else "sherpa_onnx",
            lambda on: OnnxAsrEngine(entry, path, device=on, threads=hw.threads),
        )
