"""What a bad upload becomes: files too long, broken, lying or hostile."""

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech.errors import (
    AudioTooLong,
    DeadlineExceeded,
    EmptyAudio,
    SpeechError,
    UnsupportedAudio,
)
from tests.unit.sound_files import (
    TONE_HZ,
    TONE_RMS,
    assert_sound,
    encode,
    level,
    pitch_hz,
    read,
    to_s16,
    tone,
    wav,
)

# Bounds


def test_audio_of_just_the_longest_length_is_taken() -> None:
    assert read(wav(to_s16(tone(2.0, 44100)), 44100), max_seconds=2.0).duration == 2.0


def test_audio_longer_than_allowed_is_refused_with_the_limit() -> None:
    with pytest.raises(AudioTooLong, match="longer than 2 seconds"):
        read(wav(to_s16(tone(2.01, 44100)), 44100), max_seconds=2.0)


@pytest.mark.parametrize(
    ("container", "codec", "bit_rate"),
    [("flac", "flac", None), ("ogg", "libopus", None), ("ogg", "libopus", 6000)],
)
def test_decoding_of_a_silence_bomb_stops_at_the_limit(
    container: str, codec: str, bit_rate: int | None
) -> None:
    silence = np.zeros((1, 48000 * 120), np.float32)
    bomb = encode(container, codec, silence, 48000, bit_rate=bit_rate)
    assert len(bomb) < 120 * 1000, "a bomb: under a kilobyte for each second"
    polls = 0

    def count() -> bool:
        nonlocal polls
        polls += 1
        return False

    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLong):
            read(bomb, max_seconds=1.0, deadline=count)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert polls < 200  # of about 1300 (flac) and 6000 (opus) packets
    assert taken < len(bomb) + 2**20  # the whole would be 7.7 MB at 16 kHz, 23 MB before


def test_a_hole_longer_than_allowed_costs_no_memory() -> None:
    file = encode("matroska", "pcm_s16le", tone(1.0, 8000), 8000, holes_s={0.5: 1e6})
    with pytest.raises(AudioTooLong):
        read(file, max_seconds=4 * 3600)


def test_a_header_that_lies_about_the_length_is_not_believed() -> None:
    file = bytearray(encode("flac", "flac", tone(1.0, 16000), 16000))
    file[22:26] = struct.pack(">I", 4_000_000_000)  # samples, in the block STREAMINFO
    audio = read(bytes(file))
    assert audio.duration == 1.0
    assert audio.warnings == (
        "the file ends early: its header declares 250000.0 s, 1.0 s could be decoded",
    )


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_piped_wav_without_a_length_is_read_to_its_end(size: int) -> None:
    file = bytearray(wav(to_s16(tone(1.0, 16000)), 16000))
    file[4:8] = file[40:44] = struct.pack("<I", size)
    audio = read(bytes(file))
    assert audio.duration == 1.0
    assert not audio.warnings


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_a_sample_rate_that_nobody_records_is_refused(rate: int) -> None:
    with pytest.raises((UnsupportedAudio, AudioTooLong)):
        read(wav(np.zeros(50000, np.int16), rate), max_seconds=1e6)


def test_the_deadline_ends_the_work() -> None:
    with pytest.raises(DeadlineExceeded):
        read(wav(to_s16(tone(1.0, 16000)), 16000), deadline=lambda: True)


def test_the_deadline_holds_in_the_middle_of_a_file() -> None:
    polls = iter([False] * 30)
    with pytest.raises(DeadlineExceeded):
        read(wav(to_s16(tone(30.0, 48000)), 48000), deadline=lambda: next(polls, True))


# Broken and hostile files


def test_an_upload_without_bytes_is_empty() -> None:
    with pytest.raises(EmptyAudio):
        read(b"")


