"""The batched mode: windows of speech that voice activity detection has cut, several at a time.

The result is that of faster-whisper's ``BatchedInferencePipeline`` for the same options. Windows go
through the scheduler, which puts them into batches with those of other requests.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import (
    Segment,
    Word,
    get_compression_ratio,
    get_suppressed_tokens,
    restore_speech_timestamps,
)
from faster_whisper.vad import VadOptions, collect_chunks, get_speech_timestamps
from numpy.typing import NDArray

from engines.whisper.request_model import RequestModel
from engines.whisper.windows import Window
from speech.audio import SAMPLE_RATE, Samples
from speech.ports import TranscribeOptions

_BATCHES_AT_ONCE = 2
"""Of one request: while the windows of one batch run, those of the next are prepared."""


class BatchedInfo(NamedTuple):
    """The language of a transcription; the probability is 1 where the language was given."""

    language: str
    language_probability: float


class BatchedTranscription:
    """One request in the batched mode.

    ``vad`` finds the speech, of which windows hold ``window_s`` at most. Twice
    ``options.batch_size`` windows are in progress at once.
    """

    def __init__(
        self, model: RequestModel, options: TranscribeOptions, vad: VadOptions, window_s: float
    ) -> None:
        self._model = model
        self._options = options
        self._vad = vad
        self._window_s = window_s

    def transcribe(self, samples: Samples) -> tuple[Iterator[Segment], BatchedInfo] | None:
        """The segments, each as soon as it is recognised; None without speech.

        Times are those of ``samples``.
        """
        speech = get_speech_timestamps(samples, self._vad)
        if not speech:
            return None
        chunks = [
            _Chunk(part, place["offset"], place["duration"])
            for part, place in zip(
                *collect_chunks(samples, speech, max_duration=self._window_s), strict=True
            )
        ]
        info = self._detect(chunks)
        tokenizer = Tokenizer(
            self._model.hf_tokenizer,
            self._model.model.is_multilingual,
            task=self._options.task,
            language=info.language,
        )
        return restore_speech_timestamps(
            self._segments(chunks, tokenizer), speech, SAMPLE_RATE
        ), info

    def _detect(self, chunks: Sequence["_Chunk"]) -> BatchedInfo:
        if not self._model.model.is_multilingual:
            return BatchedInfo("en", 1.0)
        if self._options.language is not None:
            return BatchedInfo(self._options.language, 1.0)
        segments = self._options.language_detection_segments
        frames = segments * self._model.feature_extractor.nb_max_frames
        features: list[NDArray[np.float32]] = []
        for chunk in chunks:
            features.append(chunk.features(self._model))
            if sum(part.shape[1] for part in features) >= frames:
                break
        threshold = self._options.language_detection_threshold
        language, probability, _ = self._model.detect_language(
            features=np.concatenate(features, axis=1),
            language_detection_segments=segments,
            language_detection_threshold=0.0 if threshold is None else threshold,
        )
        return BatchedInfo(language, probability)

    def _segments(self, chunks: Sequence["_Chunk"], tokenizer: Tokenizer) -> Iterator[Segment]:
        options = self._options
        last_speech_s = 0.0
        for chunk, window, result, found in self._windows(chunks, tokenizer):
            if options.word_timestamps:
                last_speech_s = self._model.add_word_timestamps(
                    [found],
                    tokenizer,
                    window,
                    [self._frames(chunk)],
                    options.prepend_punctuations,
                    options.append_punctuations,
                    last_speech_s,
                )
            length = len(result.sequences_ids[0])
            log_probability = result.scores[0] * length**options.length_penalty
            for segment in found:
                text = tokenizer.decode(segment["tokens"])
                yield Segment(
                    id=0,
                    seek=segment["seek"],
                    start=round(segment["start"], 3),
                    end=round(segment["end"], 3),
                    text=text,
                    tokens=segment["tokens"],
                    avg_logprob=log_probability / (length + 1),
                    compression_ratio=get_compression_ratio(text),
                    no_speech_prob=result.no_speech_prob,
                    words=[Word(**word) for word in segment.get("words", ())],
                    temperature=options.temperature[0],
                )

    def _windows(self, chunks: Sequence["_Chunk"], tokenizer: Tokenizer) -> Iterator["_Recognised"]:
        """The windows in their order."""
        options, model = self._options, self._model
        prompt = model.get_prompt(
            tokenizer,
            tokenizer.encode(options.initial_prompt) if options.initial_prompt else [],
            without_timestamps=options.without_timestamps,
            hotwords=options.hotwords,
        )
        suppressed = options.suppress_tokens and list(options.suppress_tokens)
        length = model.max_length
        if options.max_new_tokens is not None:
            length = min(length, len(prompt) + options.max_new_tokens)
        search = {
            "beam_size": options.beam_size,
            "patience": options.patience,
            "length_penalty": options.length_penalty,
            "repetition_penalty": options.repetition_penalty,
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "max_length": length,
            "suppress_blank": options.suppress_blank,
            "suppress_tokens": suppressed and get_suppressed_tokens(tokenizer, suppressed),
            "return_scores": True,
            "return_no_speech_prob": True,
        }
        upcoming = iter(chunks)
        most = _BATCHES_AT_ONCE * options.batch_size
        running: deque[_InProgress] = deque()
        while True:
            for chunk in islice(upcoming, most - len(running)):
                running.append(_InProgress(self._steps(chunk, tokenizer, prompt, search)))
            if not running:
                return
            while (awaited := running[0].awaited) is not None:
                model.model.result(awaited)
                for window in running:
                    window.advance()
            recognised = running.popleft().result
            assert recognised is not None
            yield recognised

    def _steps(
        self,
        chunk: "_Chunk",
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        search: Mapping[str, Any],
    ) -> "Steps":
        """What is done with a window, one call after the other."""
        model = self._model.model
        size = self._model.feature_extractor.nb_max_frames
        window = self._model.encode(pad_or_trim(chunk.features(self._model), size))
        if self._options.multilingual and model.is_multilingual:
            languages = yield model.submit_detect_language(window)
            language = tokenizer.tokenizer.token_to_id(languages[0][0])
            prompt = [language if token == tokenizer.language else token for token in prompt]
        result = yield model.submit_generate(window, prompt, search)
        segments, _, _ = self._model._split_segments_by_timestamps(
            tokenizer=tokenizer,
            tokens=result.sequences_ids[0],
            time_offset=chunk.offset_s,
            segment_size=self._frames(chunk),
            segment_duration=chunk.duration_s,
            seek=0,
        )
        for segment in segments:
            segment["seek"] = int(chunk.offset_s * self._model.frames_per_second)
        if self._options.word_timestamps:
            tokens = chain.from_iterable(segment["tokens"] for segment in segments)
            text = [token for token in tokens if token < tokenizer.eot]
            yield model.submit_align(window, tokenizer.sot_sequence, text, self._frames(chunk))
        return _Recognised(chunk, window, result, segments)

    def _frames(self, chunk: "_Chunk") -> int:
        return ceil(chunk.duration_s) * int(self._model.frames_per_second)


class _Chunk:
    """Speech for one window, and where it is in the speech of the file, in seconds."""

    def __init__(self, samples: Samples, offset_s: float, duration_s: float) -> None:
        self._samples = samples
        self._features: NDArray[np.float32] | None = None
        self.offset_s = offset_s
        self.duration_s = duration_s

    def features(self, model: RequestModel) -> NDArray[np.float32]:
        """Log-mel features [mels, frames]."""
        if self._features is None:
            self._features = model.feature_extractor(self._samples)[:, :-1]
        return self._features


class _Recognised(NamedTuple):
    """A window, the result of the search for its text, and its segments without words."""

    chunk: _Chunk
    window: Window
    result: Any
    segments: list[dict[str, Any]]


Steps = Generator["Future[Any]", Any, _Recognised]


class _InProgress:
    """Steps of which each waits for the future that it yields."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.result: _Recognised | None = None
        self.awaited: Future[Any] | None = next(steps)

    def advance(self) -> None:
        """Go through the steps whose futures are done. Raises what a future did."""
        while self.awaited is not None and self.awaited.done():
            try:
                self.awaited = self._steps.send(self.awaited.result())
            except StopIteration as end:
                self.awaited, self.result = None, end.value
