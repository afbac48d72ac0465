"""The demo's meeting, the audio of several measurements."""

import io
import wave

import numpy as np

from configs.catalogue import REPOSITORY_ROOT
from speech.audio import SAMPLE_RATE, Samples
from speech.media.decoding import decode

MEETING = REPOSITORY_ROOT / "models" / "demo" / "audio" / "meeting-10min.opus"


def meeting() -> Samples:
    """Ten minutes of speech, float32 [samples] at 16 kHz."""
    data = MEETING.read_bytes()
    return decode(data, keep_channels=False, max_seconds=3600, max_channels=1).mono


def wav(samples: Samples) -> bytes:
    """A WAV file of 16-bit PCM at 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes((samples * 32767).astype(np.int16).tobytes())
    return file.getvalue()
