"""The ports of the graph as Serve handles. Audio travels by reference, results as plain values.

``job`` is the id of the job that the calls are for; None for interactive calls.
``longest_absence_s`` is how long a deployment may have had no replica before a call is rejected.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from configs.catalogue import Catalogue
from deployments.runtime.calls import ReplicaDied, call, call_for_reference
from speech.audio import Audio, Samples
from speech.errors import ModelUnavailable, UnsupportedAudio
from speech.ports import DecodedAudio, DiarizeOptions, EmotionOptions, TranscribeOptions
from speech.transcript import Diarization, Recognition, Scores, Span

NOT_DEPLOYED = "a task without a deployment is rejected before the graph runs"


class ServedDecoder:
    """The Decoder deployment."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        timeout_s: float,
        job: str | None = None,
        longest_absence_s: float = math.inf,
    ) -> None:
        self._decode = handle.decode
        self._bounds = {"timeout_s": timeout_s, "longest_absence_s": longest_absence_s}
        self._job = job

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        """See :class:`speech.ports.Decoder`. A file that kills two decoders is unsupported."""
        try:
            reference, facts = await call_for_reference(
                self._decode, data, keep_channels, speedup, self._job, **self._bounds
            )
        except ReplicaDied:
            raise UnsupportedAudio("this file crashes the audio decoder") from None
        assert isinstance(facts, DecodedAudio)
        return replace(facts, content=reference)

    async def fetch_samples(self, audio: DecodedAudio) -> Samples:
        """See :class:`speech.ports.Decoder`."""
        fetched = await audio.content
        assert isinstance(fetched, Audio)
        return fetched.mono


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
        entry = self._catalogue.find(str(options.model))
        assert entry is not None, "the ingress resolves models before the graph runs"
        handle = self._handles[entry.family].options(multiplexed_model_id=entry.id)
        try:
            packed = await call(
                handle.transcribe,
                audio.content,
                options,
                channel,
                self._job,
                timeout_s=self._timeouts_s[entry.family],
                longest_absence_s=self._longest_absence_s,
            )
        except ReplicaDied:
            raise _unavailable(entry.id) from None
        return Recognition.unpack(packed)


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