def test_a_wav_without_samples_is_empty() -> None:
    with pytest.raises(EmptyAudio):
        read(wav(np.zeros((0, 1), np.int16), 16000))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"not a sound " * 1000,
        bytes(10_000),
        np.random.default_rng(1).bytes(50_000),
        b"%PDF-1.7\n" + bytes(1000),
        to_s16(tone(1.0, 16000)).tobytes(),
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
    ],
    ids=["byte", "text", "zeros", "noise", "pdf", "raw pcm", "header"],
)
def test_bytes_that_are_no_audio_are_refused(data: bytes) -> None:
    with pytest.raises((UnsupportedAudio, EmptyAudio)):
        read(data)


def test_a_picture_is_no_audio() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10, width=32, height=32)
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(UnsupportedAudio, match="no audio track"):
        read(file.getvalue())


def test_encrypted_audio_is_refused_as_such() -> None:
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    file = encode("mp4", "aac", tone(1.0, 48000), 48000, options=options)
    with pytest.raises(UnsupportedAudio, match="encrypted"):
        read(file)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("flac", "flac")],
)
def test_a_truncated_file_gives_what_is_left(container: str, codec: str) -> None:
    file = encode(container, codec, tone(4.0, 48000), 48000)
    audio = read(file[: len(file) // 2])
    assert audio.duration == pytest.approx(2.0, abs=0.7)
    assert pitch_hz(audio.mono) == pytest.approx(TONE_HZ, abs=2.0)


def test_a_truncated_file_whose_header_knows_better_is_reported() -> None:
    file = encode("flac", "flac", tone(4.0, 48000), 48000)
    assert any("ends early" in w for w in read(file[: len(file) // 2]).warnings)


def test_damage_in_the_middle_costs_only_the_middle_and_is_reported() -> None:
    file = bytearray(encode("ogg", "libopus", tone(6.0, 48000), 48000))
    middle = len(file) // 2
    file[middle : middle + 300] = bytes(300)
    audio = read(bytes(file))
    assert audio.duration == pytest.approx(6.0, abs=0.1)
    assert level(audio.cut(0.2, 1.8)) == pytest.approx(TONE_RMS, rel=0.05)
    assert level(audio.cut(4.2, 5.8)) == pytest.approx(TONE_RMS, rel=0.05)
    assert any("missing" in warning for warning in audio.warnings)


def test_damaged_packets_are_skipped_and_counted() -> None:
    file = encode("matroska", "ac3", tone(4.0, 48000), 48000)
    with av.open(io.BytesIO(file), "r") as container:
        packets = [bytes(packet) for packet in container.demux(audio=0)]
    for packet in packets[50:53]:
        file = file.replace(packet, bytes(len(packet)), 1)
    audio = read(file)
    assert "3 damaged packets skipped" in audio.warnings
    assert audio.duration == pytest.approx(4.0, abs=0.05)
    assert_sound(audio)


def test_a_track_that_appears_in_mid_file_does_no_harm() -> None:
    file = encode("flv", "libmp3lame", tone(20.0, 44100), 44100)
    picture = b"\x12" + bytes(50)
    header = b"\x09" + struct.pack(">I", len(picture))[1:] + bytes(7)
    tag = header + picture + struct.pack(">I", len(header) + len(picture))
    at = 13
    while at < len(file) * 0.75:
        at += 11 + int.from_bytes(file[at + 1 : at + 4], "big") + 4
    audio = read(file[:at] + tag * 3 + file[at:])
    assert audio.duration == pytest.approx(20.0, abs=0.05)


def test_nan_and_infinity_become_finite() -> None:
    samples = tone(1.0, 16000)
    samples[100:200] = np.nan
    samples[300:400] = np.inf
    samples[500:600] = 7.0
    audio = read(wav(samples, 16000, format_tag=3))
    assert_sound(audio)
    assert not audio.mono[100:200].any()
    assert (audio.mono[300:400] == 1.0).all()
    assert (audio.mono[500:600] == 1.0).all()


NO_RECORDINGS = {
    "text": b"hello " * 100,
    "html": b"<!DOCTYPE html><html></html>",
    "playlist": b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1/a.ts\n",
    "extended playlist behind a byte order mark": b"\xef\xbb\xbf#EXTM3U\n",
    "concat": b"ffconcat version 1.0\nfile a.wav\n",
    "dash": b"<?xml version='1.0'?><MPD></MPD>",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhi\n",
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "gif": b"GIF89a" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "flash": b"FWS\x06" + bytes(100),
    "iamf": b"\xf8\x06iamf\x00\x00" + bytes(100),
    "midi": b"MThd" + bytes(100),
    "module": b"Extended Module: " + bytes(100),
    "wav without its wave": b"RIFF\x00\x00\x00\x00sfbk" + bytes(100),
}


@pytest.mark.parametrize("data", NO_RECORDINGS.values(), ids=NO_RECORDINGS)
def test_what_does_not_begin_as_a_recording_never_reaches_ffmpeg(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: object, **options: object) -> None:
        raise AssertionError("FFmpeg sees the file")

    monkeypatch.setattr(av, "open", opened)
    with pytest.raises(UnsupportedAudio):
        read(data)


@pytest.mark.parametrize("magic", [b"ID3", b"\xff\xfb\x90\x00", b"\x0b\x77", b"MAC ", b"    ftyp"])
def test_a_playlist_with_the_beginning_of_a_recording_is_no_playlist(
    magic: bytes, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(to_s16(tone(1.0, 16000)), 16000))
    for text in (f"\n#EXTM3U\n#EXTINF:9,\n{secret}\n", f"\nffconcat version 1.0\nfile {secret}\n"):
        with pytest.raises((UnsupportedAudio, EmptyAudio)):
            read(magic + text.encode())


def test_a_file_is_read_as_what_it_begins_as_and_as_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    real = av.open

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["container_options"]["format_whitelist"])
        return real(*args, **options)

    monkeypatch.setattr(av, "open", spy)
    for file in SEEDS:
        read(file)
    assert seen == ["aac,flac,mp3,tta", "ogg", "mov", "flac", "matroska", "wav"]


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
    "m3u8 with file url": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{path}\n"
    "#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "ffconcat beside": "ffconcat version 1.0\nfile secret.wav\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="audio/wav"><Representation id="1" bandwidth="1"><BaseURL>{path}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=audio 5004 RTP/AVP 0\n",
    "rtsp": "RTSP/1.0 200 OK\nrtsp://127.0.0.1/{path}\n",
}


@pytest.mark.parametrize("playlist", PLAYLISTS.values(), ids=PLAYLISTS)
def test_a_playlist_cannot_reach_other_files(
    playlist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(to_s16(tone(1.0, 16000)), 16000))
    with pytest.raises(UnsupportedAudio) as refused:
        read(playlist.format(path=secret).encode())
    assert "secret" not in refused.value.message


SEEDS = [
    encode("mp3", "libmp3lame", tone(0.2, 16000), 16000),
    encode("ogg", "libopus", tone(0.2, 48000), 48000),
    encode("mp4", "aac", tone(0.2, 16000), 16000),
    encode("flac", "flac", tone(0.2, 16000), 16000),
    encode("matroska", "pcm_s16le", tone(0.2, 8000), 8000),
    wav(to_s16(np.stack([tone(0.2, 8000)] * 2, axis=1)), 8000),
]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8))),
    cut=st.floats(0, 1),
    keep_channels=st.booleans(),
)
def test_no_mutation_of_a_file_raises_anything_but_the_family(
    seed: bytes, edits: list[tuple[float, bytes]], cut: float, keep_channels: bool
) -> None:
    file = bytearray(seed)
    for where, what in edits:
        at = int(where * len(file))
        file[at : at + len(what)] = what
    try:
        audio = read(bytes(file[: round(cut * len(file))]), keep_channels=keep_channels)
    except SpeechError:
        return
    assert_sound(audio)
    assert 0 < audio.duration <= 60
