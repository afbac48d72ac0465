"""Models that recognise numbers: a "word" is a stretch of samples that all have the value of its
number, so every test knows what is to be recognised, sample by sample.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Overloaded
from speech.live.endpointing import EndpointOptions
from speech.live.session_options import LivePorts
from speech.media.segmentation import WINDOW_SAMPLES
from speech.ports import DecodedAudio, EmotionOptions, TranscribeOptions
from speech.transcript import Recognition, Scores, Segment, Span, Word
from tests.unit.live_audio import FULL_SCALE, WHISPERED, numbers_in, silence


class Gate:
    """Open at first; while it is shut, whoever awaits it waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def __call__(self) -> None:
        self.reached.set()
        await self._open.wait()


class FakeModels:
    """All ports of a live stream in one, and a record of their calls.

    ``unstable``: the utterance recogniser takes a word that is not over yet for another.
    ``yields``: how often voice activity detection yields to the event loop in a block.
    ``max_streams``: how many streams of the frame-synchronous recogniser may be open.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.opened: list[tuple[str, str | None]] = []
        self.endpointing: list[EndpointOptions] = []
        self.asked: list[TranscribeOptions] = []
        self.recognised: list[Samples] = []
        self.trailing_silence_s: list[float] = []
        self.failure: Exception | None = None
        self.unstable = False
        self.yields = 0
        self.max_streams = 1000
        self.opening, self.activity, self.feeding, self.transcribing = (Gate() for _ in range(4))

    def ports(self) -> LivePorts:
        return LivePorts(self.voice_activity, self, self, self, None)

    def voice_activity(self, options: EndpointOptions) -> "Loudness":
        self.endpointing.append(options)
        return Loudness(self)

    async def open(self, model: str, hotwords: str | None = None) -> "FakeStream":
        await self.opening()
        if self.streams >= self.max_streams:
            raise Overloaded(f"{self.streams} streams are open already")
        self.opened.append((model, hotwords))
        self.streams += 1
        return FakeStream(self)

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        samples = audio.content.mono
        self.asked.append(options)
        self.recognised.append(samples)
        await self.transcribing()
        if self.failure is not None:
            raise self.failure
        words = numbers_in(samples)
        if self.unstable and words and words[-1].end == audio.duration:
            words = (*words[:-1], replace(words[-1], text=f" hm{len(self.asked)}"))
        timed = words if options.word_timestamps else ()
        text = "".join(word.text for word in words)
        return Recognition((Segment(0.0, audio.duration, text, timed),))

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        return [{"calm": 1.0} for _ in spans]

    @property
    def longest_s(self) -> float:
        """The longest audio of one call of the utterance recogniser."""
        return max(len(samples) for samples in self.recognised) / SAMPLE_RATE


class Loudness:
    """Speech is a window that is neither silent nor whispered."""

    def __init__(self, models: FakeModels) -> None:
        self._models = models
        self._rest = silence(0)

    async def feed(self, samples: Samples) -> NDArray[np.float32]:
        await self._models.activity()
        for _ in range(self._models.yields):
            await asyncio.sleep(0)
        joined = np.concatenate((self._rest, samples))
        whole = len(joined) - len(joined) % WINDOW_SAMPLES
        self._rest = joined[whole:]
        windows = joined[:whole].reshape(-1, WINDOW_SAMPLES)
        speech = ((windows > 0) & (windows < WHISPERED / FULL_SCALE)).any(axis=1)
        return np.where(speech, np.float32(0.99), np.float32(0.01))


class FakeStream:
    """The frame-synchronous recogniser of one stream."""

    def __init__(self, models: FakeModels) -> None:
        self._models = models
        self._fed = silence(0)

    async def feed(self, samples: Samples) -> tuple[Word, ...]:
        await self._models.feeding()
        self._fed = np.concatenate((self._fed, samples))
        return numbers_in(self._fed)

    async def finish(self, trailing_silence_s: float = 0.0) -> tuple[Word, ...]:
        self._models.trailing_silence_s.append(trailing_silence_s)
        fed, self._fed = self._fed, silence(0)
        return numbers_in(fed)

    async def close(self) -> None:
        self._models.streams -= 1
