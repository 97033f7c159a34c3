"""What is chosen after training, by none of the sentences that are tried: the n-gram model's weight, a voice's warp."""

from __future__ import annotations

import numpy as np
from flite_speech import Utterance
from phone_ngram import PhoneNgram
from phonemes import error_rate
from recogniser import AT_ONCE, Recogniser, beam_search
from speech_batches import Encoding
from tqdm import tqdm

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
BONUS = 2.0  # of a phone, in weights
WARPS = np.exp(np.linspace(-0.2, 0.2, 9))
NARROW = 4  # beam that compares warps


def _logits(
    model: Recogniser,
    utterances: list[Utterance],
    encoding: Encoding,
    generator: np.random.Generator | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and steps of batches of utterances."""
    parts = [utterances[first : first + AT_ONCE] for first in range(0, len(utterances), AT_ONCE)]
    batches = [encoding.batch(part, generator) for part in parts]
    return [(model(batch), batch.steps) for batch in batches]


def fit_weight(
    ngram: PhoneNgram, model: Recogniser, utterances: list[Utterance], encoding: Encoding, seed: int
) -> None:
    """Give the n-gram model the weight that is best for validation sentences, changed as if by other speakers."""
    heard = _logits(model, utterances, encoding, np.random.default_rng(seed))
    rates = []
    for weight in tqdm(WEIGHTS, unit="weight", desc="n-gram"):
        ngram.weight, ngram.bonus = weight, BONUS * weight
        labels = [found for logits, steps in heard for found in beam_search(logits, steps, ngram.score)[0]]
        rates.append(error_rate(labels, utterances, encoding.phones))
    ngram.weight = WEIGHTS[int(np.argmin(rates))]
    ngram.bonus = BONUS * ngram.weight


def fit_warp(
    voice: str, ngram: PhoneNgram, model: Recogniser, unlabelled: list[Utterance], encoding: Encoding
) -> Encoding:
    """The encoding with the warp of a voice by which its speech, whose phones are not looked at, scores best.

    The factor of Lee and Rose ("A frequency warping approach to speaker normalization", 1998), found by a beam search
    for each of `WARPS`.
    """
    scores = []
    for warp in tqdm(WARPS, unit="warp", desc=f"warps of {voice}"):
        heard = _logits(model, unlabelled, encoding._replace(warps={voice: warp}))
        scores.append(sum(beam_search(logits, steps, ngram.score, NARROW)[1] for logits, steps in heard))
    return encoding._replace(warps={voice: float(WARPS[int(np.argmax(scores))])})
