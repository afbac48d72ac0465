"""PCM of a live stream in any encoding, rate and number of channels, however it is split."""

import asyncio

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE, Audio
from speech.errors import InvalidRequest
from speech.live.pcm import PcmDecoder, PcmEncoding
from speech.live.stream_decoder import stream_decoder
from tests.unit.sound_files import TONE_RMS, assert_is_tone, level, to_s16, tone
from tests.unit.speech.live.chunks import decoded, pieces

RATES = (8_000, 11_025, 16_000, 44_100, 48_000)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
async def test_a_tone_of_any_rate_is_the_same_tone(encoding: PcmEncoding, rate: int) -> None:
    signal = tone(2.0, rate)
    data = (to_s16(signal) if encoding == "pcm_s16le" else signal).tobytes()
    samples = await decoded(PcmDecoder(encoding, rate), pieces(data, 999))
    assert_is_tone(Audio(samples), 2.0, 0.0001, level_error=0.01)


@pytest.mark.parametrize("rate", RATES)
async def test_borders_of_chunks_cannot_be_decoded(rate: int) -> None:
    signal = np.random.default_rng(rate).uniform(-0.5, 0.5, rate).astype(np.float32)
    samples = await decoded(PcmDecoder("pcm_f32le", rate), pieces(signal.tobytes(), 1_001))
    assert samples == pytest.approx(soxr.resample(signal, rate, SAMPLE_RATE), abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    encoding=st.sampled_from(["pcm_s16le", "pcm_f32le"]),
    rate=st.sampled_from(RATES),
    channels=st.integers(1, 3),
    data=st.binary(max_size=600),
    cuts=st.lists(st.integers(0, 600), max_size=8),
)
async def test_no_sample_is_lost_or_doubled_wherever_frames_are_split(
    encoding: PcmEncoding, rate: int, channels: int, data: bytes, cuts: list[int]
) -> None:
    at = sorted(cuts)
    chunks = [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]
    samples = await decoded(PcmDecoder(encoding, rate, channels), chunks)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0.0) <= 1.0
    whole = await decoded(PcmDecoder(encoding, rate, channels), [data])
    assert samples == pytest.approx(whole, abs=1e-6)
    frames = len(data) // ((2 if encoding == "pcm_s16le" else 4) * channels)
    assert abs(len(samples) - frames * SAMPLE_RATE / rate) <= 0.5


@pytest.mark.parametrize("rate", [8_000, 44_100])
async def test_an_hour_does_not_drift(rate: int) -> None:
    chunk = np.zeros(10 * rate, np.int16).tobytes()
    stream, total = PcmDecoder("pcm_s16le", rate), 0
    for _ in range(360):
        total += len(await stream.feed(chunk))
    assert abs(3600 * SAMPLE_RATE - total) < 0.2 * SAMPLE_RATE
    assert total + len(await stream.flush()) == 3600 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [16_000, 48_000])
async def test_floats_that_are_no_sound_do_no_lasting_harm(rate: int) -> None:
    signal = tone(1.0, rate)
    signal[: rate // 10] = np.nan
    signal[10:20], signal[20:30], signal[30:40] = np.inf, -np.inf, 3e38
    samples = await decoded(PcmDecoder("pcm_f32le", rate), [signal.tobytes()])
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1.0
    assert level(samples) == pytest.approx(TONE_RMS, rel=0.01)


async def test_channels_are_mixed_evenly() -> None:
    pair = np.stack([tone(1.0, 16_000), np.zeros(16_000, np.float32)], axis=1)
    samples = await decoded(PcmDecoder("pcm_f32le", 16_000, 2), pieces(pair.tobytes(), 333))
    assert samples == pytest.approx(pair[:, 0] / 2)


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "message"),
    [
        ("mp3", 16_000, 1, "pcm_s16le"),
        ("pcm_s16le", 7_999, 1, "8000"),
        ("pcm_f32le", 48_001, 1, "48000"),
        ("pcm_s16le", 16_000, 0, "channels"),
        ("pcm_s16le", 16_000, 9, "channels"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_can(
    encoding: str, rate: int, channels: int, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        stream_decoder(encoding, rate, channels)


@pytest.mark.parametrize(
    ("encoding", "codec"), [("g711_ulaw", "pcm_mulaw"), ("g711_alaw", "pcm_alaw")]
)
async def test_every_code_of_g711_has_the_level_that_ffmpeg_gives_it(
    encoding: PcmEncoding, codec: str
) -> None:
    codes = bytes(range(256))
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = SAMPLE_RATE, "mono"  # type: ignore[attr-defined]
    (frame,) = decoder.decode(av.Packet(codes))  # type: ignore[attr-defined]
    samples = await decoded(PcmDecoder(encoding, SAMPLE_RATE), pieces(codes, 7))
    assert (samples * 2**15).tolist() == frame.to_ndarray()[0].tolist()


async def test_what_follows_a_flush_begins_anew() -> None:
    signal = np.random.default_rng(1).uniform(-0.5, 0.5, 24_000).astype(np.float32)
    stream = PcmDecoder("pcm_f32le", 24_000)
    data = signal.tobytes()
    first = np.concatenate([await stream.feed(data + b"\0"), await stream.flush()])
    second = np.concatenate([await stream.feed(data), await stream.flush()])
    assert len(first) == SAMPLE_RATE
    assert second.tolist() == first.tolist()


async def test_a_frame_of_a_minute_lets_others_run_and_is_decoded_as_small_ones_are() -> None:
    signal = np.random.default_rng(1).uniform(-0.5, 0.5, 60 * 48_000).astype(np.float32)
    small = await decoded(PcmDecoder("pcm_f32le", 48_000), pieces(signal.tobytes(), 48_000))
    turns = 0

    async def run() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(run())
    whole = await decoded(PcmDecoder("pcm_f32le", 48_000), [signal.tobytes()])
    other.cancel()
    assert turns > 40
    assert whole == pytest.approx(small, abs=1e-6)
