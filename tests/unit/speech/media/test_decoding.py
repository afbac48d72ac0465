"""What an upload becomes: real files of many containers, formats and channel layouts."""

import struct

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from speech.audio import SAMPLE_RATE
from speech.errors import TooManyChannels, UnsupportedAudio
from speech.media.frames import mono_weights
from tests.unit.sound_files import (
    TONE_HZ,
    TONE_RMS,
    Signal,
    assert_is_tone,
    assert_sound,
    encode,
    level,
    pitch_hz,
    read,
    to_s16,
    tone,
    wav,
)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "tolerance_s"),
    [
        ("wav", "pcm_s16le", 44100, 0.001),
        ("wav", "pcm_s24le", 96000, 0.001),
        ("wav", "pcm_f64le", 11025, 0.001),
        ("wav", "pcm_mulaw", 8000, 0.001),
        ("wav", "pcm_alaw", 8000, 0.001),
        ("wav", "adpcm_ima_wav", 16000, 0.1),
        ("w64", "pcm_s32le", 192000, 0.001),
        ("aiff", "pcm_s16be", 22050, 0.001),
        ("caf", "alac", 48000, 0.001),
        ("flac", "flac", 16000, 0.001),
        ("mp3", "libmp3lame", 44100, 0.001),
        ("ogg", "libopus", 48000, 0.001),
        ("webm", "libopus", 48000, 0.001),
        ("ogg", "flac", 32000, 0.001),
        ("mp4", "aac", 44100, 0.03),
        ("adts", "aac", 48000, 0.05),
        ("mpegts", "aac", 48000, 0.05),
        ("mov", "pcm_s16le", 48000, 0.001),
        ("matroska", "pcm_f32le", 48000, 0.001),
        ("matroska", "ac3", 48000, 0.05),
        ("avi", "mp2", 48000, 0.05),
        ("nut", "pcm_s64le", 48000, 0.001),
    ],
)
def test_a_tone_keeps_its_pitch_level_and_length(
    container: str, codec: str, rate: int, tolerance_s: float
) -> None:
    file = encode(container, codec, tone(2.0, rate), rate)
    assert_is_tone(read(file), 2.0, tolerance_s, level_error=0.06)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "bit_rate"),
    [("asf", "wmav2", 44100, 64_000), ("amr", "libopencore_amrnb", 8000, 12_200)],
)
def test_old_recorders_are_understood(container: str, codec: str, rate: int, bit_rate: int) -> None:
    file = encode(container, codec, tone(2.0, rate), rate, bit_rate=bit_rate)
    assert_is_tone(read(file), 2.0, tolerance_s=0.1, level_error=0.2)


@pytest.mark.parametrize(
    ("samples", "format_tag"),
    [
        (np.round(tone(1.0, 22050) * 127 + 128).astype(np.uint8), 1),
        (to_s16(tone(1.0, 22050)), 1),
        ((tone(1.0, 22050).astype(np.float64) * (2**31 - 1)).astype(np.int32), 1),
        (tone(1.0, 22050), 3),
        (tone(1.0, 22050).astype(np.float64), 3),
    ],
    ids=["u8", "s16", "s32", "f32", "f64"],
)
def test_wav_of_every_sample_format(samples: NDArray[np.generic], format_tag: int) -> None:
    assert_is_tone(read(wav(samples, 22050, format_tag)), 1.0, 0.001, level_error=0.02)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 44100, 48000, 96000, 192000, 384000])
def test_the_length_of_a_wav_is_right_to_a_millisecond(rate: int) -> None:
    samples = to_s16(tone(1.2345, rate))
    audio = read(wav(samples, rate))
    assert audio.duration == pytest.approx(len(samples) / rate, abs=0.001)
    assert pitch_hz(audio.mono) == pytest.approx(TONE_HZ, abs=2.0)


def test_dts_that_is_declared_as_pcm_is_not_taken_for_samples() -> None:
    """As on DTS CDs; here with random content, which no decoder of DTS accepts."""
    header, noise = bytes.fromhex("7ffe8001fc3c3ff0b5e0013800"), np.random.default_rng(0)
    frames = b"".join(header + noise.bytes(4083) for _ in range(400))
    with pytest.raises(UnsupportedAudio):
        read(wav(np.frombuffer(frames, np.int16).reshape(-1, 2), 48000))


