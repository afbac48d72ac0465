"""Validation of the options of diarization."""

from speech.errors import InvalidRequest
from speech.ports import DiarizeOptions


def check_speaker_counts(options: DiarizeOptions) -> None:
    """Raise InvalidRequest for numbers of speakers below 1 or in contradiction to each other."""
    for name in ("num_speakers", "min_speakers", "max_speakers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1, not {value}")
    fewest, most = options.min_speakers or 1, options.max_speakers
    if most is not None and fewest > most:
        raise InvalidRequest(f"min_speakers {fewest} is above max_speakers {most}")
    number = options.num_speakers
    if number is not None and not fewest <= number <= (most or number):
        raise InvalidRequest(f"num_speakers {number} is outside of min_speakers to max_speakers")
