"""GigaAM-Emo as a deployment."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deployments.runtime.host import EngineHost
from engines import device
from speech.audio import Audio
from speech.transcript import Scores, Span

if TYPE_CHECKING:
    from engines.emotion import EmotionEngine


class Emotion(EngineHost["EmotionEngine"]):
    """Classifies stretches of speech as angry, sad, neutral or positive."""

    task_type = "emotion"

    def load(self, model: str) -> "device.Loaded[EmotionEngine]":
        """See :meth:`EngineHost.load`."""
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.emotion import EmotionEngine

        path = self._files.locate(self._files.entry(model))
        hw = self._hardware
        return device.load(
            model,
            hw.target,
            "onnxruntime",
            lambda on: EmotionEngine(path, device=on, threads=hw.threads),
        )

    async def classify(
        self, audio: Audio, spans: Sequence[Span], model: str, job: str | None
    ) -> Sequence[Scores]:
        """Scores of each span, in the order of ``spans``."""
        clips = [audio.cut(span.start, span.end, span.channel) for span in spans]
        return await self._run(
            model, lambda engine, call: engine.classify(clips, call.checkpoint), job
        )
