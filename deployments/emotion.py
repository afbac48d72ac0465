"""GigaAM-Emo as a deployment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configs.settings import ModelSettings
from deployments.runtime.host import EngineHost
from deployments.runtime.model_access import ModelFiles, hardware
from speech.audio import Audio
from speech.transcript import Scores, Span

if TYPE_CHECKING:
    from engines.emotion import EmotionEngine


class Emotion:
    """Hears angry, sad, neutral and positive in stretches of speech."""

    def __init__(self, settings: ModelSettings, files: ModelFiles) -> None:
        self._files = files
        self._hardware = hardware(settings)
        self._host = EngineHost(settings, self._load, "emotion")

    def _load(self, model: str) -> "EmotionEngine":
        # Imported here: the graph is built also where this engine's library is not installed.
        from engines.emotion import EmotionEngine

        path = self._files.locate(self._files.entry(model))
        return EmotionEngine(path, device=self._hardware.device, threads=self._hardware.threads)

    async def classify(
        self, audio: Audio, spans: Sequence[Span], model: str, job: str | None
    ) -> Sequence[Scores]:
        """Scores of each span, in the order of ``spans``."""
        clips = [audio.cut(span.start, span.end, span.channel) for span in spans]
        return await self._host.run(
            model, lambda engine, call: engine.classify(clips, call.checkpoint), job
        )

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """See :meth:`EngineHost.reconfigure`."""
        self._host.reconfigure(user_config)

    async def check_health(self) -> None:
        """See :meth:`EngineHost.check_health`."""
        await self._host.check_health()

    def cache_stats(self) -> list[dict[str, Any]]:
        """One entry per loaded model."""
        return self._host.cache_stats()
