"""Batches of windows that become smaller where the memory does not suffice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_whisper import BatchedInferencePipeline
from numpy.typing import NDArray

from engines.out_of_memory import in_smaller_batches


class FittingBatches(BatchedInferencePipeline):  # type: ignore[misc]  # the library has no types
    """The batched mode of the library for one request.

    From the batch on that met an out-of-memory, batches are half as large, or a quarter and so on.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        super().__init__(model)
        self._most = batch_size

    def forward(
        self,
        features: NDArray[np.float32],
        tokenizer: Any,
        chunks_metadata: Sequence[dict[str, Any]],
        options: Any,
    ) -> list[list[dict[str, Any]]]:
        """The segments of each window. Raises what the library does for a single window."""

        def run(size: int) -> list[list[dict[str, Any]]]:
            self._most = size
            segments = []
            for first in range(0, len(features), size):
                part = slice(first, first + size)
                segments += super(FittingBatches, self).forward(
                    features[part], tokenizer, chunks_metadata[part], options
                )
            return segments

        return in_smaller_batches(min(self._most, len(features)), run)
