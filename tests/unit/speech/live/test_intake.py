"""What the bytes of a live socket become, however they are split and whatever they are."""

import asyncio
import io
import struct
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from fractions import Fraction

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE, Audio, Samples
from speech.errors import AudioTooLong, InvalidRequest, TooManyChannels, UnsupportedAudio
from speech.live.intake import (
    MAX_BYTES_WITHOUT_AUDIO,
    MAX_SECONDS_PER_FEED,
    ContainerDecoder,
    PcmDecoder,
    PcmEncoding,
    StreamDecoder,
    stream_decoder,
)
from tests.unit.sound_files import TONE_RMS, assert_is_tone, encode, level, to_s16, tone, wav

RATES = (8_000, 11_025, 16_000, 44_100, 48_000)
CONTAINERS = ("ogg", "webm")


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def heard(stream: StreamDecoder, chunks: Iterable[bytes]) -> Samples:
    """Everything a stream makes of these chunks."""
    try:
        samples = [await stream.feed(chunk) for chunk in chunks]
        return np.concatenate([*samples, await stream.flush()])
    finally:
        await stream.close()


@asynccontextmanager
async def container() -> AsyncIterator[ContainerDecoder]:
    """A stream that must leave no thread behind."""
    threads = threading.active_count()
    stream = ContainerDecoder()
    try:
        yield stream
    finally:
        await stream.close()
        assert threading.active_count() == threads


def recording(name: str, seconds: float = 2.0, **options: object) -> bytes:
    """What a MediaRecorder would send in all, in clusters and pages of 100 ms."""
    live = {"ogg": {"page_duration": "100000"}, "webm": {"cluster_time_limit": "100", "live": "1"}}
    signal = tone(seconds, 48_000)
    return encode(name, "libopus", signal, 48_000, options=live[name], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
async def test_a_tone_of_any_rate_is_the_same_tone(encoding: PcmEncoding, rate: int) -> None:
    signal = tone(2.0, rate)
    data = (to_s16(signal) if encoding == "pcm_s16le" else signal).tobytes()
    samples = await heard(PcmDecoder(encoding, rate), pieces(data, 999))
    assert_is_tone(Audio(samples), 2.0, 0.0001, level_error=0.01)


@pytest.mark.parametrize("rate", RATES)
async def test_borders_of_chunks_cannot_be_heard(rate: int) -> None:
    signal = np.random.default_rng(rate).uniform(-0.5, 0.5, rate).astype(np.float32)
    samples = await heard(PcmDecoder("pcm_f32le", rate), pieces(signal.tobytes(), 1_001))
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
    samples = await heard(PcmDecoder(encoding, rate, channels), chunks)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0.0) <= 1.0
    whole = await heard(PcmDecoder(encoding, rate, channels), [data])
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
    samples = await heard(PcmDecoder("pcm_f32le", rate), [signal.tobytes()])
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1.0
    assert level(samples) == pytest.approx(TONE_RMS, rel=0.01)


