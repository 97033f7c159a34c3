"""Log-mel features of speech in NumPy, and what makes other speakers of the ones there are."""

from __future__ import annotations

import numpy as np

RATE = 16000
WINDOW, HOP, FOURIER = 400, 160, 512  # samples: 25 ms, 10 ms, and the length of the transform
MELS = 40
LOWEST, HIGHEST = 80.0, 7600.0  # Hz
PREEMPHASIS = 0.97
FLOOR = 1e-6  # of the energies, below what a rounding of 16-bit samples gives
STACK = 2  # frames that make a step of the network


def _filters() -> np.ndarray:
    """Triangles over the transform's frequencies, (FOURIER // 2 + 1, MELS); their corners are equidistant in mel."""
    corners = np.linspace(*(2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (LOWEST, HIGHEST)), MELS + 2)
    corners = 700.0 * (10.0 ** (corners / 2595.0) - 1.0)
    frequencies = np.arange(FOURIER // 2 + 1)[:, None] * (RATE / FOURIER)
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.maximum(np.minimum(rising, falling), 0.0).astype(np.float32)


FILTERS = _filters()
TAPER = np.hamming(WINDOW).astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Features (frames, MELS) of 16-bit samples; frame k is centred on sample k * HOP."""
    x = samples.astype(np.float32) / 32768.0
    x[1:] -= PREEMPHASIS * x[:-1]
    x = np.pad(x, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] * TAPER
    power = np.abs(np.fft.rfft(frames, FOURIER)).astype(np.float32) ** 2
    return np.log(power @ FILTERS + FLOOR)


def _resampled(features: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows of `features` at fractional places, linear in between; places beyond either end give the row at that end."""
    places = np.clip(places, 0, len(features) - 1)
    lower = np.minimum(places.astype(np.int64), max(len(features) - 2, 0))
    share = (places - lower).astype(np.float32)[:, None]
    upper = np.minimum(lower + 1, len(features) - 1)
    return features[lower] * (1 - share) + features[upper] * share


def warped(features: np.ndarray, factor: float, bend: float = 0.0) -> np.ndarray:
    """The mel axis stretched: as by a vocal tract that is longer by `factor` (Jaitly & Hinton 2013).

    `bend` moves the bands in the middle by so many more, and those at the ends not at all.
    """
    bands = np.arange(features.shape[1])
    return _resampled(features.T, bands * factor + bend * np.sin(np.pi * bands / len(bands))).T


def paced(features: np.ndarray, factor: float) -> np.ndarray:
    """The same, spoken faster by `factor`."""
    frames = max(round(len(features) / factor), 1)
    return _resampled(features, np.linspace(0, len(features) - 1, frames))


def stacked(features: np.ndarray) -> np.ndarray:
    """STACK frames side by side: (steps, STACK * MELS)."""
    steps = len(features) // STACK
    return features[: steps * STACK].reshape(steps, -1)


def moments(steps: np.ndarray) -> np.ndarray:
    """Seconds at which steps of the network are centred; steps may be fractions."""
    return (steps * STACK + (STACK - 1) / 2) * (HOP / RATE)


def heard_until(steps: np.ndarray) -> np.ndarray:
    """Seconds at which the last sample of each step has been spoken."""
    return ((steps * STACK + STACK - 1) * HOP + WINDOW / 2) / RATE
