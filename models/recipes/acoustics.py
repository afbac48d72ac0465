"""What happens to clean speech on its way to a microphone: level, noise, telephone, room."""

import numpy as np
import soxr

from models.recipes.synth import SAMPLE_RATE_HZ

_TELEPHONE_HZ = 8_000
_SILENCE_RMS = 1e-6


def rms(samples: np.ndarray) -> float:
    """Root mean square of the samples; zero for an empty array."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0


def noise(count: int, rng: np.random.Generator, colour: float | None = None) -> np.ndarray:
    """Unit-power noise whose spectrum falls by ``colour`` (0 white, 1 pink, 2 brown)."""
    exponent = float(rng.uniform(0.0, 2.0)) if colour is None else colour
    bins = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ), 20.0)
    shaped = np.fft.irfft(bins * frequency ** (-exponent / 2), count)
    return (shaped / max(rms(shaped), _SILENCE_RMS)).astype(np.float32)


def with_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Speech with coloured noise ``snr_db`` below its own level."""
    level = rms(samples) * 10 ** (-snr_db / 20)
    return samples + level * noise(len(samples), rng)


def telephone(samples: np.ndarray) -> np.ndarray:
    """What is left of the band after an 8 kHz line."""
    narrow = soxr.resample(samples, SAMPLE_RATE_HZ, _TELEPHONE_HZ)
    wide = soxr.resample(narrow, _TELEPHONE_HZ, SAMPLE_RATE_HZ)
    return _fitted(wide, len(samples))


def room(samples: np.ndarray, decay_s: float, rng: np.random.Generator) -> np.ndarray:
    """Speech with the exponentially decaying echo of a small room."""
    length = int(decay_s * SAMPLE_RATE_HZ)
    times = np.arange(length) / SAMPLE_RATE_HZ
    response = rng.standard_normal(length) * np.exp(-6.9 * times / decay_s)
    response *= 0.25 / max(float(np.linalg.norm(response)), _SILENCE_RMS)
    response[0] = 1.0
    size = len(samples) + length - 1
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return _fitted(wet, len(samples))


def other_throat(samples: np.ndarray, factor: float) -> np.ndarray:
    """Another speaker: pitch and formants moved together by playing the tape ``factor`` faster."""
    faster: np.ndarray = soxr.resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return faster.astype(np.float32)


def recorded(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random recording of the speech: some in a room, some by telephone, most with noise."""
    recording = samples
    if rng.random() < 0.25:
        recording = room(recording, float(rng.uniform(0.1, 0.4)), rng)
    if rng.random() < 0.2:
        recording = telephone(recording)
    if rng.random() < 0.7:
        recording = with_noise(recording, float(rng.uniform(8.0, 40.0)), rng)
    return recording.astype(np.float32)


def _fitted(samples: np.ndarray, length: int) -> np.ndarray:
    if len(samples) >= length:
        return samples[:length].astype(np.float32)
    return np.pad(samples, (0, length - len(samples))).astype(np.float32)
