"""What is taken away of a voice before it is heard: its mean spectrum, and how its bands vary together.

Each voice's covariance is made that of the voices of training (Sun, Feng & Saenko 2016, "Return of frustratingly easy
domain adaptation"). It takes some speech of a voice, and nobody has to say what is spoken there.
"""

from __future__ import annotations

import numpy as np
from flite_speech import Utterance

LEAST = 1e-3  # of the largest variance: what a direction has at least


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """A symmetric matrix to a power."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.maximum(values, LEAST * values[-1]) ** exponent) @ vectors.T


class Voices:
    """Features of each voice made alike.

    Parameters
    ----------
    utterances : list of Utterance
        Speech of every voice; phones and ends are not looked at.
    known : tuple of str
        The voices of training, whose mean covariance is the common one.
    """

    def __init__(self, utterances: list[Utterance], known: tuple[str, ...]) -> None:
        frames = {
            voice: np.concatenate([utterance.features for utterance in utterances if utterance.voice == voice])
            for voice in {utterance.voice for utterance in utterances}
        }
        self.means = {voice: each.mean(axis=0, dtype=np.float64).astype(np.float32) for voice, each in frames.items()}
        covariances = {voice: np.cov(each.T) for voice, each in frames.items()}
        common = np.mean([covariances[voice] for voice in known], axis=0)
        target = _power(common, 0.5) / np.sqrt(np.diag(common))
        self.maps = {voice: (_power(each, -0.5) @ target).astype(np.float32) for voice, each in covariances.items()}

    def centred(self, utterance: Utterance) -> np.ndarray:
        """Features without the voice's mean, which a warp of the bands would move."""
        return utterance.features - self.means[utterance.voice]

    def alike(self, centred: np.ndarray, voice: str) -> np.ndarray:
        """Centred features of a voice as those of every voice: variance near 1 in each band, and common covariances."""
        return centred @ self.maps[voice]
