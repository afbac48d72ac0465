"""The model as one request sees it: each call is part of a batch with those of other requests."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from engines.cancellation import CancelCheck, raise_if_cancelled
from engines.whisper.finite import Encoded, FiniteWhisper
from engines.whisper.scheduler import Request, Run, Scheduler
from engines.whisper.windows import Window

_POLL_S = 0.1
_MEDIAN_FILTER_WIDTH = 7
"""As faster-whisper asks for."""


class SharedModel:
    """The calls of ``ctranslate2.models.Whisper`` that faster-whisper makes, for single windows.

    A window is encoded in the batch of the first call on it. Calls that sample, at a temperature
    above 0, run alone. ``start_of_text`` and ``no_timestamps`` are tokens of the model.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        start_of_text: int,
        no_timestamps: int,
        cancelled: CancelCheck,
    ) -> None:
        self._scheduler = scheduler
        self._request = request
        self._start_of_text = start_of_text
        self._no_timestamps = no_timestamps
        self._cancelled = cancelled

    def __getattr__(self, name: str) -> Any:
        """What describes the model: ``compute_type``, ``device``, ``is_multilingual``, …"""
        return getattr(self._scheduler.model, name)

    def detect_language(self, window: Window) -> list[Any]:
        """Languages and their probabilities, the best first, in a list of one."""
        return [self.result(self.submit_detect_language(window))]

    def submit_detect_language(self, window: Window) -> "Future[Any]":
        """The languages of a window as a future."""

        def run(model: FiniteWhisper, encoded: Encoded, _: Sequence[None]) -> Any:
            return model.detect_language(encoded)

        return self._submit(window, None, run, "detect_language")

    def generate(
        self, window: Window, prompts: Sequence[Sequence[int]], **options: Any
    ) -> list[Any]:
        """The result of the search for the text, in a list of one; options as in CTranslate2."""
        return [self.result(self.submit_generate(window, prompts[0], options))]

    def submit_generate(
        self, window: Window, prompt: Sequence[int], options: Mapping[str, Any]
    ) -> "Future[Any]":
        """The result of the search for the text of a window as a future."""

        def run(model: FiniteWhisper, encoded: Encoded, prompts: Sequence[Any]) -> Any:
            return model.generate(encoded, prompts, **options)

        if options.get("sampling_temperature"):
            return self._submit(window, prompt, run, object())
        # CTranslate2 requires the prompts of a batch to have the same form.
        form = (prompt.index(self._start_of_text), len(prompt), self._no_timestamps in prompt)
        return self._submit(window, prompt, run, ("generate", form, _hashable(options)))

    def align(
        self,
        window: Window,
        start_sequence: Sequence[int],
        text_tokens: Sequence[Sequence[int]],
        num_frames: int | Sequence[int],
        *,
        median_filter_width: int,
    ) -> list[Any]:
        """Frames and probabilities of the tokens of one window, in a list of one."""
        frames = num_frames if isinstance(num_frames, int) else num_frames[0]
        future = window.alignments.pop((*text_tokens[0], frames), None)
        if future is None:
            future = self._align(
                window, start_sequence, text_tokens[0], frames, median_filter_width
            )
        return [self.result(future)]

    def submit_align(
        self, window: Window, start_sequence: Sequence[int], tokens: Sequence[int], frames: int
    ) -> "Future[Any]":
        """Begin what :meth:`align` returns for these tokens."""
        future = self._align(window, start_sequence, tokens, frames, _MEDIAN_FILTER_WIDTH)
        window.alignments[(*tokens, frames)] = future
        return future

    def _align(
        self,
        window: Window,
        start_sequence: Sequence[int],
        tokens: Sequence[int],
        frames: int,
        median_filter_width: int,
    ) -> "Future[Any]":
        def run(model: FiniteWhisper, encoded: Encoded, arguments: Sequence[Any]) -> Any:
            return model.align(
                encoded,
                start_sequence,
                [tokens for tokens, _ in arguments],
                [frames for _, frames in arguments],
                median_filter_width=median_filter_width,
            )

        kind = ("align", tuple(start_sequence), median_filter_width)
        return self._submit(window, (tokens, frames), run, kind)

    def leave_float16(self, window: Window, windows: int) -> bool:
        """Compute the window alone and in the next compute type from now on.

        See :meth:`engines.whisper.finite.FiniteWhisper.leave_float16`.
        """

        def run(model: FiniteWhisper, encoded: Encoded, _: Sequence[None]) -> Any:
            return [model.leave_float16(encoded, windows)]

        left: bool = self.result(self._submit(window, None, run, object()))
        return left

    def _submit(self, window: Window, argument: Any, run: Run, kind: Hashable) -> "Future[Any]":
        # Windows that are encoded already run with others of the same encoder output.
        place = (window.features.shape, window.encoded)
        return self._scheduler.submit(self._request, window, argument, run, (kind, place))

    def result(self, future: "Future[Any]") -> Any:
        """The result of a call. Raises what the call did, and Cancelled."""
        while not wait([future], timeout=_POLL_S).done:
            raise_if_cancelled(self._cancelled)
        return future.result()


def _hashable(options: Mapping[str, Any]) -> Hashable:
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(options.items())
    )