async def test_channels_are_mixed_evenly() -> None:
    pair = np.stack([tone(1.0, 16_000), np.zeros(16_000, np.float32)], axis=1)
    samples = await heard(PcmDecoder("pcm_f32le", 16_000, 2), pieces(pair.tobytes(), 333))
    assert samples == pytest.approx(pair[:, 0] / 2)


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "said"),
    [
        ("mp3", 16_000, 1, "pcm_s16le"),
        ("pcm_s16le", 7_999, 1, "8000"),
        ("pcm_f32le", 48_001, 1, "48000"),
        ("pcm_s16le", 16_000, 0, "channels"),
        ("pcm_s16le", 16_000, 9, "channels"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_can(
    encoding: str, rate: int, channels: int, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        stream_decoder(encoding, rate, channels)


@pytest.mark.parametrize("size", [1, 77, 4_096, 1_000_000])
@pytest.mark.parametrize("name", CONTAINERS)
async def test_opus_is_heard_however_it_is_split(name: str, size: int) -> None:
    samples = await heard(stream_decoder("opus"), pieces(recording(name), size))
    assert_is_tone(Audio(samples), 2.0, 0.001, level_error=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_opus_is_heard_while_it_arrives(name: str) -> None:
    chunks = pieces(recording(name, 4.0), 400)
    async with container() as stream:
        total, fed = 0, 0
        for chunk in chunks:
            fed += len(chunk)
            total += len(await stream.feed(chunk))
            due_s = 4.0 * fed / sum(map(len, chunks))
            assert total / SAMPLE_RATE == pytest.approx(due_s, abs=0.5)


async def test_a_picture_beside_the_sound_is_left_out() -> None:
    file = encode("matroska", "libopus", tone(2.0, 48_000), 48_000, video=True)
    samples = await heard(stream_decoder("opus"), pieces(file, 500))
    assert_is_tone(Audio(samples), 2.0, 0.03, level_error=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_recorder_may_begin_anew_in_mid_stream(name: str) -> None:
    samples = await heard(stream_decoder("opus"), pieces(recording(name) * 2, 700))
    assert_is_tone(Audio(samples), 4.0, 0.02, level_error=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_what_was_not_transmitted_is_silence(name: str) -> None:
    samples = await heard(stream_decoder("opus"), [recording(name, holes_s={1.0: 3.0})])
    assert len(samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.05)
    assert np.abs(samples[round(1.5 * SAMPLE_RATE) : round(3.5 * SAMPLE_RATE)]).max() < 0.01
    assert level(samples[4 * SAMPLE_RATE :]) == pytest.approx(TONE_RMS, rel=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_recording_that_breaks_off_is_heard_as_far_as_it_goes(name: str) -> None:
    file = recording(name)
    samples = await heard(stream_decoder("opus"), pieces(file[: len(file) // 2], 100))
    assert len(samples) / SAMPLE_RATE == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_damage_in_the_middle_costs_no_more_than_itself(name: str) -> None:
    file = bytearray(recording(name, 4.0))
    middle = len(file) // 2
    file[middle : middle + 200] = np.random.default_rng(3).bytes(200)
    samples = await heard(stream_decoder("opus"), pieces(bytes(file), 100))
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.5)


async def test_nothing_is_no_error() -> None:
    async with container() as stream:
        assert len(await stream.feed(b"")) == 0
        assert len(await stream.flush()) == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"this is no sound", "neither Ogg nor WebM"),
        (wav(to_s16(tone(1.0, 16_000)), 16_000), "neither Ogg nor WebM"),
        (b"OggS" + bytes(100_000), "can be read"),
        (b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 400, "can be read"),
        (encode("ogg", "flac", tone(1.0, 48_000), 48_000), "no track of Opus"),
        (b"Og", "neither Ogg nor WebM"),
    ],
)
async def test_what_is_no_opus_is_refused(data: bytes, said: str) -> None:
    async with container() as stream:
        with pytest.raises(UnsupportedAudio, match=said):
            await heard(stream, pieces(data, 4_000))
        with pytest.raises(UnsupportedAudio, match=said):
            await stream.feed(b"more")


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(CONTAINERS),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=64)), max_size=6),
    size=st.integers(50, 5_000),
)
async def test_damage_anywhere_ends_in_samples_or_an_error_of_the_family(
    name: str, damage: list[tuple[float, bytes]], size: int
) -> None:
    file = bytearray(recording(name, 0.5))
    for where, junk in damage:
        at = round(where * len(file))
        file[at : at + len(junk)] = junk
    async with container() as stream:
        with suppress(UnsupportedAudio, TooManyChannels, AudioTooLong):
            samples = await heard(stream, pieces(bytes(file), size))
            assert np.isfinite(samples).all()


def opus_of_nothing(name: str, packets: int, jump: int = 0) -> bytes:
    """Packets of two bytes that stand for 120 ms each; after the first, ``jump`` samples lack."""
    file = io.BytesIO()
    with av.open(file, "w", format=name) as out:
        stream = out.add_stream("libopus", rate=48_000, layout="mono")
        stream.codec_context.open()
        for index in range(packets):
            packet = av.Packet(b"\x83\x30")
            packet.stream, packet.time_base = stream, Fraction(1, 48_000)
            packet.pts = packet.dts = index * 5_760 + (jump if index else 0)
            packet.duration = 5_760
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(opus_of_nothing("ogg", 5_000), id="empty packets"),
        pytest.param(opus_of_nothing("webm", 20, jump=48_000 * 86_400), id="a hole of a day"),
    ],
)
async def test_few_bytes_cannot_become_endless_audio(data: bytes) -> None:
    async with container() as stream:
        samples = await stream.feed(data)
        assert len(samples) <= MAX_SECONDS_PER_FEED * SAMPLE_RATE
        with pytest.raises(AudioTooLong, match="300 seconds"):
            await stream.feed(b"more")


