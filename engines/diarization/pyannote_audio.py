"""Who spoke when: by voice with pyannote.audio, with sherpa-onnx as a light backend, or by channel.

pyannote.audio and torch are imported when an engine of theirs is made: a node of the light backend
has neither, and :func:`by_channel` needs no library at all.
"""

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.catalogue import ModelEntry
from engines.device import resolve
from engines.diarization.sherpa_diarization import SherpaDiarizationEngine
from engines.diarization.speaker_turns import (
    Cancel,
    check_numbers,
    named_by_appearance,
    one_at_a_time,
    raise_if,
    taking_turns,
    turns_within,
)
from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import Cancelled, EngineFailed, InvalidRequest, ModelUnavailable
from speech.ports import DiarizeOptions
from speech.transcript import Diarization, Turn

CHANNEL_SPEAKERS = ("L0", "R0")
"""Labels of the left and the right channel in stereo mode."""
BLEED_DB = 15.0
"""Speech this far below simultaneous speech on the other channel is that speech leaking over."""
_SHORTEST_TURN_S = 0.25
"""What is left of a turn after bleed was cut out of it is noise of the edges below this."""


class DiarizationEngine(Protocol):
    """What both backends do; may be called from several threads, which take turns."""

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: Cancel = ...
    ) -> Diarization:
        """Turns in float32 [samples] at 16 kHz, speakers SPEAKER_00… in order of appearance.

        No speech gives no turns. ``cancelled`` is polled as the work goes on. Raises
        InvalidRequest for numbers of speakers that cannot be, Cancelled, EngineFailed.
        """
        ...


def load_engine(entry: ModelEntry, path: Path, *, device: str, threads: int) -> DiarizationEngine:
    """The engine of a catalogue entry whose files lie in ``path``. Raises ModelUnavailable."""
    engine = PyannoteEngine if entry.format == "pyannote" else SherpaDiarizationEngine
    return engine(path, device=device, threads=threads, **entry.options)


class PyannoteEngine:
    """A pyannote.audio pipeline from a local directory."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        """Load ``config.yaml`` and what it names; ``threads`` holds for all torch of the process.

        Raises ModelUnavailable, also where pyannote.audio is not installed.
        """
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # read when it is imported: no telemetry
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"\s*torchcodec")  # we hand it samples
                import torch
                from pyannote.audio import Pipeline
        except ImportError as error:
            raise ModelUnavailable(
                f"pyannote.audio is not installed here ({error}); "
                "install speechgraph[diarization], or use a model of the light backend"
            ) from error
        torch.set_num_threads(threads)
        try:
            pipeline: Any = Pipeline.from_pretrained(path)
        except Exception as error:
            raise ModelUnavailable(
                f"the pyannote pipeline in {path} does not load: {error}"
            ) from error
        if device == "cuda" and resolve("cuda", None, torch.cuda.is_available) == "cuda":
            pipeline.to(torch.device("cuda"))
            # The allocator of torch keeps the memory of an unloaded model unless told.
            weakref.finalize(self, torch.cuda.empty_cache)
        self._pipeline = pipeline
        self._from_numpy = torch.from_numpy
        self._lock = threading.Lock()

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: Cancel = lambda: False
    ) -> Diarization:
        """See :class:`DiarizationEngine`."""
        check_numbers(options)
        if not samples.any():  # empty, or digital silence
            return Diarization((), ())

        def hook(*_: Any, **__: Any) -> None:
            raise_if(cancelled)

        waveform = self._from_numpy(samples.copy())[None]  # torch wants a writable array
        with taking_turns(self._lock, cancelled):
            try:
                output = self._pipeline(
                    {"waveform": waveform, "sample_rate": SAMPLE_RATE},
                    num_speakers=options.num_speakers,
                    min_speakers=options.min_speakers,
                    max_speakers=options.max_speakers,
                    hook=hook,
                )
            except Cancelled:
                raise
            except Exception as error:
                raise EngineFailed(
                    f"pyannote.audio failed: {type(error).__name__}: {error}"
                ) from error
        duration = len(samples) / SAMPLE_RATE
        turns, exclusive = (
            turns_within(((t.start, t.end, label) for t, _, label in tracks), duration)
            for tracks in (
                output.speaker_diarization.itertracks(yield_label=True),
                output.exclusive_speaker_diarization.itertracks(yield_label=True),
            )
        )
        return named_by_appearance(turns, exclusive)


def by_channel(audio: Audio, speech: Callable[[Samples], list[tuple[float, float]]]) -> Diarization:
    """Turns of two channels with one speaker each: L0 on the left, R0 on the right.

    ``speech`` gives the stretches of speech of one channel, in seconds. What is heard on a channel
    BLEED_DB below simultaneous speech on the other one is no turn. Raises InvalidRequest unless
    there are exactly two channels.
    """
    if audio.channels is None or len(audio.channels) != len(CHANNEL_SPEAKERS):
        raise InvalidRequest("stereo_mode needs audio with two channels")
    heard = [speech(channel) for channel in audio.channels]
    turns = [
        Turn(round(start, 3), round(end, 3), CHANNEL_SPEAKERS[channel], channel)
        for channel in (0, 1)
        for region in heard[channel]
        for start, end in _without_bleed(audio, channel, region, heard[1 - channel])
    ]
    turns.sort(key=lambda turn: (turn.start, turn.channel))
    return Diarization(tuple(turns), tuple(one_at_a_time(turns)))


def _without_bleed(
    audio: Audio,
    channel: int,
    region: tuple[float, float],
    others: Sequence[tuple[float, float]],
) -> list[tuple[float, float]]:
    """What remains of a region of speech without the parts that leaked from the other channel."""
    start, end = region
    kept, cut = [], False
    for other_start, other_end in others:
        both = max(start, other_start), min(end, other_end)
        if both[0] >= both[1]:
            continue
        own = _power(audio.cut(*both, channel))
        other = _power(audio.cut(*both, 1 - channel))
        if own >= other * 10 ** (-BLEED_DB / 10):
            continue
        cut = True
        kept.append((start, both[0]))
        start = both[1]
    kept.append((start, end))
    return [part for part in kept if not cut or part[1] - part[0] >= _SHORTEST_TURN_S]


def _power(samples: Samples) -> float:
    return float(np.mean(np.square(samples))) if len(samples) else 0.0
