"""Windows of Whisper, and the encoder output of those that are encoded together."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import ctranslate2
import numpy as np
from numpy.typing import NDArray

from engines.whisper.finite import Encoded, FiniteWhisper


class Window:
    """A window of a request: log-mel features [mels, frames], and where its encoder output is."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features
        self.encoded: Encoded | None = None
        """The output of the batch that it was encoded in; None until then."""
        self.row = 0
        """Its place in that batch."""
        self.alignments: dict[tuple[int, ...], Future[Any]] = {}
        """What was begun before it is asked for, by the tokens and the number of frames."""


def encode(model: FiniteWhisper, windows: Sequence[Window]) -> Encoded:
    """The encoder output of windows of one shape, which are all encoded in one batch or in none.

    In the order of the windows; what is encoded already is not encoded again.
    """
    encoded = windows[0].encoded
    rows = [window.row for window in windows]
    if encoded is None:
        encoded = model.encode(_stacked(windows))
    elif rows != list(range(encoded.output.shape[0])):
        encoded = Encoded(_stacked(windows), _rows(encoded.output, rows), encoded.level)
    else:
        return encoded
    for row, window in enumerate(windows):
        window.encoded, window.row = encoded, row
    return encoded


def _stacked(windows: Sequence[Window]) -> ctranslate2.StorageView:
    return ctranslate2.StorageView.from_array(np.stack([window.features for window in windows]))


def _rows(output: ctranslate2.StorageView, rows: Sequence[int]) -> ctranslate2.StorageView:
    """Some rows, in the memory of the host and in float32; the model converts what it is given."""
    floats = output.to(ctranslate2.DataType.float32).to_device(ctranslate2.Device.cpu)
    return ctranslate2.StorageView.from_array(np.asarray(floats)[list(rows)])