async def test_a_container_without_audio_cannot_fill_the_memory() -> None:
    header = recording("webm")
    header = header[: header.index(b"\x1f\x43\xb6\x75")]  # up to the first cluster
    void = b"\xec" + struct.pack(">Q", (1 << 56) | (1 << 40))
    async with container() as stream:
        assert len(await stream.feed(header + void)) == 0
        with pytest.raises(UnsupportedAudio, match="no audio"):
            await heard(stream, [bytes(65_536)] * (2 * MAX_BYTES_WITHOUT_AUDIO // 65_536))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 47, 300, 2_000, 20_000])
@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_stream_may_be_closed_at_any_moment(name: str, size: int) -> None:
    async with container() as stream:
        await stream.feed(recording(name)[:size])
        await stream.close()


async def test_a_stream_may_be_closed_while_it_is_fed() -> None:
    data = recording("ogg", 30.0)
    async with container() as stream:
        feeding = asyncio.create_task(stream.feed(data))
        await asyncio.sleep(0)
        await stream.close()
        await feeding


async def test_a_feed_that_was_given_up_loses_nothing() -> None:
    chunks = pieces(recording("ogg", 20.0), 2_000)
    async with container() as stream:
        samples = []
        for index, chunk in enumerate(chunks):
            feeding = asyncio.create_task(stream.feed(chunk))
            await asyncio.sleep(0)
            if index % 2 and index + 1 < len(chunks):
                feeding.cancel()
            else:
                samples.append(await feeding)
        samples.append(await stream.flush())
        assert_is_tone(Audio(np.concatenate(samples)), 20.0, 0.001, level_error=0.06)


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
    samples = await heard(PcmDecoder(encoding, SAMPLE_RATE), pieces(codes, 7))
    assert (samples * 2**15).tolist() == frame.to_ndarray()[0].tolist()


async def test_what_follows_a_flush_begins_anew() -> None:
    signal = np.random.default_rng(1).uniform(-0.5, 0.5, 24_000).astype(np.float32)
    stream = PcmDecoder("pcm_f32le", 24_000)
    data = signal.tobytes()
    first = np.concatenate([await stream.feed(data + b"\0"), await stream.flush()])
    second = np.concatenate([await stream.feed(data), await stream.flush()])
    assert len(first) == SAMPLE_RATE
    assert second.tolist() == first.tolist()


async def test_a_frame_of_a_minute_lets_others_run_and_is_heard_as_small_ones_are() -> None:
    signal = np.random.default_rng(1).uniform(-0.5, 0.5, 60 * 48_000).astype(np.float32)
    small = await heard(PcmDecoder("pcm_f32le", 48_000), pieces(signal.tobytes(), 48_000))
    turns = 0

    async def run() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(run())
    whole = await heard(PcmDecoder("pcm_f32le", 48_000), [signal.tobytes()])
    other.cancel()
    assert turns > 40
    assert whole == pytest.approx(small, abs=1e-6)
