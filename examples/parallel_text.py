"""Pairs of sentences in English and German that need no download: numbers in words, and Django's message catalogues."""

from __future__ import annotations

import gettext
import importlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

PAD, START, END = 0, 1, 2
SPECIAL = 3  # codes below this are no symbols of a text


class Missing(Exception):
    """What is not here, and how to get it."""


def package(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise Missing(f"{name}, {purpose}, is not installed; pip install {name}") from None


class Vocabulary:
    """The symbols of one language; a symbol's code is its place in `symbols` plus `SPECIAL`."""

    def __init__(self, sentences: Sequence[Sequence[str]]) -> None:
        self.symbols = sorted({symbol for sentence in sentences for symbol in sentence})
        self.codes = {symbol: code for code, symbol in enumerate(self.symbols, SPECIAL)}

    def __len__(self) -> int:
        return SPECIAL + len(self.symbols)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [self.codes[symbol] for symbol in sentence]

    def decode(self, codes: Sequence[int]) -> str:
        return "".join(self.symbols[code - SPECIAL] for code in codes if code >= SPECIAL)


@dataclass
class Pairs:
    """Sentences and their translations, each a sequence of symbols."""

    source: list[Sequence[str]]
    target: list[str]
    between: str  # symbols of the source

    def __len__(self) -> int:
        return len(self.source)

    def written(self) -> list[str]:
        """The source as text."""
        return [self.between.join(symbols) for symbols in self.source]

    def part(self, rows: Sequence[int]) -> Pairs:
        return Pairs([self.source[row] for row in rows], [self.target[row] for row in rows], self.between)


def numbers(count: int, seed: int, digits: int) -> Pairs:
    """`count` different numbers of up to `digits` digits, as many of each length where there are so many.

    The English is a sequence of words, the German, which is one word below a million, of letters.
    """
    num2words = package("num2words", "which writes the numbers in words").num2words
    generator = random.Random(seed)
    chosen: set[int] = set()
    while len(chosen) < count:
        length = generator.randint(1, digits)
        chosen.add(generator.randrange(0 if length == 1 else 10 ** (length - 1), 10**length))
    order = sorted(chosen)
    english = [re.findall(r"[a-z]+", num2words(number)) for number in order]
    return Pairs(list(english), [num2words(number, lang="de") for number in order], " ")


def messages(longest: int) -> Pairs:
    """Django's messages and their German translations, those without formats, of at most `longest` letters; sorted."""
    django = package("django", "whose messages are translated")
    found = {}
    for path in sorted(Path(django.__path__[0]).rglob("locale/de/LC_MESSAGES/django.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # all messages; the public functions want their names
        for english, german in catalogue.items():
            if isinstance(english, tuple):  # a message with a plural: its singular
                english = english[0]
            english = english.split("\x04")[-1]  # without its context
            plain = not re.search(r"[%{\n<]", english + german)
            if plain and 0 < len(english) <= longest and 0 < len(german) <= longest:
                found.setdefault(english, german)
    return Pairs([list(english) for english in sorted(found)], [found[english] for english in sorted(found)], "")


def batch(sentences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (T, B), padded, and lengths (B,)."""
    lengths = np.array([len(sentence) for sentence in sentences])
    codes = np.full((int(lengths.max()), len(sentences)), PAD)
    for row, sentence in enumerate(sentences):
        codes[: len(sentence), row] = sentence
    return codes, lengths
