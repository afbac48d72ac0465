"""Uploads of several files, of more or less than their header declares, and with tags behind."""

import io
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from speech.errors import AudioTooLong, DeadlineExceeded, TooManyChannels, UnsupportedAudio
from speech.media import parts
from tests.unit.sound_files import TONE_HZ, encode, pitch_hz, read, to_s16, tone, wav

HIGH_HZ = 900.0
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
ID3V1 = b"TAG" + b"x" * 125
ID3V2 = b"ID3\x03\0\0" + bytes([0, 0, 2, 0]) + b"x" * 256
_APE = struct.pack("<IIII8x", 2000, 32, 0, 1 << 31)
APE = b"APETAGEX" + _APE + b"APETAGEX" + _APE


def stereo(seconds: float, rate: int, hz: float = HIGH_HZ) -> np.ndarray:
    return np.stack([tone(seconds, rate, hz)] * 2)


def assert_both(data: bytes, first_s: float = 3.0, second_s: float = 4.0) -> None:
    """A tone and a higher one follow each other, and nothing is warned of."""
    audio = read(data)
    assert audio.warnings == ()
    assert audio.duration == pytest.approx(first_s + second_s, abs=0.2)
    assert pitch_hz(audio.cut(0.5, first_s - 0.5)) == pytest.approx(TONE_HZ, abs=3.0)
    second = audio.cut(first_s + 0.5, first_s + second_s - 0.5)
    assert pitch_hz(second) == pytest.approx(HIGH_HZ, abs=3.0)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("ogg", "libopus", {}),
        ("ogg", "flac", {}),
        ("ipod", "aac", {}),
        ("mp4", "aac", FRAGMENTED),
        ("mov", "pcm_s16le", {}),
        ("wav", "pcm_s16le", {}),
        ("flac", "flac", {}),
        ("mp3", "libmp3lame", {}),
        ("adts", "aac", {}),
        ("ac3", "ac3", {}),
        ("webm", "libopus", {}),
        ("webm", "libopus", {"live": "1"}),
        ("matroska", "aac", {}),
        ("flv", "aac", {}),
        ("avi", "pcm_s16le", {}),
        ("mpegts", "aac", {}),
        ("caf", "pcm_s16le", {}),
        ("w64", "pcm_s16le", {}),
        ("aiff", "pcm_s16be", {}),
        ("tta", "tta", {}),
        ("wv", "wavpack", {}),
    ],
)
def test_joined_files_of_different_rates_and_channels_are_read_one_after_the_other(
    container: str, codec: str, options: dict[str, str]
) -> None:
    low = 48000 if codec in ("libopus", "ac3") else 16000 if container != "flv" else 22050
    first = encode(container, codec, tone(3.0, low), low, options=options)
    rate = 48000 if low == 48000 else 44100
    if container in ("avi", "mpegts"):  # FFmpeg reads all of it as one file of the first format
        second = encode(container, codec, tone(4.0, low, HIGH_HZ), low, options=options)
    else:
        second = encode(container, codec, stereo(4.0, rate), rate, layout="stereo", options=options)
    assert_both(first + second)


def test_links_of_different_codecs_are_read() -> None:
    assert_both(
        encode("ogg", "flac", tone(3.0, 16000), 16000)
        + encode("ogg", "libopus", stereo(4.0, 48000), 48000, layout="stereo")
    )


def test_a_chain_of_ogg_is_read_to_its_end(assets: Path) -> None:
    audio = read((assets / "faults" / "ogg_chained.ogg").read_bytes())
    assert audio.duration == pytest.approx(26.7, abs=0.1)
    assert audio.warnings == ()


def test_kept_channels_go_through_all_files() -> None:
    two = np.stack([tone(3.0, 16000), tone(3.0, 16000, HIGH_HZ)])
    first = encode("flac", "flac", two, 16000, layout="stereo")
    second = encode("flac", "flac", tone(2.0, 44100, HIGH_HZ), 44100)
    audio = read(first + second, keep_channels=True)
    assert audio.channels is not None
    assert audio.channels.shape == (2, len(audio.mono))
    assert pitch_hz(audio.cut(0.5, 2.5, 1)) == pytest.approx(HIGH_HZ, abs=3.0)
    assert pitch_hz(audio.cut(3.5, 4.5, 0)) == pytest.approx(HIGH_HZ, abs=3.0)


