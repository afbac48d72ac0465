"""Voice activity of live streams: the same however the audio is split."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.vad.silero_vad import SileroVad, StreamingSilero
from engines.vad.webrtc_vad import WebRtcVad
from speech.audio import SAMPLE_RATE, Samples
from speech.errors import Cancelled, EngineFailed
from speech.media.segmentation import WINDOW_SAMPLES
from speech.ports import VoiceActivity
from tests.unit.heldout import clips, conversation

CUTS = st.lists(st.integers(0, 6 * SAMPLE_RATE), max_size=40)


@pytest.fixture(scope="module")
def audio(demo_audio: Path) -> Samples:
    """Seconds of speech with pauses, ending inside a window."""
    return conversation(clips(demo_audio, 1), seconds=6)[: 6 * SAMPLE_RATE + 100]


@pytest.fixture(scope="module")
def expected(audio: Samples) -> NDArray[np.float32]:
    """The probabilities of SileroVad for the whole windows of the audio."""
    return SileroVad().probabilities(audio)[: len(audio) // WINDOW_SAMPLES]


@pytest.fixture(scope="module")
def silero() -> StreamingSilero:
    return StreamingSilero()


async def probabilities_of(stream: VoiceActivity, pieces: list[Samples]) -> NDArray[np.float32]:
    """All probabilities; each piece must give those of the windows that it completes."""
    found, samples = [np.zeros(0, np.float32)], 0
    for piece in pieces:
        before, samples = samples // WINDOW_SAMPLES, samples + len(piece)
        found.append(await stream.feed(piece))
        assert found[-1].dtype == np.float32
        assert found[-1].shape == (samples // WINDOW_SAMPLES - before,)
    return np.concatenate(found)


@given(cuts=CUTS)
@settings(max_examples=30, deadline=None)
def test_silero_probabilities_do_not_depend_on_how_audio_is_split(
    silero: StreamingSilero, audio: Samples, expected: NDArray[np.float32], cuts: list[int]
) -> None:
    found = asyncio.run(probabilities_of(silero.open(), np.split(audio, sorted(cuts))))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@given(cuts=CUTS, aggressiveness=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_webrtc_probabilities_do_not_depend_on_how_audio_is_split(
    audio: Samples, cuts: list[int], aggressiveness: int
) -> None:
    at_once = asyncio.run(probabilities_of(WebRtcVad(aggressiveness), [audio]))
    found = asyncio.run(probabilities_of(WebRtcVad(aggressiveness), np.split(audio, sorted(cuts))))
    np.testing.assert_array_equal(found, at_once)


async def test_streams_at_the_same_time_do_not_disturb_each_other(
    silero: StreamingSilero, audio: Samples, expected: NDArray[np.float32]
) -> None:
    silence = np.zeros_like(audio)
    sizes = (160, 512, 1600, 7000)
    found = await asyncio.gather(
        *(
            probabilities_of(silero.open(), np.split(source, range(size, len(source), size)))
            for size in sizes
            for source in (audio, silence)
        )
    )
    for probabilities in found[::2]:
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert all(np.max(probabilities) < 0.5 for probabilities in found[1::2])


async def test_a_failure_ends_its_own_stream_alone(
    silero: StreamingSilero, audio: Samples, expected: NDArray[np.float32]
) -> None:
    broken = silero.open()
    bad = np.full(WINDOW_SAMPLES, "noise")
    outcome, found = await asyncio.gather(
        broken.feed(bad), probabilities_of(silero.open(), [audio]), return_exceptions=True
    )
    assert isinstance(outcome, EngineFailed)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(Cancelled):
        await broken.feed(audio)


async def test_a_cancelled_feed_ends_its_own_stream_alone(
    silero: StreamingSilero, audio: Samples, expected: NDArray[np.float32]
) -> None:
    cancelled = silero.open()
    feeding = asyncio.create_task(cancelled.feed(audio))
    other = asyncio.create_task(probabilities_of(silero.open(), [audio]))
    await asyncio.sleep(0)
    feeding.cancel()
    np.testing.assert_allclose(await other, expected, atol=1e-4)
    with pytest.raises(Cancelled):
        await cancelled.feed(audio)


@pytest.mark.parametrize("aggressiveness", [0, 1, 2, 3])
async def test_webrtc_detects_speech_and_no_speech_in_silence(
    audio: Samples, aggressiveness: int
) -> None:
    spoken = await WebRtcVad(aggressiveness).feed(audio)
    silent = await WebRtcVad(aggressiveness).feed(np.zeros_like(audio))
    assert set(np.unique(spoken)) <= {0.0, 1.0}
    assert np.mean(spoken) > 0.2
    assert np.mean(silent[3:]) == 0  # the detector starts in doubt


async def test_a_more_aggressive_webrtc_detects_less_speech(audio: Samples) -> None:
    shares = [float(np.mean(await WebRtcVad(mode).feed(audio))) for mode in range(4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[3]


async def test_a_frame_of_speech_marks_the_window_it_ends_in(
    audio: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webrtcvad

    asked = iter(range(10_000))
    spoken = {3: 1, 15: 4, 20: 6}  # frames, and the windows in which their last sample lies

    class Detector:
        def __init__(self, mode: int) -> None: ...

        def is_speech(self, frame: bytes, rate: int) -> bool:
            assert (len(frame), rate) == (320, SAMPLE_RATE)
            return next(asked) in spoken

    monkeypatch.setattr(webrtcvad, "Vad", Detector)
    found = await probabilities_of(WebRtcVad(2), np.split(audio, range(700, len(audio), 700)))
    assert list(np.flatnonzero(found)) == list(spoken.values())
