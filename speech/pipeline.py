"""The graph: one file becomes one transcript, through four ports that may be anywhere.

decode → (transcribe ∥ diarize ∥ file-level emotion) → emotions of spans → merge
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from speech import merge
from speech.errors import AudioTooLong, SpeechError
from speech.ports import (
    DecodedAudio,
    Decoder,
    DiarizeOptions,
    Diarizer,
    EmotionClassifier,
    EmotionOptions,
    FileTranscriber,
    TranscribeOptions,
)
from speech.transcript import (
    BranchError,
    Diarization,
    EmotionSpan,
    Recognition,
    Segment,
    Span,
    Transcript,
)

K = TypeVar("K")
T = TypeVar("T")
Task = Literal["transcribe", "diarization", "emotion"]
Stage = Literal["decode", "transcribe", "diarization", "emotion", "merge"]

MAX_SPANS = 20
"""Spans that one warning lists."""


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What to do with a file.

    ``partial_results``: a failed branch does not end the others. ``speedup``: the models process
    the file that many times as fast; all times of options and results are those of the original.
    """

    tasks: frozenset[Task]
    transcribe: TranscribeOptions = TranscribeOptions()
    diarize: DiarizeOptions = DiarizeOptions()
    emotion: EmotionOptions = EmotionOptions()
    partial_results: bool = False
    speedup: float = 1.0
    max_seconds: float | None = None
    """Longest file that this request may have; the decoder has a bound of its own."""

    @property
    def needs_words(self) -> bool:
        """Whether the file is transcribed, if only to find where its words are."""
        if "transcribe" in self.tasks:
            return True
        return self.tasks == {"emotion"} and self.emotion.level in ("word", "sentence")

    @property
    def needs_word_times(self) -> bool:
        """Whether speakers or emotions are attributed to words, asked for or not."""
        return "diarization" in self.tasks or (
            "emotion" in self.tasks and self.emotion.level != "file"
        )


