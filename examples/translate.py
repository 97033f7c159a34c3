"""Translate English into German by an encoder and a decoder, without and with attention.

By default numbers in words: "forty-two" is "zweiundvierzig", units before tens, so attention must cross. Both models
learn from the same numbers for as many steps. Of those held out a translation is right where every letter is. Without
attention a vector of fixed size has to hold the whole number, and the longest suffer first.

    python examples/translate.py                    # fails unless attention gets 95 % of unseen numbers right
    python examples/translate.py --corpus messages  # Django's messages: chrF against leaving the English as it is
    python examples/translate.py --quick            # numbers below 10,000, for a few seconds
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encoder_decoder import EncoderDecoder
from language_model import cosine_decay
from matplotlib.figure import Figure
from parallel_text import Missing, Pairs, Vocabulary, messages, numbers, package
from picture import option_parser, parse
from tqdm import tqdm

import fusedrnn as fr

BATCH = 64
RATE = 4e-3
WARMUP = 0.05
MAX_NORM = 1.0
AT_ONCE = 100  # sentences that are translated side by side
BEAM = 5
BUCKETS = 4  # of equal numbers of sentences, by the length of the translation

SETTINGS: dict[str, dict[str, Any]] = {
    "numbers": {"digits": 9, "pairs": 12000, "held_out": 1000, "steps": 2000},
    "messages": {"longest": 40, "held_out": 100, "steps": 800},
    "quick": {"digits": 4, "pairs": 2000, "held_out": 200, "steps": 300},
}
SIZES: dict[str, dict[str, Any]] = {
    "numbers": {"hidden": 128, "embedding": 32, "dropout": 0.0},
    "messages": {"hidden": 192, "embedding": 48, "dropout": 0.4},
    "quick": {"hidden": 64, "embedding": 16, "dropout": 0.0},
}
TARGETS = {"numbers": 0.95, "quick": 0.5}  # of exact matches with attention, greedy
# By how much attention must be ahead in the longest bucket, and chrF of messages ahead of that of the English itself.
MARGINS = {"numbers": 0.1, "quick": 0.0, "messages": 0.05}
KINDS = {"without attention": False, "with attention": True}


class Corpus:
    """Pairs as codes, in a part to learn from and a part held out."""

    def __init__(self, pairs: Pairs, held_out: int, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(pairs))
        self.held_out, self.training = pairs.part(order[:held_out]), pairs.part(order[held_out:])
        self.vocabularies = Vocabulary(pairs.source), Vocabulary(pairs.target)

    def encoded(self, pairs: Pairs) -> tuple[list[list[int]], list[list[int]]]:
        source, target = self.vocabularies
        return [source.encode(one) for one in pairs.source], [target.encode(one) for one in pairs.target]

    def batches(self, count: int, seed: int) -> list[np.ndarray]:
        """Rows of the training part for each of `count` steps: sentences of about the same length go together."""
        generator = np.random.default_rng(seed)
        lengths = np.array([len(one) for one in self.training.target])
        made: list[np.ndarray] = []
        while len(made) < count:
            order = np.lexsort((generator.random(lengths.size), lengths))
            whole = [order[first : first + BATCH] for first in range(0, lengths.size, BATCH)]
            made += [whole[i] for i in generator.permutation(len(whole))]
        return made[:count]


def train(corpus: Corpus, sizes: dict[str, Any], steps: int, *, attention: bool, seed: int) -> EncoderDecoder:
    source, target = (len(vocabulary) for vocabulary in corpus.vocabularies)
    model = EncoderDecoder((source, target), attention=attention, seed=seed, **sizes)
    optimizer = fr.optim.Adam(model.parameters, lr=RATE)
    sources, targets = corpus.encoded(corpus.training)
    rows = corpus.batches(steps, seed)
    with tqdm(rows, unit="step", desc="with attention" if attention else "without") as bar:
        for step, chosen in enumerate(bar):
            loss, gradients = model.train_batch([sources[i] for i in chosen], [targets[i] for i in chosen])
            fr.clip_grad_norm(gradients, MAX_NORM)
            optimizer.lr = RATE * cosine_decay((step + 0.5) / steps, WARMUP)
            optimizer.step(gradients)
            bar.set_postfix_str(f"{loss:.4f} nats", refresh=False)
    return model


def translations(model: EncoderDecoder, corpus: Corpus, pairs: Pairs, beam_width: int) -> list[str]:
    sources, _ = corpus.encoded(pairs)
    longest = max(len(target) for target in corpus.training.target)
    found = []
    for first in range(0, len(sources), AT_ONCE):
        some = sources[first : first + AT_ONCE]
        found += model.translate(some, beam_width=beam_width, max_steps=2 * longest)
    return [corpus.vocabularies[1].decode(codes) for codes in found]


def exact(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of translations that are right in every letter."""
    return float(np.mean([one == other for one, other in zip(found, wanted, strict=True)]))


