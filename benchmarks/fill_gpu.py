"""Allocates what is free on a GPU, prints ``full``, and keeps it until its input ends."""

import sys

import torch

LARGEST_BYTES = 2**30
SMALLEST_BYTES = 2**21
"""torch allocates in steps of this size."""


def fill() -> list[torch.Tensor]:
    """Tensors that leave less than SMALLEST_BYTES in one piece."""
    blocks, size = [], LARGEST_BYTES
    while size >= SMALLEST_BYTES:
        try:
            blocks.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return blocks


if __name__ == "__main__":
    held = fill()
    print("full", flush=True)
    sys.stdin.read()
