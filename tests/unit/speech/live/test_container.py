"""Opus in a container that arrives in chunks, whole, damaged or hostile."""

import asyncio
import io
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE, Audio
from speech.errors import AudioTooLong, TooManyChannels, UnsupportedAudio
from speech.live.container import MAX_BYTES_WITHOUT_AUDIO, MAX_SECONDS_PER_FEED, ContainerDecoder
from speech.live.stream_decoder import stream_decoder
from tests.unit.sound_files import TONE_RMS, assert_is_tone, encode, level, to_s16, tone, wav
from tests.unit.speech.live.chunks import decoded, pieces

CONTAINERS = ("ogg", "webm")


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


@pytest.mark.parametrize("size", [1, 77, 4_096, 1_000_000])
@pytest.mark.parametrize("name", CONTAINERS)
async def test_opus_is_decoded_however_it_is_split(name: str, size: int) -> None:
    samples = await decoded(stream_decoder("opus"), pieces(recording(name), size))
    assert_is_tone(Audio(samples), 2.0, 0.001, level_error=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_opus_is_decoded_while_it_arrives(name: str) -> None:
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
    samples = await decoded(stream_decoder("opus"), pieces(file, 500))
    assert_is_tone(Audio(samples), 2.0, 0.03, level_error=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_recorder_may_begin_anew_in_mid_stream(name: str) -> None:
    samples = await decoded(stream_decoder("opus"), pieces(recording(name) * 2, 700))
    assert_is_tone(Audio(samples), 4.0, 0.02, level_error=0.06)


@pytest.mark.parametrize("size", [1, 5, 700, 1_000_000])
@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_recorder_may_begin_anew_with_other_channels(name: str, size: int) -> None:
    mono = recording(name)
    options = {"page_duration": "100000"} if name == "ogg" else {"live": "1"}
    signal = np.stack([tone(2.0, 48_000)] * 2)
    stereo = encode(name, "libopus", signal, 48_000, layout="stereo", options=options)
    file = mono + stereo + mono
    samples = await decoded(stream_decoder("opus"), pieces(file, size))
    assert_is_tone(Audio(samples), 6.0, 0.03, level_error=0.06)


async def test_the_links_of_a_chain_are_decoded_while_they_arrive() -> None:
    link = recording("ogg", 2.0)
    async with container() as stream:
        for number in range(1, 4):
            chunks = pieces(link, 400)
            total = sum([len(await stream.feed(chunk)) for chunk in chunks])
            assert total / SAMPLE_RATE == pytest.approx(2.0, abs=0.3), number


@pytest.mark.parametrize("name", CONTAINERS)
async def test_what_was_not_transmitted_is_silence(name: str) -> None:
    samples = await decoded(stream_decoder("opus"), [recording(name, holes_s={1.0: 3.0})])
    assert len(samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.05)
    assert np.abs(samples[round(1.5 * SAMPLE_RATE) : round(3.5 * SAMPLE_RATE)]).max() < 0.01
    assert level(samples[4 * SAMPLE_RATE :]) == pytest.approx(TONE_RMS, rel=0.06)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_a_recording_that_breaks_off_is_decoded_as_far_as_it_goes(name: str) -> None:
    file = recording(name)
    samples = await decoded(stream_decoder("opus"), pieces(file[: len(file) // 2], 100))
    assert len(samples) / SAMPLE_RATE == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("name", CONTAINERS)
async def test_damage_in_the_middle_costs_no_more_than_itself(name: str) -> None:
    file = bytearray(recording(name, 4.0))
    middle = len(file) // 2
    file[middle : middle + 200] = np.random.default_rng(3).bytes(200)
    samples = await decoded(stream_decoder("opus"), pieces(bytes(file), 100))
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.5)


async def test_nothing_is_no_error() -> None:
    async with container() as stream:
        assert len(await stream.feed(b"")) == 0
        assert len(await stream.flush()) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"this is no sound", "neither Ogg nor WebM"),
        (wav(to_s16(tone(1.0, 16_000)), 16_000), "neither Ogg nor WebM"),
        (b"OggS" + bytes(100_000), "can be read"),
        (b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 400, "can be read"),
        (encode("ogg", "flac", tone(1.0, 48_000), 48_000), "no track of Opus"),
        (b"Og", "neither Ogg nor WebM"),
    ],
)
async def test_what_is_no_opus_is_refused(data: bytes, message: str) -> None:
    async with container() as stream:
        with pytest.raises(UnsupportedAudio, match=message):
            await decoded(stream, pieces(data, 4_000))
        with pytest.raises(UnsupportedAudio, match=message):
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
            samples = await decoded(stream, pieces(bytes(file), size))
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
            await decoded(stream, [bytes(65_536)] * (2 * MAX_BYTES_WITHOUT_AUDIO // 65_536))


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
