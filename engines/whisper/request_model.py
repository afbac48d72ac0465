"""A view of a loaded Whisper model for one request."""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray

from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.whisper.shared_model import SharedModel
from engines.whisper.windows import Window
from speech.media.segmentation import Region
from speech.ports import TranscribeOptions

_ROOM_FOR_TEXT = 220
"""Tokens of a window kept free of context; half of Whisper's 448, less its control tokens."""


class RequestModel(WhisperModel):  # type: ignore[misc]  # the library has no types
    """A loaded model for one request: own feature extractor, bounded prompts, cancellation.

    The library stores ``chunk_length`` on the shared feature extractor, and lets context and hints
    grow beyond the positions of the model. The weights are shared, and ``model`` puts the windows
    into batches with those of other requests.

    The library also lets the times of words move the windows and the segments, so that the text
    depends on whether they are asked for. Here the text is the same with and without them, unless
    ``hallucination_silence_threshold`` needs them to find hallucinations.
    """

    def __init__(
        self,
        loaded: WhisperModel,
        model: SharedModel,
        options: TranscribeOptions,
        cancelled: CancelCheck,
        *,
        batched: bool,
    ) -> None:
        self.__dict__.update(loaded.__dict__)
        self.model = model
        self.missed: list[Region] = []
        """Seconds of the audio given to the library of which the text may be incomplete."""
        self._batched = batched
        self._max_new_tokens = options.max_new_tokens
        self._words_move_segments = options.hallucination_silence_threshold is not None
        self._prompt_tokens = 0
        self.feature_extractor = copy.copy(loaded.feature_extractor)
        self._room_for_text = options.max_new_tokens or _ROOM_FOR_TEXT
        self._cancelled = cancelled
        self._last: Window | None = None
        self._window = loaded.feature_extractor.nb_max_frames

    def encode(self, features: NDArray[np.float32]) -> Window:
        """A window to be encoded, of features [mels, frames]; the cancellation point of each."""
        raise_if_cancelled(self._cancelled)
        # The library pads every window to 30 s, also for a model that was trained on less.
        features = features[:, : self._window]
        if self._last is None or not np.array_equal(features, self._last.features):
            self._last = Window(features)
        return self._last  # in long audio, that in which the language was detected

    def get_prompt(self, tokenizer: Any, previous_tokens: list[int], **hints: Any) -> list[int]:
        """The prompt, with as much context as leaves room for the text of the window."""
        fixed = len(super().get_prompt(tokenizer, [], **hints)) + 1
        room = max(0, self.max_length - self._room_for_text - fixed)
        context = previous_tokens[-room:] if room else []
        prompt: list[int] = super().get_prompt(tokenizer, context, **hints)
        self._prompt_tokens = len(prompt)
        return prompt

    def _split_segments_by_timestamps(
        self, tokens: list[int], **window: Any
    ) -> tuple[list[dict[str, Any]], int, bool]:
        """The segments of a window and the first frame of the next one."""
        segments, seek, _ = super()._split_segments_by_timestamps(tokens=tokens, **window)
        seek = min(seek, window["seek"] + window["segment_size"])
        self._note_missed(tokens, seek, **window)
        rest = tokens[sum(len(segment["tokens"]) for segment in segments) :]
        if self._batched and rest:
            # The library leaves a segment without an end to the next window, and has none here.
            segments.append(self._last_segment(rest, segments[-1]["end"], **window))
        # The library moves the next window to the last word unless the last value is True.
        return segments, seek, True

    def _last_segment(self, tokens: list[int], start: float, **window: Any) -> dict[str, Any]:
        end = window["time_offset"] + window["segment_duration"]
        return {"seek": window["seek"], "start": start, "end": max(start, end), "tokens": tokens}

    def _note_missed(self, tokens: list[int], next_seek: int, **window: Any) -> None:
        """Note what the encoder did not process, and what comes after a text that was cut off."""
        begin, duration = window["time_offset"], window["segment_duration"]
        window_s = self._window / self.frames_per_second
        if duration > window_s:
            self.missed.append((begin + window_s, begin + duration))
        # CTranslate2 decodes half of the length at most. It counts the token that ends a text, and
        # gives the text without it.
        prompt = self._prompt_tokens
        length = prompt + self._max_new_tokens if self._max_new_tokens else self.max_length
        limit = min(length // 2, length - prompt) - 1
        resumed = not self._batched and next_seek < window["seek"] + window["segment_size"]
        if len(tokens) < limit or resumed:
            return
        first = window["tokenizer"].timestamp_begin
        reached = max((token - first for token in tokens if token >= first), default=0)
        reached_s = reached * self.time_precision
        if reached_s < duration:
            self.missed.append((begin + reached_s, begin + duration))

    def add_word_timestamps(
        self,
        segments: list[list[dict[str, Any]]],
        tokenizer: Any,
        window: Window,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Add the words of each segment of a window.

        CTranslate2 divides the attention on a frame by its deviation over the tokens. In float16
        that can be 0 / 0, and all tokens from that frame on get the time of the frame before it.
        """
        times = [[(s["start"], s["end"]) for s in found] for found in segments]
        last_speech = super().add_word_timestamps(segments, tokenizer, window, *rest, **more)
        misplaced = sum(map(_words_misplaced, segments, times))
        if misplaced and self.model.leave_float16(window, misplaced):
            _restore_times(segments, times)
            last_speech = super().add_word_timestamps(segments, tokenizer, window, *rest, **more)
        if not self._words_move_segments:
            _restore_times(segments, times)
        return last_speech


def _words_misplaced(window: Iterable[dict[str, Any]], times: Iterable[Region]) -> bool:
    """Whether a segment has words outside of the times that the decoder gave it, or in no time."""
    for segment, (start, end) in zip(window, times, strict=True):
        words = segment["words"]
        if not words or start == end:
            continue
        without_time = sum(word["start"] == word["end"] for word in words)
        if len(words) > 1 and 2 * without_time > len(words):
            return True
        if words[-1]["end"] <= start or words[0]["start"] >= end:
            return True
    return False


def _restore_times(windows: list[list[dict[str, Any]]], times: list[list[Region]]) -> None:
    for window, window_times in zip(windows, times, strict=True):
        for segment, (start, end) in zip(window, window_times, strict=True):
            segment["start"], segment["end"] = start, end
