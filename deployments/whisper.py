"""Whisper models as a deployment."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from configs.engine_settings import WhisperSettings
from deployments.runtime.host import RecogniserHost
from deployments.runtime.metrics import count_reruns
from deployments.runtime.worker import Call
from engines import device
from speech.audio import Samples
from speech.ports import TranscribeOptions
from speech.transcript import Recognition, Segment

if TYPE_CHECKING:
    from engines.whisper.engine import WhisperEngine


class Whisper(RecogniserHost["WhisperEngine"]):
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
                max_batch=self._settings.max_batch,
                on_rerun=lambda windows: count_reruns(model, windows),
            ),
        )

    def _recognise(
        self,
        engine: "WhisperEngine",
        samples: Samples,
        options: TranscribeOptions,
        call: Call,
        emit: Callable[[Segment], None],
    ) -> Recognition:
        return engine.transcribe(
            samples,
            options,
            call.checkpoint,
            call.report,
            emit,
            background=call.job is not None,
        )
