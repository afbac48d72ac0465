"""Decoding as a deployment of its own: a malformed file can at worst kill this process."""

import time
from collections.abc import AsyncGenerator

from configs.settings import DecoderSettings
from deployments.runtime.hold import Holdable
from deployments.runtime.worker import Call, Worker
from speech.audio import Audio
from speech.media.decoding import decode
from speech.ports import DecodedAudio


class Decoder(Holdable):
    """Turns uploaded files into audio."""

    def __init__(self, settings: DecoderSettings) -> None:
        self._settings = settings
        self._worker = Worker(settings.concurrency)

    async def decode(
        self, data: bytes, keep_channels: bool, speedup: float, job: str | None
    ) -> AsyncGenerator[Audio | DecodedAudio, None]:
        """The audio, then what the caller needs to know of it, without ``content``.

        Two values, so that the caller can leave the first in the object store. See
        :func:`speech.media.decoding.decode`.
        """
        deadline = time.monotonic() + self._settings.timeout_s

        def work(call: Call) -> Audio:
            with call.slot():
                return decode(
                    data,
                    keep_channels=keep_channels,
                    max_seconds=self._settings.max_seconds,
                    max_channels=self._settings.max_channels,
                    speedup=speedup,
                    deadline=lambda: call.checkpoint() or time.monotonic() > deadline,
                )

        audio = await self._worker.run(work, job)
        channels = 1 if audio.channels is None else len(audio.channels)
        yield audio
        yield DecodedAudio(None, audio.duration, channels, audio.warnings)
