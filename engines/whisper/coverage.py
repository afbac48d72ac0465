"""Which parts of a file the windows of a recognition left out."""

from collections.abc import Iterable, Mapping, Sequence

from speech.audio import SAMPLE_RATE
from speech.media.segmentation import Region


def in_file(
    regions: Iterable[Region], speech: Sequence[Mapping[str, int]] | None
) -> tuple[Region, ...]:
    """Regions of the speech of a file, joined, as disjoint regions of the file in ascending order.

    ``speech`` has the ``start`` and ``end`` of each stretch in samples; None: nothing was cut out.
    """
    found: list[Region] = []
    for start, end in sorted(regions):
        for part_start, part_end in _parts(start, end, speech):
            if found and part_start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], part_end))
            else:
                found.append((part_start, part_end))
    return tuple(found)


def _parts(
    start: float, end: float, speech: Sequence[Mapping[str, int]] | None
) -> Iterable[Region]:
    if speech is None:
        yield start, end
        return
    joined = 0.0
    for stretch in speech:
        first, last = stretch["start"] / SAMPLE_RATE, stretch["end"] / SAMPLE_RATE
        part_start = max(first, first + start - joined)
        part_end = min(last, first + end - joined)
        if part_start < part_end:
            yield part_start, part_end
        joined += last - first
