"""WAV files that are read without a decoder: the same audio, or left to the decoder."""

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.media.plain_wav import LONGEST_S, read_plain_wav
from tests.unit.sound_files import read, to_s16, tone, wav

SECOND = to_s16(tone(1.0, SAMPLE_RATE))


def test_plain_samples_are_read_as_the_decoder_reads_them() -> None:
    extremes = np.array([-32768, 32767, 0, 1, -1], np.int16)
    file = wav(np.concatenate([extremes, SECOND]), SAMPLE_RATE)
    found, expected = read_plain_wav(file, 3600), read(file)
    assert found is not None
    assert np.array_equal(found.mono, expected.mono)
    assert (found.channels, found.warnings) == (expected.channels, expected.warnings)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"RIFF\0\0\0\0WAVE",
        wav(SECOND, 8_000),
        wav(np.stack([SECOND, SECOND], axis=1), SAMPLE_RATE),
        wav(SECOND.astype(np.int32), SAMPLE_RATE),
        wav(SECOND.view(np.uint8), SAMPLE_RATE),
        wav(SECOND.view(np.float16), SAMPLE_RATE, format_tag=3),
        wav(SECOND[:0], SAMPLE_RATE),
        wav(SECOND, SAMPLE_RATE)[:-2],
        wav(SECOND, SAMPLE_RATE)[:-1],
        wav(SECOND, SAMPLE_RATE) + b"LIST\4\0\0\0INFO",
        wav(SECOND, SAMPLE_RATE) * 2,
    ],
    ids=[
        "empty",
        "header alone",
        "other rate",
        "two channels",
        "32 bits",
        "8 bits",
        "float",
        "no samples",
        "fewer samples than declared",
        "half a sample",
        "something behind the samples",
        "two files",
    ],
)
def test_everything_else_is_left_to_the_decoder(file: bytes) -> None:
    assert read_plain_wav(file, 3600) is None


@pytest.mark.parametrize("max_seconds", [1.0, 3600.0])
def test_a_file_beyond_the_bound_is_left_to_the_decoder(max_seconds: float) -> None:
    most = round(min(max_seconds, LONGEST_S) * SAMPLE_RATE)
    longest = np.zeros(most, np.int16)
    assert read_plain_wav(wav(longest, SAMPLE_RATE), max_seconds) is not None
    longer = np.zeros(most + 1, np.int16)
    assert read_plain_wav(wav(longer, SAMPLE_RATE), max_seconds) is None
