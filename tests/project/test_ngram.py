"""The n-gram models that the examples hold language models against."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

from ngram import kneser_ney, witten_bell_bits  # noqa: E402

KINDS = 5


def text(rng: np.random.Generator) -> np.ndarray:
    """Symbols of which one is never seen."""
    return rng.choice(KINDS - 1, 400, p=[0.5, 0.3, 0.15, 0.05])


def by_definition(text: list[int], context: tuple[int, ...], symbol: int, highest: bool) -> float:
    """P(symbol | context) by Kneser and Ney's equations, out of dicts."""
    n = len(context) + 1
    grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
    if not highest:
        longer = {tuple(text[i : i + n + 1]) for i in range(len(text) - n)}
        grams = Counter(gram[1:] for gram in longer)
    once, twice = (sum(count == k for count in grams.values()) for k in (1, 2))
    discount = once / max(once + 2 * twice, 1)
    after = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    shorter = by_definition(text, context[1:], symbol, False) if context else 1 / KINDS
    if not after:
        return shorter
    return (max(after.get(symbol, 0) - discount, 0) + discount * len(after) * shorter) / sum(after.values())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_is_its_definition(order: int, rng: np.random.Generator) -> None:
    codes, split = text(rng), 300
    ours = kneser_ney(codes, split, order, KINDS)
    known = codes[:split].tolist()
    for i in range(0, 100, 7):
        context = tuple(codes[split + i - order + 1 : split + i].tolist())
        assert ours[i] == pytest.approx(by_definition(known, context, int(codes[split + i]), True), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_of_all_symbols_come_to_one(order: int, rng: np.random.Generator) -> None:
    codes = text(rng)
    for context in (codes[:4], np.array([4, 4, 4, 4])):  # one that occurs, and one that does not
        whole = sum(
            kneser_ney(np.array([*codes, *context, symbol]), len(codes) + 4, order, KINDS)[0] for symbol in range(5)
        )
        assert whole == pytest.approx(1.0, abs=1e-12)


def test_bits_of_what_is_always_the_same() -> None:
    codes = np.tile([0, 1], 200)
    assert witten_bell_bits(codes, 300, 3, 2) < 0.02
    assert -np.log2(kneser_ney(codes, 300, 3, 2)).mean() < 0.02