def test_16_khz_passes_unchanged() -> None:
    samples = to_s16(tone(0.5, SAMPLE_RATE))
    assert np.array_equal(read(wav(samples, SAMPLE_RATE)).mono, samples / np.float32(32768))


def test_sound_above_8_khz_does_not_fold_down() -> None:
    assert level(read(wav(to_s16(tone(1.0, 48000, hz=11000)), 48000)).mono) < 1e-3


def test_a_video_gives_its_audio_track() -> None:
    file = encode("mp4", "aac", tone(2.0, 48000), 48000, video=True)
    assert_is_tone(read(file), 2.0, 0.03, level_error=0.02)


def test_a_track_that_starts_after_the_picture_begins_with_silence() -> None:
    file = encode("matroska", "pcm_s16le", tone(1.0, 48000), 48000, video=True, late_s=0.5)
    audio = read(file)
    assert audio.duration == pytest.approx(1.5, abs=0.002)
    assert not audio.mono[: int(0.49 * SAMPLE_RATE)].any()
    assert level(audio.mono[SAMPLE_RATE // 2 :]) == pytest.approx(TONE_RMS, rel=0.03)


def test_a_file_whose_clock_starts_late_does_not_begin_with_silence() -> None:
    file = encode("matroska", "pcm_s16le", tone(1.0, 48000), 48000, late_s=30.0)
    assert_is_tone(read(file), 1.0, 0.002, level_error=0.02)


def test_holes_in_the_timestamps_become_silence_so_that_times_stay_true() -> None:
    file = encode("webm", "libopus", tone(2.0, 48000), 48000, holes_s={0.5: 1.0, 1.5: 2.0})
    audio = read(file)
    assert audio.duration == pytest.approx(5.0, abs=0.01)
    speaking = [(0.1, 0.4), (1.7, 2.4), (4.6, 4.9)]
    silent = [(0.6, 1.4), (2.7, 4.4)]
    assert audio.warnings == ("3.0 s missing in the file are replaced by silence",)
    assert all(level(audio.cut(*span)) > 0.3 for span in speaking)
    assert all(level(audio.cut(*span)) == 0.0 for span in silent)


def test_digital_silence_is_audio() -> None:
    audio = read(wav(np.zeros((8000, 2), np.int16), 8000), keep_channels=True)
    assert audio.duration == 1.0
    assert not audio.mono.any()


def test_a_change_of_rate_and_channels_in_mid_stream_is_followed() -> None:
    first = encode("mp3", "libmp3lame", tone(1.0, 44100), 44100, options={"write_xing": "0"})
    stereo = np.stack([tone(1.0, 48000)] * 2)
    second = encode(
        "mp3", "libmp3lame", stereo, 48000, layout="stereo", options={"write_xing": "0"}
    )
    audio = read(first + second[second.index(b"\xff\xfb") :])
    assert_is_tone(audio, 2.0, 0.15, level_error=0.1)
    assert level(audio.cut(0.1, 0.9)) == pytest.approx(TONE_RMS, rel=0.1)
    assert level(audio.cut(1.2, 1.9)) == pytest.approx(TONE_RMS, rel=0.1)


def test_tags_in_no_known_encoding_do_no_harm() -> None:
    file = wav(to_s16(tone(0.5, 8000)), 8000)
    tags = b"INFO" + b"INAM" + struct.pack("<I", 4) + b"\xff\xfe\xc3\x28"
    assert read(file + b"LIST" + struct.pack("<I", len(tags)) + tags).duration == 0.5


# Channels


def test_stereo_channels_are_kept_apart_when_asked_for() -> None:
    both = np.stack([tone(1.0, 44100, hz=440), tone(1.0, 44100, hz=1000)], axis=1)
    audio = read(wav(to_s16(both), 44100), keep_channels=True)
    assert_sound(audio)
    assert audio.channels is not None
    assert [round(pitch_hz(channel)) for channel in audio.channels] == [440, 1000]
    assert np.allclose(audio.mono, audio.channels.mean(axis=0), atol=1e-6)


def test_the_mono_mix_is_the_same_whether_channels_are_kept_or_not() -> None:
    both = np.stack([tone(1.0, 48000, hz=440), tone(1.0, 48000, hz=1000)], axis=1)
    file = wav(to_s16(both), 48000)
    assert np.allclose(read(file).mono, read(file, keep_channels=True).mono, atol=1e-5)


def test_channels_are_dropped_when_not_asked_for() -> None:
    both = np.stack([tone(0.5, 16000, hz=440), tone(0.5, 16000, hz=1000)], axis=1)
    assert read(wav(to_s16(both), 16000)).channels is None


def test_a_mono_file_has_no_channels_to_keep() -> None:
    assert read(wav(to_s16(tone(0.5, 16000)), 16000), keep_channels=True).channels is None


def test_two_equal_channels_become_mono_with_a_warning() -> None:
    left = tone(1.0, 16000)
    both = np.stack([left, left + 0.001 * tone(1.0, 16000, hz=1000)], axis=1)
    audio = read(wav(to_s16(both), 16000), keep_channels=True)
    assert audio.channels is None
    assert audio.warnings == ("both channels carry the same signal: treated as mono",)


def test_a_channel_with_a_faint_echo_of_the_other_stays_a_channel() -> None:
    left = tone(1.0, 16000)
    audio = read(wav(to_s16(np.stack([left, 0.1 * left], axis=1)), 16000), keep_channels=True)
    assert audio.channels is not None
    assert not audio.warnings


SIDES_5_1 = 0x60F  # FL FR FC LFE SL SR
WEIGHTS_5_1 = np.array([0.7071, 0.7071, 1.0, 0.0, 0.5, 0.5]) / 3.4142


@pytest.mark.parametrize("channel", range(6))
@pytest.mark.parametrize("keep_channels", [False, True])
def test_5_1_is_mixed_by_the_weights_of_bs_775(channel: int, keep_channels: bool) -> None:
    samples = np.zeros((48000, 6), np.float32)
    samples[:, channel] = tone(1.0, 48000, amplitude=0.9)
    file = wav(to_s16(samples), 48000, layout_mask=SIDES_5_1)
    mixed = level(read(file, keep_channels=keep_channels).mono)
    assert mixed == pytest.approx(0.9 / np.sqrt(2) * WEIGHTS_5_1[channel], rel=0.01, abs=1e-4)


def test_5_1_at_full_scale_does_not_clip() -> None:
    samples = np.ones((16000, 6), np.float32)
    file = wav(to_s16(samples), 16000, layout_mask=SIDES_5_1)
    assert read(file).mono.max() <= 1.0


def test_an_unknown_layout_is_averaged() -> None:
    samples = np.zeros((16000, 5), np.float32)
    samples[:, 3] = tone(1.0, 16000, amplitude=1.0)
    assert level(read(wav(to_s16(samples), 16000)).mono) == pytest.approx(
        0.2 / np.sqrt(2), rel=0.01
    )


@pytest.mark.parametrize(("container", "codec"), [("ogg", "libopus"), ("flac", "flac")])
def test_all_of_eight_channels_are_kept(container: str, codec: str) -> None:
    samples = np.stack([tone(0.5, 48000, hz=300.0 + 100 * i) for i in range(8)])
    samples[3] = tone(0.5, 48000, hz=50.0)  # the low-frequency channel
    audio = read(encode(container, codec, samples, 48000, layout="7.1"), keep_channels=True)
    assert_sound(audio)
    assert audio.channels is not None
    pitches = [round(pitch_hz(channel) / 50) * 50 for channel in audio.channels]
    assert pitches == [300, 400, 500, 50, 700, 800, 900, 1000]


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1", "quad", "5 channels"])
def test_mono_weights_sum_to_one(layout: str) -> None:
    weights = mono_weights(av.AudioLayout(layout))
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()


def test_more_channels_than_allowed_are_refused() -> None:
    file = wav(np.zeros((1600, 6), np.int16), 16000)
    with pytest.raises(TooManyChannels, match="6 channels, at most 2"):
        read(file, max_channels=2)


# Nothing is hidden by the mono mix


def stereo(left: Signal, right: Signal, rate: int = 16000) -> bytes:
    return wav(to_s16(np.stack([left, right], axis=1)), rate)


def shifted(seconds: float, start: float, end: float, rate: int = 16000) -> Signal:
    """A tone from ``start`` to ``end`` in silence."""
    signal = tone(seconds, rate)
    at = np.arange(len(signal)) / rate
    signal[(at < start) | (at >= end)] = 0.0
    return signal


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("keep_channels", [False, True])
def test_where_channels_cancel_the_loudest_is_mixed_with_a_warning(
    rate: int, keep_channels: bool
) -> None:
    left = tone(3.0, rate)
    audio = read(stereo(left, -left, rate), keep_channels=keep_channels)
    assert_is_tone(audio, 3.0, 0.001, level_error=0.02)
    assert audio.warnings == (
        "the channels cancel each other for 3.0 s: there the mono mix is the loudest of them",
    )


def test_a_single_word_that_cancels_is_kept() -> None:
    """One word in opposite phase in the middle of speech that both channels have."""
    before, word, after = (shifted(4.0, *span) for span in ((0.0, 1.5), (1.6, 2.0), (2.1, 4.0)))
    audio = read(stereo(before + word + after, before - word + after))
    assert level(audio.cut(1.6, 2.0)) == pytest.approx(TONE_RMS, rel=0.05)
    assert level(audio.cut(0.2, 1.4)) == pytest.approx(TONE_RMS, rel=0.05)
    assert any("cancel each other for 0." in warning for warning in audio.warnings)


def test_channels_that_nearly_cancel_each_other_are_kept() -> None:
    left = tone(2.0, 16000)
    noise = np.random.default_rng(3).normal(0, 0.01, len(left)).astype(np.float32)
    assert level(read(stereo(left, noise - 0.9 * left)).mono) > 0.8 * TONE_RMS


@pytest.mark.parametrize("speaking", [0, 1])
def test_speech_in_one_channel_only_is_mixed_in(speaking: int) -> None:
    channels = [tone(2.0, 16000), np.zeros(32000, np.float32)]
    audio = read(stereo(*(channels if speaking == 0 else channels[::-1])))
    assert level(audio.mono) == pytest.approx(TONE_RMS / 2, rel=0.02)
    assert audio.warnings == ()


@pytest.mark.parametrize("hz", [(440.0, 440.0), (440.0, 450.0), (440.0, 1000.0)])
@pytest.mark.parametrize("phase", [0.0, 0.25, 0.4])
def test_ordinary_stereo_is_mixed_as_ever(hz: tuple[float, float], phase: float) -> None:
    at = np.arange(2 * 16000) / 16000
    left = tone(2.0, 16000, hz=hz[0])
    right = (0.5 * np.sin(2 * np.pi * (hz[1] * at + phase))).astype(np.float32)
    if hz == (440.0, 450.0):
        right *= 0.5  # beats, which may not reach silence
    audio = read(stereo(left, right))
    assert audio.warnings == ()
    assert np.allclose(audio.mono, (left + right) / 2, atol=1e-4)


def test_silence_and_faint_noise_do_not_cancel() -> None:
    noise = np.random.default_rng(4).normal(0, 3e-4, 32000).astype(np.float32)
    assert read(stereo(noise, -noise)).warnings == ()
    assert read(stereo(0 * noise, 0 * noise)).warnings == ()


def test_sound_in_an_unmixed_channel_causes_a_warning() -> None:
    samples = np.zeros((48000, 6), np.int16)
    samples[:, 3] = to_s16(tone(1.0, 48000))
    audio = read(wav(samples, 48000, layout_mask=0x3F))
    assert level(audio.mono) == pytest.approx(0.0, abs=1e-4)
    assert audio.warnings == (
        "nearly all sound is in a low-frequency channel, which is not mixed in",
    )
    samples[:, 2] = samples[:, 3]
    assert read(wav(samples, 48000, layout_mask=0x3F)).warnings == ()
