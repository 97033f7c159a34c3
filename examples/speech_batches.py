"""Utterances as padded arrays for a network, changed a little each time in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flite_speech import Utterance
from log_mel import MELS, STACK, paced, stacked, warped
from phonemes import Phones
from tqdm import tqdm
from voices import Voices

WARP, PACE = 0.15, 0.15  # largest logarithms of the factors by which training speech is changed
BEND = 1.0  # bands that its middle is moved by, at most
LEARNING_RATE = 3e-3
WARMUP = 50  # training steps


class Batch(NamedTuple):
    x: np.ndarray  # (T, B, STACK * MELS)
    steps: np.ndarray  # (B,): of each row
    targets: np.ndarray  # (sum of counts,): classes, one row after another
    counts: np.ndarray  # (B,)


class Encoding(NamedTuple):
    """Utterances as arrays: of alike voices, with phones as classes."""

    voices: Voices
    phones: Phones
    warps: Mapping[str, float] = {}  # of voices; 1 where there is none

    def steps(self, utterance: Utterance, generator: np.random.Generator | None = None) -> np.ndarray:
        """Input (T, STACK * MELS); with a `generator`, as another speaker at another pace might have said it."""
        features = self.voices.centred(utterance)
        if generator is None:
            features = warped(features, self.warps.get(utterance.voice, 1.0))
        else:
            warp, pace = np.exp(generator.uniform((-WARP, -PACE), (WARP, PACE)))
            features = paced(warped(features, warp, generator.uniform(-BEND, BEND)), pace)
        return stacked(self.voices.alike(features, utterance.voice))

    def batch(self, utterances: list[Utterance], generator: np.random.Generator | None = None) -> Batch:
        """Utterances side by side, padded."""
        inputs = [self.steps(utterance, generator) for utterance in utterances]
        steps = np.array([len(each) for each in inputs])
        x = np.zeros((steps.max(), len(inputs), STACK * MELS), np.float32)
        for row, each in enumerate(inputs):
            x[: len(each), row] = each
        targets = [self.phones.encode(utterance.phones) for utterance in utterances]
        return Batch(x, steps, np.concatenate(targets), np.array([len(each) for each in targets]))


def shuffled(utterances: list[Utterance], size: int, generator: np.random.Generator) -> list[list[Utterance]]:
    """All utterances in batches of about the same length, in random order."""
    lengths = np.array([len(utterance.features) for utterance in utterances])
    order = np.argsort(lengths * np.exp(0.05 * generator.standard_normal(len(lengths))), kind="stable")
    cut = [[utterances[k] for k in order[first : first + size]] for first in range(0, len(order), size)]
    return [cut[k] for k in generator.permutation(len(cut))]


def train(
    learn: Callable[[Batch, float], float],
    utterances: list[Utterance],
    encoding: Encoding,
    epochs: int,
    size: int,
    seed: int,
) -> None:
    """Call `learn` with batches of `size` utterances and the learning rate, which rises and then falls to 0."""
    generator = np.random.default_rng(seed)
    total, step = epochs * -(-len(utterances) // size), 0
    with tqdm(total=total, unit="step", desc="training") as bar:
        for _ in range(epochs):
            for chosen in shuffled(utterances, size, generator):
                step += 1
                rate = LEARNING_RATE * min(step / WARMUP, 1.0) * (1.0 - (step - 1) / total)
                loss = learn(encoding.batch(chosen, generator), rate)
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
