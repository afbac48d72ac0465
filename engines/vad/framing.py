"""Audio in pieces of any length, cut into frames of one length."""

import numpy as np

from speech.audio import Samples


def whole_frames(pending: Samples, samples: Samples, size: int) -> tuple[Samples, Samples]:
    """Complete frames [frames, size] of ``pending`` + ``samples``, and the remainder [samples]."""
    joined = np.concatenate((pending, samples))
    whole = len(joined) - len(joined) % size
    return joined[:whole].reshape(-1, size), joined[whole:]
