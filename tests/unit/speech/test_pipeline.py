"""The graph over ports that answer at once: which branches run, and how errors end them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from speech.errors import EngineFailed, UnsupportedAudio
from speech.pipeline import ProcessOptions, SpeechGraph, Task
from speech.ports import (
    DecodedAudio,
    DiarizeOptions,
    EmotionLevel,
    EmotionOptions,
    TranscribeOptions,
    clip_times,
)
from speech.transcript import (
    Diarization,
    Recognition,
    Scores,
    Segment,
    Span,
    Transcript,
    Turn,
    Word,
)

HELLO = Segment(
    0.0, 2.0, " Hello there. Bye.",
    (Word(" Hello", 0.0, 0.5, 0.9), Word(" there.", 0.5, 0.9, 0.9), Word(" Bye.", 1.5, 2.0, 0.9)),
)  # fmt: skip
TURNS = (Turn(0.0, 1.0, "SPEAKER_00"), Turn(1.4, 2.0, "SPEAKER_01"))
CALM: Scores = {"angry": 0.0, "sad": 0.0, "neutral": 1.0, "positive": 0.0}


@dataclass
class Models:
    """All four ports; each records its calls, can fail, and can be made to wait."""

    channels: int = 1
    seconds: float = 2.0
    failing: dict[str, Exception] = field(default_factory=dict)
    hanging: frozenset[str] = frozenset()
    parts: int = 1
    missed: tuple[tuple[float, float], ...] = ()
    calls: list[tuple[str, Any]] = field(default_factory=list)
    windows: list[tuple[float, TranscribeOptions]] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    together: set[frozenset[str]] = field(default_factory=set)

    async def decode(self, data: bytes, keep_channels: bool, speedup: float) -> DecodedAudio:
        await self._work("decode", keep_channels)
        kept = self.channels if keep_channels else 1
        seconds = self.seconds / speedup
        return DecodedAudio(None, seconds, kept, ("odd file",))

    async def transcribe(
        self, audio: DecodedAudio, options: TranscribeOptions, channel: int | None
    ) -> Recognition:
        self.windows.append((audio.duration, options))
        await self._work("transcribe", channel)
        segment = HELLO if options.word_timestamps else replace(HELLO, words=())
        return Recognition((segment,), "en", 0.98, ("odd option",), self.missed)

    async def stream(
        self, audio: DecodedAudio, options: TranscribeOptions
    ) -> AsyncGenerator[Recognition, None]:
        """``parts`` copies of the segment, two seconds apart."""
        for number in range(self.parts):
            whole = await self.transcribe(audio, options, None)
            (segment,) = whole.segments
            words = tuple(word.shifted(2.0 * number) for word in segment.words)
            start = 2.0 * number
            later = replace(segment, start=start, end=start + 2.0, words=words)
            yield Recognition((later,))
        yield replace(whole, segments=())

    async def diarize(self, audio: DecodedAudio, options: DiarizeOptions) -> Diarization:
        await self._work("diarize", options.stereo_mode)
        if options.stereo_mode:
            turns = (Turn(0.0, 2.0, "L0", 0), Turn(0.0, 2.0, "R0", 1))
            return Diarization(turns, turns)
        return Diarization(TURNS, TURNS)

    async def classify(
        self, audio: DecodedAudio, spans: Sequence[Span], options: EmotionOptions
    ) -> list[Scores]:
        await self._work("classify", list(spans))
        return [CALM for _ in spans]

    async def _work(self, name: str, detail: Any) -> None:
        self.calls.append((name, detail))
        self.running.add(name)
        try:
            await asyncio.sleep(0)
            self.together.add(frozenset(self.running))
            if name in self.hanging:
                await asyncio.Event().wait()
            if name in self.failing:
                raise self.failing[name]
        except asyncio.CancelledError:
            self.cancelled.add(name)
            raise
        finally:
            self.running.discard(name)

    @property
    def graph(self) -> SpeechGraph:
        return SpeechGraph(self, self, self, self)

    def detail(self, name: str) -> Any:
        return next(detail for called, detail in self.calls if called == name)


def options(*tasks: Task, level: EmotionLevel = "word", **more: Any) -> ProcessOptions:
    return ProcessOptions(frozenset(tasks), emotion=EmotionOptions(level=level), **more)


async def test_words_get_their_speaker_and_segments_split_where_it_changes() -> None:
    models = Models()
    result = await models.graph.process(b"x", options("transcribe", "diarization"))
    assert result.segments is not None
    assert [(s.speaker, s.text.strip()) for s in result.segments] == [
        ("SPEAKER_00", "Hello there."),
        ("SPEAKER_01", "Bye."),
    ]
    assert result.text == "Hello there. Bye."


async def test_transcribe_diarize_and_file_emotion_run_side_by_side() -> None:
    models = Models()
    await models.graph.process(b"x", options("transcribe", "diarization", "emotion", level="file"))
    assert frozenset({"transcribe", "diarize", "classify"}) in models.together


async def test_audio_is_decoded_once_for_any_set_of_tasks() -> None:
    models = Models()
    await models.graph.process(b"x", options("transcribe", "diarization", "emotion"))
    assert [name for name, _ in models.calls].count("decode") == 1


@pytest.mark.parametrize(
    ("level", "spans"),
    [
        ("word", [(0.0, 0.5), (0.5, 0.9), (1.5, 2.0)]),
        ("sentence", [(0.0, 0.9), (1.5, 2.0)]),
        ("speaker", [(0.0, 1.0), (1.4, 2.0)]),
        ("file", [(0.0, 2.0)]),
    ],
)
async def test_each_emotion_level_classifies_its_own_spans(
    level: EmotionLevel, spans: list[tuple[float, float]]
) -> None:
    models = Models()
    requested = options("transcribe", "diarization", "emotion", level=level)
    result = await models.graph.process(b"x", requested)
    assert result.emotions is not None
    assert [(e.start, e.end) for e in result.emotions] == spans
    assert [e.speaker for e in result.emotions] == (
        ["SPEAKER_00", "SPEAKER_01"] if level == "speaker" else [None] * len(spans)
    )


async def test_every_segment_has_an_emotion_when_the_request_includes_emotion() -> None:
    result = await Models().graph.process(b"x", options("transcribe", "emotion", level="sentence"))
    assert result.segments is not None
    assert all(s.emotion == CALM for s in result.segments)


@pytest.mark.parametrize("level", ["word", "sentence"])
async def test_emotion_alone_transcribes_but_returns_no_segments(
    level: EmotionLevel,
) -> None:
    models = Models()
    result = await models.graph.process(b"x", options("emotion", level=level))
    assert "transcribe" in dict(models.calls)
    assert result.segments is None
    assert result.emotions is not None
    assert len(result.emotions) > 1


async def test_emotion_of_the_file_alone_needs_no_recogniser() -> None:
    models = Models()
    await models.graph.process(b"x", options("emotion", level="file"))
    assert "transcribe" not in dict(models.calls)


async def test_speaker_level_without_turns_falls_back_to_words_with_a_warning() -> None:
    result = await Models().graph.process(b"x", options("transcribe", "emotion", level="speaker"))
    assert result.emotions is not None
    assert len(result.emotions) == 3
    assert any("speaker" in warning for warning in result.warnings)


async def test_stereo_mode_transcribes_each_channel_and_names_its_speaker() -> None:
    models = Models(channels=2)
    stereo = options("transcribe", "diarization", diarize=DiarizeOptions(stereo_mode=True))
    result = await models.graph.process(b"x", stereo)
    assert models.detail("decode") is True
    assert [d for n, d in models.calls if n == "transcribe"] == [0, 1]
    assert result.segments is not None
    assert result.turns is not None
    assert {(s.channel, s.speaker) for s in result.segments} == {(0, "L0"), (1, "R0")}


async def test_stereo_mode_on_mono_audio_falls_back_to_the_model_with_a_warning() -> None:
    models = Models(channels=1)
    stereo = options("transcribe", "diarization", diarize=DiarizeOptions(stereo_mode=True))
    result = await models.graph.process(b"x", stereo)
    assert models.detail("diarize") is False
    assert any("stereo_mode" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        (DiarizeOptions(num_speakers=5), "2 speakers were found with num_speakers 5"),
        (DiarizeOptions(min_speakers=3), "2 speakers were found with min_speakers 3"),
        (DiarizeOptions(max_speakers=1), "2 speakers were found with max_speakers 1"),
        (DiarizeOptions(num_speakers=2), None),
        (DiarizeOptions(min_speakers=1, max_speakers=2), None),
        (DiarizeOptions(), None),
    ],
)
async def test_another_number_of_speakers_than_asked_for_is_a_warning(
    asked: DiarizeOptions, warning: str | None
) -> None:
    requested = options("transcribe", "diarization", diarize=asked)
    result = await Models().graph.process(b"x", requested)
    assert [w for w in result.warnings if "speaker" in w] == ([warning] if warning else [])
    *_, streamed = [item async for item in Models().graph.stream(b"x", requested)]
    assert isinstance(streamed, Transcript)
    assert streamed.warnings == result.warnings


async def test_warnings_of_decoding_are_in_the_transcript() -> None:
    result = await Models().graph.process(b"x", options("transcribe"))
    assert "odd file" in result.warnings


async def test_a_failing_branch_fails_the_request_and_cancels_its_siblings() -> None:
    models = Models(
        failing={"diarize": EngineFailed("no voices")}, hanging=frozenset({"transcribe"})
    )
    with pytest.raises(EngineFailed, match="no voices"):
        await models.graph.process(b"x", options("transcribe", "diarization"))
    assert models.cancelled == {"transcribe"}


async def test_with_partial_results_the_other_branches_finish_and_the_error_is_listed() -> None:
    models = Models(failing={"diarize": EngineFailed("no voices")})
    requested = options("transcribe", "diarization", "emotion", partial_results=True)
    result = await models.graph.process(b"x", requested)
    assert result.segments is not None
    assert result.emotions is not None
    assert result.turns is None
    assert [(e.task, e.code) for e in result.errors] == [("diarization", "engine_failed")]


async def test_an_error_of_decoding_ends_the_request_even_with_partial_results() -> None:
    models = Models(failing={"decode": UnsupportedAudio("no audio")})
    with pytest.raises(UnsupportedAudio):
        await models.graph.process(b"x", options("transcribe", partial_results=True))


async def test_cancelling_the_request_cancels_every_branch() -> None:
    models = Models(hanging=frozenset({"transcribe", "diarize"}))
    request = asyncio.create_task(models.graph.process(b"x", options("transcribe", "diarization")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert models.running == {"transcribe", "diarize"}
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert models.cancelled == {"transcribe", "diarize"}
    assert not models.running


async def test_the_seconds_of_every_stage_are_in_the_transcript_and_observed() -> None:
    models = Models()
    seen: list[str] = []
    graph = SpeechGraph(models, models, models, models, lambda stage, _: seen.append(stage))
    result = await graph.process(b"x", options("transcribe", "diarization", "emotion"))
    assert set(result.stage_seconds) == set(seen) == {
        "decode", "transcribe", "diarization", "merge", "emotion",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in result.stage_seconds.values())


# ---------------------------------------------------------------- a file as a stream


async def test_models_process_a_sped_up_file_and_all_times_are_those_of_the_original() -> None:
    models = Models(seconds=10.0)
    tasks = options("transcribe", "diarization", "emotion", level="speaker", speedup=1.25)
    result = await models.graph.process(b"x", tasks)
    ((heard_s, _),) = models.windows
    assert heard_s == 8.0
    assert result.duration == 10.0
    assert result.segments is not None
    assert [(w.start, w.end) for s in result.segments for w in s.words] == [
        (w.start * 1.25, w.end * 1.25) for w in HELLO.words
    ]
    assert [(s.start, s.end) for s in result.segments] == [(0.0, 1.125), (1.875, 2.5)]
    assert result.turns == (Turn(0.0, 1.25, "SPEAKER_00"), Turn(1.75, 2.5, "SPEAKER_01"))
    assert result.emotions is not None
    assert [(e.start, e.end) for e in result.emotions] == [(0.0, 1.25), (1.75, 2.5)]


@pytest.mark.parametrize("clips", [(5.0, 10.0, 20.0), "5,10,20"])
async def test_times_of_options_are_scaled_to_the_sped_up_file(
    clips: Any,
) -> None:
    models = Models()
    times = TranscribeOptions(clip_timestamps=clips, hallucination_silence_threshold=2.0)
    await models.graph.process(b"x", options("transcribe", transcribe=times, speedup=1.25))
    ((_, passed),) = models.windows
    assert passed.clip_timestamps == (4.0, 8.0, 16.0)
    assert passed.hallucination_silence_threshold == 1.6


async def test_clips_of_the_whole_file_cover_it_when_it_is_sped_up() -> None:
    models = Models()
    await models.graph.process(b"x", options("transcribe", speedup=2.0))
    assert clip_times(models.windows[0][1]) == []


async def test_the_window_of_a_segment_has_the_time_of_the_original() -> None:
    assert replace(HELLO, seek=3000).stretched(1.25).seek == 3750


async def test_a_stream_of_a_sped_up_file_has_times_of_the_original() -> None:
    models = Models(seconds=10.0)
    requested = options("transcribe", speedup=1.25)
    segment, transcript = [item async for item in models.graph.stream(b"x", requested)]
    assert isinstance(segment, Segment)
    assert (segment.start, segment.end) == (0.0, 2.5)
    assert isinstance(transcript, Transcript)
    assert transcript.duration == 10.0
    assert transcript.segments == (segment,)


async def test_a_stream_yields_a_segment_before_the_next_is_recognised() -> None:
    models = Models(parts=3)
    stream = models.graph.stream(b"x", options("transcribe"))
    first = await anext(stream)
    assert first == HELLO
    assert len(models.windows) == 1
    *segments, transcript = [item async for item in stream]
    assert [type(item) for item in segments] == [Segment, Segment]
    assert isinstance(transcript, Transcript)
    assert transcript.segments == (first, *segments)
    assert transcript.duration == models.seconds
    assert transcript.text == "Hello there. Bye. Hello there. Bye. Hello there. Bye."
    assert (transcript.language, transcript.language_probability) == ("en", 0.98)
    assert transcript.warnings == ("odd file", "odd option")


@pytest.mark.parametrize("word_timestamps", [True, False])
@pytest.mark.parametrize("tasks", [("transcribe",), ("transcribe", "diarization")])
async def test_a_stream_ends_with_the_transcript_of_the_file(
    tasks: tuple[Task, ...], word_timestamps: bool
) -> None:
    models = Models(missed=((0.5, 1.0),))
    requested = options(*tasks, transcribe=TranscribeOptions(word_timestamps=word_timestamps))
    *segments, streamed = [item async for item in models.graph.stream(b"x", requested)]
    whole = await models.graph.process(b"x", requested)
    assert isinstance(streamed, Transcript)
    assert replace(streamed, stage_seconds={}) == replace(whole, stage_seconds={})
    assert tuple(segments) == whole.segments


@pytest.mark.parametrize(
    ("tasks", "level"),
    [
        (("transcribe", "diarization"), "file"),
        (("transcribe", "emotion"), "word"),
        (("transcribe", "emotion"), "sentence"),
        (("transcribe", "emotion"), "speaker"),
        (("emotion",), "word"),
    ],
)
async def test_speakers_and_emotions_are_those_of_words_that_the_answer_does_not_have(
    tasks: tuple[Task, ...], level: EmotionLevel
) -> None:
    requested = options(*tasks, level=level)
    shown = await Models().graph.process(b"x", requested)
    without = replace(requested, transcribe=TranscribeOptions(word_timestamps=False))
    hidden = await Models().graph.process(b"x", without)
    assert hidden.emotions == shown.emotions
    assert hidden.turns == shown.turns
    if shown.segments is None:
        assert hidden.segments is None
        return
    assert hidden.segments == tuple(replace(s, words=()) for s in shown.segments)
    assert any(segment.words for segment in shown.segments)


async def test_words_are_not_recognised_for_a_request_that_needs_none() -> None:
    models = Models()
    plain = options(
        "transcribe", "emotion", level="file", transcribe=TranscribeOptions(word_timestamps=False)
    )
    result = await models.graph.process(b"x", plain)
    assert [options.word_timestamps for _, options in models.windows] == [False]
    assert result.segments is not None
    assert [segment.words for segment in result.segments] == [()]


async def test_speech_without_text_is_named_by_its_seconds_in_the_file() -> None:
    models = Models(missed=((4.0, 10.0), (20.0, 22.0)))
    result = await models.graph.process(b"x", options("transcribe", speedup=1.25))
    assert "the text may be incomplete at 5.0–12.5, 25.0–27.5 s" in result.warnings
    models.missed = tuple((float(n), n + 0.5) for n in range(1000))
    result = await models.graph.process(b"x", options("transcribe"))
    (warning,) = (w for w in result.warnings if "incomplete" in w)
    assert warning.endswith("19.0–19.5 and 980 more s")


async def test_a_stream_has_speakers_in_its_segments_and_emotions_in_its_transcript() -> None:
    models = Models()
    requested = options("transcribe", "diarization", "emotion", level="speaker")
    *segments, transcript = [item async for item in models.graph.stream(b"x", requested)]
    assert [s.speaker for s in segments if isinstance(s, Segment)] == ["SPEAKER_00", "SPEAKER_01"]
    assert isinstance(transcript, Transcript)
    assert transcript.turns == TURNS
    assert transcript.emotions is not None
    assert [e.speaker for e in transcript.emotions] == ["SPEAKER_00", "SPEAKER_01"]
    assert transcript.segments is not None
    assert all(s.emotion == CALM for s in transcript.segments)


@pytest.mark.parametrize("branch", ["decode", "transcribe", "diarize", "classify"])
async def test_a_stream_ends_with_the_error_of_any_branch(branch: str) -> None:
    models = Models(failing={branch: EngineFailed(branch)})
    requested = options("transcribe", "diarization", "emotion", partial_results=True)
    with pytest.raises(EngineFailed, match=branch):
        [item async for item in models.graph.stream(b"x", requested)]


async def test_cancelling_a_stream_cancels_its_branches() -> None:
    models = Models(hanging=frozenset({"transcribe", "diarize"}))
    stream = models.graph.stream(b"x", options("transcribe", "diarization"))
    waiting = asyncio.create_task(anext(stream))
    while models.running != {"transcribe", "diarize"}:  # noqa: ASYNC110
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert models.cancelled == {"transcribe", "diarize"}


async def test_a_stream_that_is_closed_recognises_no_more() -> None:
    models = Models(parts=3)
    stream = models.graph.stream(b"x", options("transcribe", "diarization"))
    await anext(stream)
    await stream.aclose()
    assert len(models.windows) == 1
    assert not models.running


def all_times(result: Transcript) -> list[float]:
    assert result.segments is not None
    timed = [*result.segments, *(result.turns or ()), *(result.emotions or ())]
    timed += [word for segment in result.segments for word in segment.words]
    spans = [time for item in timed for time in (item.start, item.end)]
    return [result.duration, *result.stage_seconds.values(), *spans]


async def test_all_times_of_a_transcript_are_whole_milliseconds() -> None:
    models = Models(seconds=2.0000001)
    tasks = options("transcribe", "diarization", "emotion", level="speaker", speedup=1.1)
    result = await models.graph.process(b"x", tasks)
    assert max(all_times(result)) > 2.0
    assert all_times(result) == [round(time, 3) for time in all_times(result)]


async def test_all_times_of_a_stream_are_whole_milliseconds() -> None:
    requested = options("transcribe", "diarization", speedup=1.1)
    async for found in Models(seconds=70.0000001).graph.stream(b"x", requested):
        whole = Transcript(0.0, segments=(found,)) if isinstance(found, Segment) else found
        assert all_times(whole) == [round(time, 3) for time in all_times(whole)]
