"""A Whisper model of CTranslate2 of which no window is lost to values outside of a number format.

float16 ends at 65,504. A value beyond it becomes infinite and then NaN, and CTranslate2 decodes
NaN to nothing, or to a token that means nothing, without an error. bfloat16 has the range of
float32.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ctranslate2
import numpy as np

from speech.errors import EngineFailed

logger = logging.getLogger(f"speechgraph.{__name__}")

_BY_RANGE = ("float16", "bfloat16", "float32")
_LOWEST_SUM = -60_000.0
"""A sum of log-probabilities that no text reaches: for a step of which all values are NaN, a GPU
returns token 0 and the lowest value of the format, -65,504 in float16."""


class Encoded:
    """The encoder output of a batch of windows, and what is needed to encode it once more.

    ``level`` is the index of its compute type in those of the model.
    """

    def __init__(self, features: Any, output: Any, level: int) -> None:
        self.features = features
        self.output = output
        self.level = level


class FiniteWhisper:
    """The calls of ``ctranslate2.models.Whisper`` that faster-whisper makes, with finite results.

    A window with NaN or infinity in its encoder output or in its probabilities is encoded and
    decoded again in the next compute type of wider range, together with the other windows of its
    batch. The model of that type is loaded at the first such window and kept beside the first
    model: it takes the memory of one model more. Among the :meth:`first_windows` it replaces the
    first model. A call whose windows are not finite in any compute type raises EngineFailed.

    ``load`` returns the ``ctranslate2.models.Whisper`` in a compute type; ``on_rerun`` receives the
    number of windows that run again, in the thread of the call. Threads may share an instance.
    """

    def __init__(
        self, model: Any, load: Callable[[str], Any], on_rerun: Callable[[int], None]
    ) -> None:
        self._load = load
        self._on_rerun = on_rerun
        self._models = [model]
        self._types: list[str] = [model.compute_type, *_wider(model)]
        self._settled = True
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """What describes the model: ``compute_type``, ``device``, ``is_multilingual``, …"""
        return getattr(self._models[0], name)

    @contextmanager
    def first_windows(self) -> Iterator[None]:
        """While the first windows run: a type in which they are not finite is given up."""
        asked = self.compute_type
        self._settled = False
        yield
        self._settled = True
        if self.compute_type != asked:
            logger.warning(
                "Whisper computes in %s instead of %s, in which the first windows gave values that "
                "are not finite",
                self.compute_type,
                asked,
            )

    def encode(self, features: Any, to_cpu: bool = False) -> Encoded:
        """The encoder output of log-mel features [B, mels, frames]."""
        encoded = Encoded(features, self._models[0].encode(features, to_cpu=to_cpu), 0)
        # Copying the output from the GPU takes time, so only what may be out of range is copied.
        while not self._settled or self._in_float16(encoded):
            lost = _non_finite_windows(encoded.output)
            if not lost:
                break
            self._widen(encoded, lost)
        return encoded

    def generate(
        self, encoded: Encoded, prompts: Sequence[Any], *, length_penalty: float = 1, **options: Any
    ) -> Any:
        """One result of CTranslate2 for each window; options as there, with no_speech_prob."""
        return self._finite(
            encoded,
            lambda model, output: model.generate(
                output, prompts, length_penalty=length_penalty, **options
            ),
            lambda result: _decoded(result, length_penalty),
        )

    def detect_language(self, encoded: Encoded) -> Any:
        """Languages and their probabilities for each window, the best first."""
        return self._finite(
            encoded,
            lambda model, output: model.detect_language(output),
            lambda languages: all(math.isfinite(value) for _, value in languages),
        )

    def align(self, encoded: Encoded, *arguments: Any, **options: Any) -> Any:
        """Frames and probabilities of the tokens of each window."""
        return self._finite(
            encoded,
            lambda model, output: model.align(output, *arguments, **options),
            lambda result: all(math.isfinite(value) for value in result.text_token_probs),
        )

    def leave_float16(self, encoded: Encoded, windows: int) -> bool:
        """Move a batch to the next compute type, False if it is not in float16.

        For ``windows`` of it with results that are wrong because of the range, and finite.
        """
        if not self._in_float16(encoded):
            return False
        self._widen(encoded, windows)
        return True

    def _in_float16(self, encoded: Encoded) -> bool:
        return self._types[encoded.level].removeprefix("int8_") == "float16"

    def _finite(
        self,
        encoded: Encoded,
        run: Callable[[Any, Any], Sequence[Any]],
        finite: Callable[[Any], bool],
    ) -> Sequence[Any]:
        while True:
            results = run(self._models[encoded.level], encoded.output)
            lost = sum(not finite(result) for result in results)
            if not lost:
                return results
            self._widen(encoded, lost)

    def _widen(self, encoded: Encoded, windows: int) -> None:
        """Encode the batch again in the next compute type."""
        if encoded.level + 1 == len(self._types):
            raise EngineFailed(f"Whisper computes no finite values in {self._types[-1]}")
        if not self._settled:
            del self._types[0], self._models[0]
            self._models.append(self._load(self._types[0]))
        else:
            self._on_rerun(windows)
            encoded.level += 1
            self._load_level(encoded.level)
        encoded.output = self._models[encoded.level].encode(encoded.features)

    def _load_level(self, level: int) -> None:
        with self._lock:
            if level < len(self._models):
                return
            self._models.append(self._load(self._types[level]))
            logger.warning(
                "Whisper runs windows again in %s whose values are not finite in %s; with "
                "compute_type: %s they run once, and one model less is in memory",
                self._types[level],
                self._types[level - 1],
                self._types[level],
            )


def automatic(device: str) -> str:
    """The compute type for "auto": of the fast ones of the device that of the widest range."""
    if device == "cpu":
        return "int8"
    supported = ctranslate2.get_supported_compute_types(device)
    # As fast as float16, and never out of range. GPUs before Ampere have float16 alone.
    return next(name for name in ("bfloat16", "float16", "float32") if name in supported)


def _non_finite_windows(output: Any) -> int:
    """How many windows of an encoder output, in any format on any device, have NaN or infinity."""
    floats = output.to(ctranslate2.DataType.float32).to_device(ctranslate2.Device.cpu)
    sums = np.asarray(floats).sum(axis=(1, 2))
    return int(np.count_nonzero(~np.isfinite(sums)))


def _wider(model: Any) -> list[str]:
    """The compute types of the same weights with a wider range than that of ``model``."""
    compute_type = model.compute_type
    quantised = "int8_" if compute_type.startswith("int8_") else ""
    values = compute_type.removeprefix("int8_")
    if values not in _BY_RANGE:
        return []
    supported = ctranslate2.get_supported_compute_types(model.device)
    wider = _BY_RANGE[_BY_RANGE.index(values) + 1 :]
    return [name for name in (quantised + other for other in wider) if name in supported]


def _decoded(result: Any, length_penalty: float) -> bool:
    """Whether a window was decoded from finite values."""
    if not math.isfinite(result.no_speech_prob):
        return False
    length = len(result.sequences_ids[0])
    if not length:  # the score was divided by this length
        return True
    score = result.scores[0]
    if length_penalty < 0:  # it was multiplied, as far as to infinity
        return not math.isnan(score)
    return bool(score * length**length_penalty > _LOWEST_SUM)
