"""Who spoke when: pyannote.audio, sherpa-onnx as a light backend without torch, or the channels.

The libraries are imported when an engine of theirs is made: a node of the light backend has no
torch, and ``by_channel`` needs neither.
"""

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.catalogue import ModelEntry
from engines.device import resolve
from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    ModelUnavailable,
    SpeechError,
)
from speech.ports import DiarizeOptions
from speech.transcript import Diarization, Turn

logger = logging.getLogger(__name__)

Cancel = Callable[[], bool]

CHANNEL_SPEAKERS = ("L0", "R0")
"""Labels of the left and the right channel in stereo mode."""
BLEED_DB = 15.0
"""Speech this far below simultaneous speech on the other channel is that speech leaking over."""
_SHORTEST_TURN_S = 0.25
"""What is left of a turn after bleed was cut out of it is noise of the edges below this."""
_SHORTEST_S = 1.0
"""Audio is padded to this length: the embeddings of sherpa-onnx need some frames."""


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
        _check_numbers(options)
        if not len(samples):
            return Diarization((), ())

        def hook(*_: Any, **__: Any) -> None:
            if cancelled():
                raise Cancelled("the diarization was given up")

        waveform = self._from_numpy(samples.copy())[None]  # torch wants a writable array
        with _taking_turns(self._lock, cancelled), _named_failures("pyannote.audio"):
            output = self._pipeline(
                {"waveform": waveform, "sample_rate": SAMPLE_RATE},
                num_speakers=options.num_speakers,
                min_speakers=options.min_speakers,
                max_speakers=options.max_speakers,
                hook=hook,
            )
        duration = len(samples) / SAMPLE_RATE
        turns, exclusive = (
            _turns(((t.start, t.end, label) for t, _, label in tracks), duration)
            for tracks in (
                output.speaker_diarization.itertracks(yield_label=True),
                output.exclusive_speaker_diarization.itertracks(yield_label=True),
            )
        )
        return _named_by_appearance(turns, exclusive)


class SherpaDiarizationEngine:
    """pyannote segmentation and a speaker embedding as ONNX models in sherpa-onnx."""

    def __init__(self, path: Path, *, device: str, threads: int, threshold: float = 0.5) -> None:
        """Load ``segmentation.onnx`` and ``embedding.onnx`` from a directory.

        ``threshold`` is the cosine distance at which the clustering stops to merge; the right
        one depends on the embedding. Raises ModelUnavailable.
        """
        try:
            import sherpa_onnx
        except ImportError as error:
            raise ModelUnavailable(
                f"sherpa-onnx is not installed here ({error}); "
                "install speechgraph[diarization-light]"
            ) from error
        missing = [
            name for name in ("segmentation.onnx", "embedding.onnx") if not (path / name).is_file()
        ]
        if missing:
            raise ModelUnavailable(f"{path} holds no {' and no '.join(missing)}")
        runtime = {"num_threads": threads, "provider": device}
        self._config = sherpa_onnx.OfflineSpeakerDiarizationConfig(
            segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(
                pyannote=sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(
                    model=str(path / "segmentation.onnx")
                ),
                **runtime,
            ),
            embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(
                model=str(path / "embedding.onnx"), **runtime
            ),
            clustering=sherpa_onnx.FastClusteringConfig(threshold=threshold),
        )
        try:
            self._diarization = sherpa_onnx.OfflineSpeakerDiarization(self._config)
        except Exception as error:
            raise ModelUnavailable(
                f"the diarization model in {path} does not load: {error}"
            ) from error
        self._lock = threading.Lock()

    def diarize(
        self, samples: Samples, options: DiarizeOptions, cancelled: Cancel = lambda: False
    ) -> Diarization:
        """See :class:`DiarizationEngine`.

        Without an exact number the clustering finds one; should it fall outside of min and max,
        the audio is gone through again with the nearer bound as the number. Where turns overlap,
        the exclusive turns leave the floor to whoever has been talking longer.
        """
        _check_numbers(options)
        if not len(samples):
            return Diarization((), ())
        fewest = options.num_speakers or options.min_speakers or 1
        most = options.num_speakers or options.max_speakers
        with _taking_turns(self._lock, cancelled), _named_failures("sherpa-onnx"):
            turns = self._process(samples, options.num_speakers, cancelled)
            found = len({turn.speaker for turn in turns})
            bound = min(max(found, fewest), most or found)
            if found and bound != found and options.num_speakers is None:
                turns = self._process(samples, bound, cancelled)
        return _named_by_appearance(turns, _one_at_a_time(turns))

    def _process(self, samples: Samples, speakers: int | None, cancelled: Cancel) -> list[Turn]:
        self._config.clustering.num_clusters = speakers or -1
        self._diarization.set_config(self._config)
        padded = np.pad(samples, (0, max(0, round(_SHORTEST_S * SAMPLE_RATE) - len(samples))))
        result = self._diarization.process(padded, lambda done, total: int(cancelled()))
        if cancelled():
            raise Cancelled("the diarization was given up")
        segments = ((s.start, s.end, str(s.speaker)) for s in result.sort_by_start_time())
        return _turns(segments, len(samples) / SAMPLE_RATE)


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
    return Diarization(tuple(turns), tuple(_one_at_a_time(turns)))


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


def _check_numbers(options: DiarizeOptions) -> None:
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


@contextmanager
def _taking_turns(lock: threading.Lock, cancelled: Cancel) -> Iterator[None]:
    """The pipelines keep state while they run; who waits can still be cancelled."""
    while not lock.acquire(timeout=0.1):
        if cancelled():
            raise Cancelled("the diarization was given up")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _named_failures(library: str) -> Iterator[None]:
    try:
        yield
    except SpeechError:
        raise
    except Exception as error:
        raise EngineFailed(f"{library} failed: {type(error).__name__}: {error}") from error


def _turns(segments: Iterable[tuple[float, float, str]], duration: float) -> list[Turn]:
    """Turns within the audio, in the order of time; the last window may reach beyond its end."""
    turns = [
        Turn(round(max(0.0, start), 3), round(min(end, duration), 3), speaker)
        for start, end, speaker in segments
    ]
    return sorted(
        (turn for turn in turns if turn.start < turn.end), key=lambda turn: (turn.start, turn.end)
    )


def _named_by_appearance(turns: Sequence[Turn], exclusive: Sequence[Turn]) -> Diarization:
    names: dict[str, str] = {}
    for turn in (*turns, *exclusive):
        names.setdefault(turn.speaker, f"SPEAKER_{len(names):02d}")
    return Diarization(
        tuple(replace(turn, speaker=names[turn.speaker]) for turn in turns),
        tuple(replace(turn, speaker=names[turn.speaker]) for turn in exclusive),
    )


def _one_at_a_time(turns: Iterable[Turn]) -> list[Turn]:
    """The turns cut so that none overlap: the one that began first keeps the floor."""
    exclusive, until = [], 0.0
    for turn in sorted(turns, key=lambda turn: (turn.start, -turn.end)):
        if turn.end > until:
            exclusive.append(replace(turn, start=max(turn.start, until)))
            until = turn.end
    return exclusive