@dataclass(slots=True)
class _Run:
    """What one request has collected so far."""

    options: ProcessOptions
    observe: Callable[[Stage, float], None]
    begin: Callable[[Stage], None]
    hides_words: bool
    """Words are recognised for other steps alone."""
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[BranchError] = field(default_factory=list)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage; the two passes of emotion add up."""
        start = time.perf_counter()
        self.begin(name)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
            self.observe(name, elapsed)

    def shown(self, segment: Segment) -> Segment:
        """The segment as the transcript has it."""
        return replace(segment, words=()) if self.hides_words else segment

    async def branch(self, name: Task, work: Awaitable[T]) -> T | None:
        """Await one branch; its error ends the request, or with partial results only the branch."""
        try:
            with self.stage(name):
                return await work
        except SpeechError as error:
            if not self.options.partial_results:
                raise
            self.errors.append(BranchError(name, error.code, error.message))
            return None


class SpeechGraph:
    """The DAG of ``POST /v1/process`` over four ports.

    ``begin`` is called with every stage as it begins, ``observe`` with its seconds as it ends.
    Cancelling :meth:`process` cancels every branch that runs.
    """

    def __init__(
        self,
        decoder: Decoder,
        transcriber: FileTranscriber,
        diarizer: Diarizer,
        emotions: EmotionClassifier,
        observe: Callable[[Stage, float], None] = lambda stage, seconds: None,
        begin: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self._decoder = decoder
        self._transcriber = transcriber
        self._diarizer = diarizer
        self._emotions = emotions
        self._observe = observe
        self._begin = begin

    async def process(self, data: bytes, options: ProcessOptions) -> Transcript:
        """Decode a file and run the requested tasks.

        Raises the error of the first branch that fails, unless ``partial_results`` is set; an
        error of decoding always ends the request.
        """
        run = self._run(options)
        options = run.options
        wants_channels = "diarization" in options.tasks and options.diarize.stereo_mode
        with run.stage("decode"):
            audio = await self._decode(data, options, keep_channels=wants_channels)
        run.warnings += audio.warnings
        stereo = wants_channels and audio.channels == 2
        if wants_channels and not stereo:
            run.warnings.append(
                f"stereo_mode needs two channels, this audio has {audio.channels}: "
                "speakers were found by the diarization model"
            )
        recognitions, diarization, file_emotion = await self._side_by_side(run, audio, stereo)
        segments = self._merge_words(run, recognitions, diarization)
        emotions = file_emotion
        if emotions is None and "emotion" in options.tasks and options.emotion.level != "file":
            emotions = await self._emotions_of_spans(run, audio, segments, diarization)
        return self._transcript(run, audio, recognitions, segments, diarization, emotions)

    async def stream(
        self, data: bytes, options: ProcessOptions
    ) -> AsyncGenerator[Segment | Transcript, None]:
        """The segments of a file one by one as they are recognised, then its transcript.

        They are those of :meth:`process` for the mono mix. The speakers of all segments are found
        beforehand, emotions are in the transcript alone. Raises the first error, also with
        ``partial_results``; closing the generator cancels what runs.
        """
        run = self._run(replace(options, partial_results=False))
        options = run.options
        with run.stage("decode"):
            audio = await self._decode(data, options, keep_channels=False)
        run.warnings += audio.warnings
        speakers: asyncio.Task[Diarization | None] | None = None
        if "diarization" in options.tasks:
            diarize = replace(options.diarize, stereo_mode=False)
            turns = self._diarizer.diarize(audio, diarize)
            speakers = asyncio.create_task(run.branch("diarization", turns))
        recognition = Recognition(())
        found: list[Segment] = []
        diarization: Diarization | None = None
        parts = self._transcriber.stream(audio, options.transcribe)
        try:
            with run.stage("transcribe"):
                async for recognition in parts:
                    if recognition.segments and speakers is not None:
                        diarization = await speakers
                    segments = self._merge_words(run, [recognition], diarization) or ()
                    found += segments
                    for segment in segments:
                        yield run.shown(segment).stretched(options.speedup).rounded()
            if speakers is not None:
                diarization = await speakers
        finally:
            await parts.aclose()
            if speakers is not None:
                speakers.cancel()
                await asyncio.gather(speakers, return_exceptions=True)
        emotions = None
        if "emotion" in options.tasks:
            emotions = await self._emotions_of_spans(run, audio, tuple(found), diarization)
        yield self._transcript(run, audio, [recognition], tuple(found), diarization, emotions)

    def _run(self, options: ProcessOptions) -> "_Run":
        """A run with the options of the models: for sped-up audio, and with the words they need."""
        transcribe = options.transcribe.faster(options.speedup)
        run_options = replace(
            options,
            transcribe=replace(
                transcribe,
                word_timestamps=transcribe.word_timestamps or options.needs_word_times,
            ),
        )
        hides_words = not transcribe.word_timestamps
        return _Run(run_options, self._observe, self._begin, hides_words)

    async def _decode(
        self, data: bytes, options: ProcessOptions, *, keep_channels: bool
    ) -> DecodedAudio:
        audio = await self._decoder.decode(data, keep_channels, options.speedup)
        most = options.max_seconds
        if most is not None and audio.duration * options.speedup > most:
            raise AudioTooLong(f"the audio is longer than {most:g} seconds")
        return audio

    async def _side_by_side(
        self, run: _Run, audio: DecodedAudio, stereo: bool
    ) -> tuple[list[Recognition] | None, Diarization | None, list[EmotionSpan] | None]:
        options = run.options
        branches: dict[Task, Coroutine[Any, Any, Any]] = {}
        if options.needs_words:
            channels: list[int | None] = [0, 1] if stereo else [None]
            recognise = self._recognise(audio, options, channels)
            branches["transcribe"] = run.branch("transcribe", recognise)
        if "diarization" in options.tasks:
            diarize = replace(options.diarize, stereo_mode=stereo)
            turns = self._diarizer.diarize(audio, diarize)
            branches["diarization"] = run.branch("diarization", turns)
        if "emotion" in options.tasks and options.emotion.level == "file":
            spans, _ = merge.emotion_spans("file", None, None, audio.duration)
            emotions = self._classify(audio, spans, options.emotion)
            branches["emotion"] = run.branch("emotion", emotions)
        found = await _all_or_first_error(branches)
        return found.get("transcribe"), found.get("diarization"), found.get("emotion")

    async def _recognise(
        self, audio: DecodedAudio, options: ProcessOptions, channels: list[int | None]
    ) -> list[Recognition]:
        recognitions = await _all_or_first_error(
            {c: self._transcriber.transcribe(audio, options.transcribe, c) for c in channels}
        )
        return list(recognitions.values())

    async def _classify(
        self, audio: DecodedAudio, spans: list[Span], options: EmotionOptions
    ) -> list[EmotionSpan]:
        scores = await self._emotions.classify(audio, spans, options) if spans else []
        return [
            EmotionSpan(span.start, span.end, score, span.speaker, span.channel)
            for span, score in zip(spans, scores, strict=True)
        ]

    def _merge_words(
        self,
        run: _Run,
        recognitions: list[Recognition] | None,
        diarization: Diarization | None,
    ) -> tuple[Segment, ...] | None:
        if recognitions is None:
            return None
        with run.stage("merge"):
            for recognition in recognitions:
                run.warnings += [w for w in recognition.warnings if w not in run.warnings]
            missed = [span for recognition in recognitions for span in recognition.missed]
            if missed:
                run.warnings.append(_incomplete(missed, run.options.speedup))
            single = len(recognitions) == 1
            segments = recognitions[0].segments if single else merge.join_channels(recognitions)
            return merge.attribute(segments, diarization) if diarization else segments

    async def _emotions_of_spans(
        self,
        run: _Run,
        audio: DecodedAudio,
        segments: tuple[Segment, ...] | None,
        diarization: Diarization | None,
    ) -> list[EmotionSpan] | None:
        options = run.options.emotion
        turns = diarization.turns if diarization else None
        spans, warning = merge.emotion_spans(options.level, segments, turns, audio.duration)
        if warning:
            run.warnings.append(warning)
        return await run.branch("emotion", self._classify(audio, spans, options))

    def _transcript(
        self,
        run: _Run,
        audio: DecodedAudio,
        recognitions: list[Recognition] | None,
        segments: tuple[Segment, ...] | None,
        diarization: Diarization | None,
        emotions: list[EmotionSpan] | None,
    ) -> Transcript:
        options = run.options
        if diarization is not None:
            run.warnings += _speaker_count(options.diarize, diarization)
        if segments is not None and emotions:
            segments = merge.with_emotions(segments, emotions, options.emotion.level)
        if segments is not None:
            segments = tuple(run.shown(segment) for segment in segments)
        surest = max(recognitions or [], key=lambda r: r.language_probability or 0.0, default=None)
        used = {
            "transcribe": options.transcribe.model if options.needs_words else None,
            "diarization": options.diarize.model if "diarization" in options.tasks else None,
            "emotion": options.emotion.model if "emotion" in options.tasks else None,
        }
        transcript = Transcript(
            duration=audio.duration,
            language=surest.language if surest else None,
            language_probability=surest.language_probability if surest else None,
            segments=segments if "transcribe" in options.tasks else None,
            turns=diarization.turns if diarization else None,
            emotions=None if emotions is None else tuple(emotions),
            models={task: model for task, model in used.items() if model},
            stage_seconds=run.seconds,
            warnings=tuple(run.warnings),
            errors=tuple(run.errors),
        )
        return transcript.stretched(options.speedup).rounded()


def _speaker_count(asked: DiarizeOptions, diarization: Diarization) -> Iterator[str]:
    """A warning where the number of speakers is not the one that was asked for."""
    found = len({turn.speaker for turn in diarization.turns})
    fewest = asked.num_speakers or asked.min_speakers or 0
    most = asked.num_speakers or asked.max_speakers or found
    if not fewest <= found <= most:
        bounds = ("num_speakers", "min_speakers", "max_speakers")
        given = [f"{name} {value}" for name in bounds if (value := getattr(asked, name))]
        number = "1 speaker was" if found == 1 else f"{found} speakers were"
        yield f"{number} found with {' and '.join(given)}"


def _incomplete(missed: list[tuple[float, float]], speedup: float) -> str:
    spans = [f"{start * speedup:.1f}–{end * speedup:.1f}" for start, end in sorted(missed)]
    more = f" and {len(spans) - MAX_SPANS} more" if len(spans) > MAX_SPANS else ""
    return f"the text may be incomplete at {', '.join(spans[:MAX_SPANS])}{more} s"


async def _all_or_first_error(work: Mapping[K, Coroutine[Any, Any, T]]) -> dict[K, T]:
    """Run side by side; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(w) for key, w in work.items()}
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {key: task.result() for key, task in tasks.items()}