def test_the_bounds_hold_for_all_files_together() -> None:
    one = encode("ogg", "flac", tone(3.0, 16000), 16000)
    with pytest.raises(AudioTooLong):
        read(one * 3, max_seconds=8.0)
    wide = encode("ogg", "flac", np.stack([tone(1.0, 16000)] * 6), 16000, layout="5.1")
    with pytest.raises(TooManyChannels):
        read(one + wide, max_channels=2)
    expired = iter([False] * 40)
    with pytest.raises(DeadlineExceeded):
        read(one * 20, deadline=lambda: next(expired, True))


def test_files_beyond_the_bound_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech.media.decoding.MAX_PARTS", 3)
    monkeypatch.setattr(parts, "MAX_PARTS", 3)
    one = encode("ogg", "flac", tone(0.5, 16000), 16000)
    audio = read(one * 5)
    assert audio.duration == pytest.approx(1.5, abs=0.1)
    assert audio.warnings == (f"{2 * len(one)} bytes of the upload could not be read",)


def test_a_later_file_that_cannot_be_read_is_a_warning_with_its_bytes() -> None:
    first = encode("ogg", "libopus", tone(3.0, 48000), 48000)
    broken = bytearray(encode("ogg", "libopus", tone(3.0, 48000), 48000))
    broken[28:36] = b"NoCodec!"
    audio = read(first + bytes(broken))
    assert audio.duration == pytest.approx(3.0, abs=0.1)
    assert audio.warnings == (f"{len(broken)} bytes of the upload could not be read",)
    assert read(bytes(broken) + first).duration == pytest.approx(3.0, abs=0.1)
    with pytest.raises(UnsupportedAudio):
        read(bytes(broken) * 2)


def with_size(file: bytes, size: int, byte_order: str = "<") -> bytes:
    at = file.index(b"data") + 4
    return file[:at] + struct.pack(f"{byte_order}I", size) + file[at + 4 :]


@pytest.mark.parametrize("size", [32_000, 31_999, 2])
def test_samples_beyond_the_length_that_a_wav_declares_are_read(size: int) -> None:
    whole = wav(to_s16(tone(3.0, 16000)), 16000)
    for tail in (b"", LIST):
        audio = read(with_size(whole, size) + tail)
        assert audio.duration == pytest.approx(3.0, abs=0.01)
        assert pitch_hz(audio.cut(1.5, 2.9)) == pytest.approx(TONE_HZ, abs=3.0)
        (warning,) = audio.warnings
        assert "the header declares less" in warning


def test_a_wav_that_declares_less_or_more_than_it_has(assets: Path) -> None:
    short = read((assets / "faults" / "wav_short.wav").read_bytes())
    assert short.duration == pytest.approx(6.0, abs=0.01)
    cut = read((assets / "faults" / "wav_cut.wav").read_bytes())
    assert cut.warnings == (
        "the file ends early: its header declares 6.0 s, 2.5 s could be decoded",
    )


