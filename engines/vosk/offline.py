"""Vosk and GigaAM models through sherpa-onnx: audio of any length, utterance by utterance.

Voice activity detection cuts the audio into utterances that the model can hold; a batch of them is
decoded at once. Words are the tokens put together, with the times of the tokens. Probabilities are
what sherpa-onnx 2.0 gives for the tokens: it has them for transducers and none for CTC models,
whose words have ``probability`` None.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean

import numpy as np

from configs.catalogue import ModelEntry
from engines.vad.detectors import SileroVad
from engines.vosk.sherpa_models import VoskOptions, load
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import (
    Cancelled,
    EngineFailed,
    InvalidRequest,
    SpeechError,
)
from speech.media.segmentation import Region, speech_regions, utterances
from speech.ports import MAX_HOTWORDS, TranscribeOptions
from speech.transcript import Recognition, Segment, Word

_HONOURED = {
    "model",
    "language",
    "task",
    "word_timestamps",
    "batch_size",
    "vad_filter",  # this family never decodes silence
}
_MAX_BATCH = 64
_SHORTEST = SAMPLE_RATE // 2
"""Samples; shorter utterances are filled up with silence, the convolutions need some width."""
TAIL = np.zeros(round(0.66 * SAMPLE_RATE), np.float32)
"""Silence after an utterance that pushes the last frames through a frame-synchronous model."""
_LONGEST_TOKEN_S = 0.3
"""How long the last token of a word lasts at most; tokens have a start and no end."""


def ignored_options(options: TranscribeOptions, *, takes_hotwords: bool = False) -> tuple[str, ...]:
    """Names of the options that were set away from their default and that this family ignores."""
    honoured = _HONOURED | ({"hotwords"} if takes_hotwords else set())
    default = TranscribeOptions()
    return tuple(
        option.name
        for option in fields(options)
        if option.name not in honoured
        and getattr(options, option.name) != getattr(default, option.name)
    )


class VoskEngine:
    """One loaded model; :meth:`transcribe` may run in several threads at once."""

    def __init__(
        self,
        entry: ModelEntry,
        path: Path,
        *,
        device: str,
        compute_type: str = "auto",
        threads: int = 1,
    ) -> None:
        """Load the model of a catalogue entry from ``path``; raises ModelUnavailable.

        ``device`` is "cpu" or "cuda" (which needs sherpa-onnx's CUDA build); ``compute_type`` is
        "int8" for the quantised files.
        """
        self._options = VoskOptions.of(entry)
        self._entry = entry
        self._recognizer = load(
            entry,
            self._options,
            path,
            device=device,
            compute_type=compute_type,
            threads=threads,
        )
        self._vad = SileroVad()

    def transcribe(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: Callable[[], bool] = lambda: False,
        report: Callable[[float], None] = lambda seconds_done: None,
    ) -> Recognition:
        """Recognise float32 [samples] at 16 kHz; one segment per utterance in which words were.

        ``cancelled`` is polled before each batch, and each chunk of a frame-synchronous model;
        ``report`` hears how far the batches are.
        Raises InvalidRequest, Cancelled, EngineFailed.
        """
        self._check(options)
        languages = self._entry.languages
        language = languages[0] if len(languages) == 1 else None
        warnings = tuple(self._warnings(options))
        try:
            segments = tuple(self._segments(samples, options, cancelled, report))
        except SpeechError:
            raise
        except Exception as error:
            raise EngineFailed(f"model '{self._entry.id}' failed: {error}") from error
        return Recognition(segments, language, warnings=warnings)

    def _check(self, options: TranscribeOptions) -> None:
        if options.task == "translate":
            raise InvalidRequest(f"model '{self._entry.id}' does not translate")
        known = self._entry.languages
        if options.language is not None and known and options.language not in known:
            raise InvalidRequest(
                f"language '{options.language}' is not known to model '{self._entry.id}', "
                f"which knows {', '.join(known)}"
            )
        if not 1 <= options.batch_size <= _MAX_BATCH:
            raise InvalidRequest(f"batch_size must be between 1 and {_MAX_BATCH}")
        check_hotwords(options.hotwords)

    def _warnings(self, options: TranscribeOptions) -> Iterator[str]:
        ignored = ignored_options(options, takes_hotwords=self._recognizer.takes_hotwords)
        if ignored:
            yield f"model '{self._entry.id}' does not honour {', '.join(ignored)}"
        if options.language is not None and len(self._entry.languages) != 1:
            yield f"model '{self._entry.id}' finds the language by itself and takes no hint"

    def _segments(
        self,
        samples: Samples,
        options: TranscribeOptions,
        cancelled: Callable[[], bool],
        report: Callable[[float], None],
    ) -> Iterator[Segment]:
        _stop_if(cancelled)
        probabilities = self._vad.probabilities(samples)
        regions = speech_regions(probabilities, len(samples) / SAMPLE_RATE)
        cuts = utterances(regions, probabilities, self._options.max_utterance_s)
        for first in range(0, len(cuts), options.batch_size):
            batch = cuts[first : first + options.batch_size]
            for utterance, hypothesis in zip(
                batch, self._decode(samples, batch, options, cancelled), strict=True
            ):
                words = words_of(hypothesis, utterance)
                if words:
                    yield Segment(
                        start=words[0].start,
                        end=words[-1].end,
                        text="".join(word.text for word in words),
                        words=words if options.word_timestamps else (),
                    )
            report(batch[-1][1])

    def _decode(
        self,
        samples: Samples,
        batch: Sequence[Region],
        options: TranscribeOptions,
        cancelled: Callable[[], bool],
    ) -> list["Hypothesis"]:
        recognizer = self._recognizer.library
        hotwords = hotword_phrases(options.hotwords) if self._recognizer.takes_hotwords else None
        streams = []
        for start, end in batch:
            stream = recognizer.create_stream(hotwords=hotwords)
            utterance = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            stream.accept_waveform(SAMPLE_RATE, _at_least(utterance, _SHORTEST))
            streams.append(stream)
        if not self._recognizer.streaming:
            _stop_if(cancelled)
            recognizer.decode_streams(streams)
            return [
                Hypothesis(s.result.tokens, s.result.timestamps, s.result.ys_log_probs)
                for s in streams
            ]
        for stream in streams:
            stream.accept_waveform(SAMPLE_RATE, TAIL)
            stream.input_finished()
        while ready := [s for s in streams if recognizer.is_ready(s)]:
            _stop_if(cancelled)
            recognizer.decode_streams(ready)
        results = [recognizer.get_result_all(s) for s in streams]
        return [Hypothesis(r.tokens, r.timestamps, r.ys_probs) for r in results]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What was recognised in one utterance, token by token.

    A token that begins a word begins with a space or ``▁``; ``times`` are the starts of the tokens
    in seconds of the utterance; ``log_probabilities`` are natural logarithms, empty where the model
    gives none.
    """

    tokens: Sequence[str]
    times: Sequence[float]
    log_probabilities: Sequence[float]


def words_of(hypothesis: Hypothesis, utterance: Region) -> tuple[Word, ...]:
    """Words with times in seconds of the file, inside the utterance and rising.

    A word lasts until the next token begins, at most :data:`_LONGEST_TOKEN_S` after the start of
    its last token. Its probability is the mean over its tokens.
    """
    begin, finish = utterance
    starts = [min(begin + time, finish) for time in hypothesis.times]
    known = len(hypothesis.log_probabilities) == len(hypothesis.tokens)
    words: list[_Growing] = []
    apart = True
    for index, token in enumerate(hypothesis.tokens):
        text = token.replace("▁", " ")
        apart = apart or text.startswith(" ")
        if not text.strip():
            continue
        if apart:
            words.append(_Growing(starts[index]))
        word, apart = words[-1], text.endswith(" ")
        following = starts[index + 1] if index + 1 < len(starts) else finish
        word.text += text.strip()
        word.end = min(following, starts[index] + _LONGEST_TOKEN_S)
        if known:
            word.probabilities.append(math.exp(min(hypothesis.log_probabilities[index], 0.0)))
    return tuple(
        Word(f" {w.text}", w.start, w.end, fmean(w.probabilities) if known else None) for w in words
    )


@dataclass(slots=True)
class _Growing:
    start: float
    end: float = 0.0
    text: str = ""
    probabilities: list[float] = field(default_factory=list)


def check_hotwords(hotwords: str | None) -> None:
    """Raises InvalidRequest for more hotwords than are taken."""
    if len(hotwords or "") > MAX_HOTWORDS:
        raise InvalidRequest(f"hotwords must have at most {MAX_HOTWORDS} characters")


def hotword_phrases(hotwords: str | None) -> str | None:
    """Phrases parted by commas, semicolons or lines, as sherpa-onnx wants them: parted by ``/``.

    Only words are left of a phrase: a colon would be read as the beginning of a score.
    """
    phrases = re.split(r"[,;/\n]", hotwords or "")
    worded = (" ".join(re.findall(r"[\w'’-]+", phrase)) for phrase in phrases)
    return "/".join(phrase for phrase in worded if phrase) or None


def _at_least(samples: Samples, length: int) -> Samples:
    return samples if len(samples) >= length else np.pad(samples, (0, length - len(samples)))


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the transcription was given up")