def chrf(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F-score of character n-grams (Popovic 2015), between 0 and 1."""
    score = package("sacrebleu", "which counts chrF").CHRF().corpus_score(found, [wanted])
    return float(score.score) / 100


Score = Callable[[Sequence[str], Sequence[str]], float]


class Table:
    """Scores over all held-out sentences, and over buckets of them by the length of the translation."""

    def __init__(self, wanted: Sequence[str], score: Score) -> None:
        self.wanted, self.score = wanted, score
        self.buckets = np.array_split(np.argsort([len(one) for one in wanted], kind="stable"), BUCKETS)
        self.spans = [f"{len(wanted[rows[0]])}-{len(wanted[rows[-1]])}" for rows in self.buckets]
        self.rows: dict[str, list[float]] = {}

    def add(self, name: str, found: Sequence[str]) -> None:
        by_length = [self.score([found[i] for i in rows], [self.wanted[i] for i in rows]) for rows in self.buckets]
        self.rows[name] = [self.score(found, self.wanted), *by_length]

    def show(self, what: str) -> None:
        letters = "".join(f"{span:>8}" for span in self.spans)
        print(f"\n{f'{what}, %':<30}{'all':>7}   by letters {letters}")
        for name, (everything, *by_length) in self.rows.items():
            shown = "".join(f"{100 * value:>8.1f}" for value in by_length)
            print(f"{name:<30}{100 * everything:>7.1f}   {'':<11}{shown}")


def measure(models: dict[str, EncoderDecoder], corpus: Corpus, score: Score) -> Table:
    """A row for each model and search, and one for the source as it is."""
    table = Table(corpus.held_out.target, score)
    table.add("source as it is", corpus.held_out.written())
    for name, model in models.items():
        for search, width in (("greedy", 1), (f"beam {BEAM}", BEAM)):
            table.add(f"{name}, {search}", translations(model, corpus, corpus.held_out, width))
    return table


def misses(table: Table, name: str) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    found = []
    attention, without = table.rows["with attention, greedy"], table.rows["without attention, greedy"]
    least = table.rows["source as it is"][0] + MARGINS[name] if name == "messages" else TARGETS[name]
    if not attention[0] >= least:
        found.append(f"with attention a score of {attention[0]:.3f}, wanted at least {least:.3f}")
    if name != "messages" and not attention[-1] >= without[-1] + MARGINS[name]:
        found.append(f"among the longest {attention[-1]:.3f} with attention, and {without[-1]:.3f} without")
    return found


def draw(path: Path, model: EncoderDecoder, corpus: Corpus, table: Table, what: str) -> None:
    """Score by length, and the attention of the held-out sentence of median length."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    for name in KINDS:
        left.plot(table.spans, table.rows[f"{name}, greedy"][1:], marker="o", label=name)
    left.set(xlabel="letters of the translation", ylabel=what, ylim=(0, 1.02))
    left.legend()
    left.grid(alpha=0.3)
    middle = int(table.buckets[BUCKETS // 2][0])
    source, target = corpus.held_out.source[middle], corpus.held_out.target[middle]
    weights = model.attend(*(codes[0] for codes in corpus.encoded(corpus.held_out.part([middle]))))
    image = right.imshow(weights.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    right.set_xticks(range(len(target) + 1), [*target, "end"])
    right.set_yticks(range(len(source)), source)
    right.set_title("attention to the sentence at each letter of its translation")
    figure.colorbar(image)
    figure.savefig(path, dpi=120)


def show_some(model: EncoderDecoder, corpus: Corpus) -> None:
    some = corpus.held_out.part(range(4))
    for source, wanted, found in zip(some.written(), some.target, translations(model, corpus, some, BEAM), strict=True):
        print(f"\n{source}\n    wanted {wanted}\n    found  {found}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = option_parser(
        __doc__, quick="shorter numbers and smaller models", seed="sentences, weights, batches", output="translate.png"
    )
    parser.add_argument("--corpus", choices=("numbers", "messages"), default="numbers", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="training steps of each model")
    options = parse(parser, arguments)
    if options.quick and options.corpus != "numbers":
        parser.error("argument --quick: it is for numbers")
    if options.steps is not None and options.steps < 1:
        parser.error(f"argument --steps: wanted at least 1, got {options.steps}")
    return options


def load(name: str, seed: int) -> tuple[Corpus, Score, str]:
    """The corpus, what its translations are judged by, and what that is called. Raises Missing."""
    settings = SETTINGS[name]
    if name == "messages":
        pairs, score, what = messages(settings["longest"]), chrf, "chrF"
        chrf(["a"], ["a"])  # is it there? Before any training
    else:
        pairs, score, what = numbers(settings["pairs"], seed, settings["digits"]), exact, "exact matches"
    return Corpus(pairs, settings["held_out"], seed), score, what


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse_arguments(arguments)
    name = "quick" if options.quick else options.corpus
    try:
        corpus, score, what = load(name, options.seed)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    print(f"{len(corpus.training)} pairs to learn from, {len(corpus.held_out)} held out")
    steps = options.steps or SETTINGS[name]["steps"]
    models = {
        kind: train(corpus, SIZES[name], steps, attention=attention, seed=options.seed)
        for kind, attention in KINDS.items()
    }
    show_some(models["with attention"], corpus)
    table = measure(models, corpus, score)
    table.show(what)
    draw(options.output, models["with attention"], corpus, table, what)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(table, name)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
