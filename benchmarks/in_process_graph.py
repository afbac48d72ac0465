"""The graph of the service in one process: its engines as the ports, each call in a thread."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from configs.catalogue import CATALOGUE_PATH, REPOSITORY_ROOT, Catalogue
from engines.diarization.backends import DiarizationEngine, load_engine
from engines.emotion import EmotionEngine
from engines.onnx_asr.offline import OnnxAsrEngine
from engines.whisper.engine import WhisperEngine
from speech.media.decoding import decode
from speech.pipeline import SpeechGraph
from speech.ports import DecodedAudio, DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import Diarization, Recognition, Scores, Span

DEMO = REPOSITORY_ROOT / "models" / "demo"
RECOGNISERS = ("demo-whisper", "demo-nemo")


class Engines:
    """The demo's engines, set up as the service sets them up: the four ports of the graph."""

    def __init__(self, device: Any) -> None:
        """``device`` is "cpu" or "cuda"; on the CPU each engine has one thread."""
        catalogue = Catalogue.load(CATALOGUE_PATH)
        whisper, onnx = RECOGNISERS
        entries = {model.id: model for model in catalogue.models}
        self._recognisers: Mapping[str, Any] = {
            whisper: WhisperEngine(DEMO / whisper, device=device, compute_type="auto", threads=1),
            onnx: OnnxAsrEngine(entries[onnx], DEMO / onnx, device=device, threads=1),
        }
        self._diarizer: DiarizationEngine = load_engine(
            entries["demo-pyannote"], DEMO / "demo-pyannote", device=device, threads=1
        )
        self._emotions = EmotionEngine(DEMO / "demo-gigaam-emo", device=device, threads=1)

    def graph(self) -> SpeechGraph:
        """The graph over these engines."""
        return SpeechGraph(self, self, self, self)

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        """See :class:`speech.ports.Decoder`."""
        audio = await asyncio.to_thread(
            decode,
            data,
            keep_channels=keep_channels,
            max_seconds=4 * 3600.0,
            max_channels=8,
            speedup=speedup,
        )
        channels = 1 if audio.channels is None else len(audio.channels)
        return DecodedAudio(audio, audio.duration, channels, audio.warnings)

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        """See :class:`speech.ports.Transcriber`."""
        engine = self._recognisers[str(options.model)]
        recognition: Recognition = await asyncio.to_thread(
            engine.transcribe, audio.content.track(channel), options
        )
        return recognition

    async def stream(
        self, audio: DecodedAudio, options: TranscribeOptions
    ) -> AsyncGenerator[Recognition, None]:
        """See :class:`speech.ports.FileTranscriber`."""
        yield await self.transcribe(audio, options, None)

    async def diarize(self, audio: DecodedAudio, options: DiarizeOptions) -> Diarization:
        """See :class:`speech.ports.Diarizer`."""
        return await asyncio.to_thread(self._diarizer.diarize, audio.content.mono, options)

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        """See :class:`speech.ports.EmotionClassifier`."""
        clips = [audio.content.cut(span.start, span.end, span.channel) for span in spans]
        return await asyncio.to_thread(self._emotions.classify, clips)