def test_a_wav_with_fewer_samples_than_declared_is_reported() -> None:
    whole = wav(to_s16(tone(6.0, 16000)), 16000)
    (warning,) = read(whole[: len(whole) // 2]).warnings
    assert "declares 6.0 s, 3.0 s could be decoded" in warning


def test_a_joined_file_that_ends_early_is_reported_with_its_own_length() -> None:
    whole = wav(to_s16(tone(6.0, 16000)), 16000)
    (warning,) = read(whole + whole[: len(whole) // 2]).warnings
    assert "declares 6.0 s, 3.0 s could be decoded" in warning


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_placeholder_for_the_length_is_no_cause_for_a_warning(size: int) -> None:
    audio = read(with_size(wav(to_s16(tone(3.0, 16000)), 16000), size))
    assert audio.duration == 3.0
    assert audio.warnings == ()


@pytest.mark.parametrize(
    ("container", "codec", "tail"),
    [
        ("wav", "pcm_s16le", LIST),
        ("wav", "pcm_s16le", b"id3 " + struct.pack("<I", len(ID3V2)) + ID3V2),
        ("wav", "pcm_s16le", bytes(5000)),
        ("wav", "pcm_s16le", ID3V1),
        ("mp3", "libmp3lame", ID3V1),
        ("mp3", "libmp3lame", APE),
        ("mp3", "libmp3lame", APE + ID3V1),
        ("mp3", "libmp3lame", bytes(5000)),
        ("adts", "aac", ID3V1),
        ("flac", "flac", ID3V1),
        ("ogg", "libopus", ID3V1),
        ("wv", "wavpack", APE),
        ("aiff", "pcm_s16be", b"NAME" + struct.pack(">I", 6000) + bytes(6000)),
    ],
)
def test_tags_and_padding_behind_the_audio_are_neither_audio_nor_damage(
    container: str, codec: str, tail: bytes
) -> None:
    rate = 48000 if codec == "libopus" else 16000
    file = encode(container, codec, tone(3.0, rate), rate)
    plain, tagged = read(file), read(file + tail)
    assert tagged.warnings == plain.warnings == ()
    assert tagged.duration == pytest.approx(plain.duration, abs=0.05)


def test_a_tag_between_two_files_is_no_damage() -> None:
    first = encode("mp3", "libmp3lame", tone(3.0, 16000), 16000)
    second = encode("mp3", "libmp3lame", stereo(4.0, 44100), 44100, layout="stereo")
    assert_both(first + ID3V2 + second)
    flac = [encode("flac", "flac", tone(s, 16000, hz), 16000) for s, hz in ((3, 440), (4, 900))]
    assert_both(ID3V2 + flac[0] + ID3V2 + flac[1])


def test_samples_that_cannot_be_placed_are_a_warning_with_their_bytes() -> None:
    file = encode("aiff", "pcm_s16be", tone(3.0, 16000), 16000)
    at = file.index(b"SSND") + 4
    short = file[:at] + struct.pack(">I", 32_008) + file[at + 4 :]
    assert "64000 bytes of the upload could not be read" in read(short).warnings


def test_pauses_of_amr_are_silence_and_no_damage(assets: Path) -> None:
    file = (assets / "faults" / "voice.amr").read_bytes()
    audio = read(file)
    assert audio.warnings == ()
    assert audio.duration == pytest.approx(14.4, abs=0.05)
    twice = read(file * 2)
    assert twice.warnings == ()
    assert twice.duration == pytest.approx(28.8, abs=0.1)


def test_frames_of_amr_without_data_are_silence() -> None:
    no_data, comfort_noise = b"\x7c", b"\x44" + bytes(5)
    audio = read(b"#!AMR\n" + no_data * 50 + comfort_noise * 50)
    assert audio.warnings == ()
    assert audio.duration == pytest.approx(2.0, abs=0.05)
    assert not audio.mono.any()


def test_an_ogg_of_several_streams_is_one_file() -> None:
    """The first pages of all streams of a link follow each other."""
    first = encode("ogg", "libopus", tone(3.0, 48000), 48000)
    (page_end,) = (27 + first[26] + sum(first[27 : 27 + first[26]]),)
    other = bytearray(first[:page_end])
    other[14:18] = b"abcd"
    assert len(parts.split(first[:page_end] + bytes(other) + first[page_end:])) == 1
    assert len(parts.split(first * 3)) == 3


def test_the_search_for_files_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def count(*arguments: object) -> object:
        nonlocal looks
        looks += 1
        return struct.unpack_from(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "MAX_MARKS", 10)
    monkeypatch.setattr(parts, "struct", SimpleNamespace(unpack_from=count))
    boxes = struct.pack(">I4s", 8, b"ftyp") + struct.pack(">I4s", 8, b"free") * 1000
    assert len(parts.split(boxes)) == 1
    assert looks <= 10
    pages = (b"OggS\x00\x02" + bytes(50)) * 1000
    assert len(parts.split(pages)) <= 10


def test_reading_copies_no_upload_for_its_files() -> None:
    one = encode("ogg", "flac", tone(0.5, 16000), 16000)
    upload = one * 4
    assert all(part.data.obj is upload for part in parts.split(upload))
    assert io.BytesIO(upload).getbuffer().nbytes == sum(len(p) for p in parts.split(upload))
