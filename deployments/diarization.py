"""Speaker diarization as a deployment: pyannote.audio, or sherpa-onnx without torch."""

from dataclasses import replace
from typing import TYPE_CHECKING

from deployments.runtime.host import EngineHost
from engines import device
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

    def load(self, model: str) -> "device.Loaded[DiarizationEngine]":
        """See :meth:`EngineHost.load`; with ON_CPU behind the id, on the CPU."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.diarization.backends import backend, load_engine

        entry = self._files.entry(model.removesuffix(ON_CPU))
        path = self._files.locate(entry)
        hw = self._hardware
        target = replace(hw.target, asked="cpu") if model.endswith(ON_CPU) else hw.target
        return device.load(
            model,
            target,
            backend(entry),
            lambda on: load_engine(entry, path, device=on, threads=hw.threads),
        )

    async def diarize(self, audio: Audio, options: DiarizeOptions, job: str | None) -> Speakers:
        """Turns by voice, or in ``stereo_mode`` the turns of each channel."""
        if options.stereo_mode:
            return await self._run_without_model(lambda: self._by_channel(audio), job)
        may_use_gpu = self._hardware.target.tries_gpu
        model = str(options.model) + (ON_CPU if may_use_gpu and not options.use_gpu else "")
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
