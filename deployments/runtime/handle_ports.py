"""The ports of the graph as Serve handles. Audio travels by reference, results as plain values.

``job`` is the id of the job that the calls are for; None for interactive calls.
``longest_absence_s`` is how long a deployment may have had no replica before a call is rejected.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from configs.catalogue import Catalogue
from deployments.runtime.calls import ReplicaDied, call, call_for_reference, stream
from speech.errors import ModelUnavailable, UnsupportedAudio
from speech.media.plain_wav import read_plain_wav
from speech.ports import DecodedAudio, DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import Diarization, Recognition, Scores, Span

logger = logging.getLogger(f"speechgraph.{__name__}")

NOT_DEPLOYED = "a task without a deployment is rejected before the graph runs"


class ServedDecoder:
    """The Decoder deployment; short WAV files that need no decoder are read in this process.

    ``plain_wav_s`` is the longest of these, seconds.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        timeout_s: float,
        job: str | None = None,
        longest_absence_s: float = math.inf,
        plain_wav_s: float = 0.0,
    ) -> None:
        self._decode = handle.decode
        self._bounds = {"timeout_s": timeout_s, "longest_absence_s": longest_absence_s}
        self._job = job
        self._plain_wav_s = plain_wav_s

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        """See :class:`speech.ports.Decoder`. A file that kills two decoders is unsupported."""
        if speedup == 1.0 and data.startswith(b"RIFF"):
            plain = await asyncio.to_thread(_read_and_put, data, self._plain_wav_s)
            if plain is not None:
                return plain
        try:
            reference, facts = await call_for_reference(
                self._decode, data, keep_channels, speedup, self._job, **self._bounds
            )
        except ReplicaDied:
            raise UnsupportedAudio("this file crashes the audio decoder") from None
        assert isinstance(facts, DecodedAudio)
        return replace(facts, content=reference)


def _read_and_put(data: bytes, max_seconds: float) -> DecodedAudio | None:
    """The audio of a plain WAV file in the object store; None for every other file."""
    audio = read_plain_wav(data, max_seconds)
    return None if audio is None else DecodedAudio(ray.put(audio), audio.duration)


class ServedTranscriber:
    """The recognisers of the graph; the family of the model selects the deployment."""

    def __init__(
        self,
        catalogue: Catalogue,
        handles: Mapping[str, DeploymentHandle[Any]],
        timeouts_s: Mapping[str, float],
        job: str | None = None,
        longest_absence_s: float = math.inf,
    ) -> None:
        self._job = job
        self._longest_absence_s = longest_absence_s
        self._catalogue = catalogue
        self._handles = handles
        self._timeouts_s = timeouts_s

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        """See :class:`speech.ports.Transcriber`."""
        model, handle, bounds = self._route(options)
        try:
            packed = await call(
                handle.transcribe, audio.content, options, channel, self._job, **bounds
            )
        except ReplicaDied:
            raise _unavailable(model) from None
        return Recognition.unpack(packed)

    async def stream(
        self, audio: DecodedAudio, options: TranscribeOptions
    ) -> AsyncGenerator[Recognition, None]:
        """See :class:`speech.ports.FileTranscriber`.

        When the replica dies, another one begins again, and segments from before the end of those
        that were yielded are left out.
        """
        model, handle, bounds = self._route(options)
        reached_s = 0.0
        for _ in range(2):
            parts = stream(handle.stream, audio.content, options, **bounds)
            try:
                async with aclosing(parts):
                    async for packed in parts:
                        part = Recognition.unpack(packed)
                        new = tuple(s for s in part.segments if s.start >= reached_s)
                        yield replace(part, segments=new)
                        reached_s = max([reached_s, *(s.end for s in new)])
                return
            except ReplicaDied as death:
                logger.warning("replica of %s died under a stream: %s", model, death.__cause__)
        raise _unavailable(model)

    def _route(
        self, options: TranscribeOptions
    ) -> tuple[str, DeploymentHandle[Any], dict[str, float]]:
        entry = self._catalogue.find(str(options.model))
        assert entry is not None, "the ingress resolves models before the graph runs"
        handle = self._handles[entry.family].options(multiplexed_model_id=entry.id)
        bounds = {
            "timeout_s": self._timeouts_s[entry.family],
            "longest_absence_s": self._longest_absence_s,
        }
        return entry.id, handle, bounds


class ServedDiarizer:
    """The Diarization deployment."""

    def __init__(
        self,
        handle: DeploymentHandle[Any] | None,
        timeout_s: float,
        job: str | None = None,
        longest_absence_s: float = math.inf,
    ) -> None:
        self._handle = handle
        self._bounds = {"timeout_s": timeout_s, "longest_absence_s": longest_absence_s}
        self._job = job

    async def diarize(self, audio: DecodedAudio, options: DiarizeOptions) -> Diarization:
        """See :class:`speech.ports.Diarizer`."""
        assert self._handle is not None, NOT_DEPLOYED
        model = str(options.model)
        handle = self._handle.options(multiplexed_model_id=model)
        try:
            found = await call(handle.diarize, audio.content, options, self._job, **self._bounds)
        except ReplicaDied:
            raise _unavailable(model) from None
        assert isinstance(found, Diarization)
        return found


class ServedEmotions:
    """The Emotion deployment."""

    def __init__(
        self,
        handle: DeploymentHandle[Any] | None,
        timeout_s: float,
        job: str | None = None,
        longest_absence_s: float = math.inf,
    ) -> None:
        self._handle = handle
        self._bounds = {"timeout_s": timeout_s, "longest_absence_s": longest_absence_s}
        self._job = job

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> Sequence[Scores]:
        """See :class:`speech.ports.EmotionClassifier`."""
        assert self._handle is not None, NOT_DEPLOYED
        model = str(options.model)
        handle = self._handle.options(multiplexed_model_id=model)
        try:
            scores = await call(
                handle.classify,
                audio.content,
                list(spans),
                model,
                self._job,
                **self._bounds,
            )
        except ReplicaDied:
            raise _unavailable(model) from None
        assert isinstance(scores, list)
        return scores


def _unavailable(model: str) -> ModelUnavailable:
    return ModelUnavailable(f"the replica of {model} died twice under this request", 5.0)
