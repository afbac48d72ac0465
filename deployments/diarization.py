"""Speaker diarization as a deployment: pyannote.audio, or sherpa-onnx without torch."""

from typing import TYPE_CHECKING

from deployments.runtime.host import EngineHost
from speech.audio import Audio
from speech.ports import DiarizeOptions
from speech.transcript import Diarization as Speakers

if TYPE_CHECKING:
    from engines.diarization.backends import DiarizationEngine

ON_CPU = "@cpu"
"""Suffix of a cached engine that stays on the CPU of a replica with a GPU (``use_gpu: false``)."""


class Diarization(EngineHost["DiarizationEngine"]):
    """Finds who spoke when, by voice or by channel."""

    task_type = "diarization"

    def load(self, model: str) -> "DiarizationEngine":
        """See :meth:`EngineHost.load`; with ON_CPU behind the id, on the CPU."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.diarization.backends import load_engine

        entry = self._files.entry(model.removesuffix(ON_CPU))
        hw = self._hardware
        device = "cpu" if model.endswith(ON_CPU) else hw.device
        return load_engine(entry, self._files.locate(entry), device=device, threads=hw.threads)

    async def diarize(self, audio: Audio, options: DiarizeOptions, job: str | None) -> Speakers:
        """Turns by voice, or in ``stereo_mode`` the turns of each channel."""
        if options.stereo_mode:
            return await self._run_without_model(lambda: self._by_channel(audio), job)
        on_gpu = self._hardware.device == "cuda"
        model = str(options.model) + (ON_CPU if on_gpu and not options.use_gpu else "")
        return await self._run(
            model,
            # No checkpoint: a batch call that yields here would keep the engine's lock from all.
            lambda engine, call: engine.diarize(audio.mono, options, call.is_cancelled),
            job,
        )

    def _by_channel(self, audio: Audio) -> Speakers:
        from engines.diarization.channel_diarization import diarize_channels
        from engines.vad.silero_vad import SileroVad

        return diarize_channels(audio, SileroVad().speech)
