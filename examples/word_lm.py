"""Train a word language model on the text of `help()`'s topics and hold it against a Kneser-Ney trigram.

The text is that of char_lm.py, cut into words, signs and ends of lines, with a vocabulary of up to 10,000. The last
tenth is held out. A word's vector is also its row of the readout, whose softmax cross-entropy `linear_cross_entropy`
takes in one pass, without the logits of all words at once. The n-gram models are counted on the same words.

    python examples/word_lm.py              # LSTM-256; fails unless its perplexity is below the trigram's
    python examples/word_lm.py --quick      # a small net, for a few seconds; must beat the unigram model
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from language_model import LanguageModel, train
from ngram import kneser_ney
from picture import option_parser, parse, picture
from text import Corpus, load_words

import fusedrnn as fr

VOCABULARY = 10_000
BATCH = 20
WINDOW = 32
FULL = {"hidden": 256, "layers": 1, "dropout": 0.5, "input_dropout": 0.3, "epochs": 20}
QUICK = {"hidden": 48, "layers": 1, "dropout": 0.0, "input_dropout": 0.0, "epochs": 2}
LEARNING_RATE = 8e-3
WORDS_OF_SAMPLE = 120


def perplexity(bits: float) -> float:
    """The size of a vocabulary of equally likely words that is as hard to predict."""
    return float(2.0**bits)


def held_out_perplexity(model: LanguageModel, corpus: Corpus) -> float:
    # The model reads the last training word first, so that it predicts every held-out one, as the n-grams do.
    return perplexity(model.bits_per_symbol(corpus.codes[corpus.split - 1 :]))


def kneser_ney_perplexity(corpus: Corpus, order: int) -> float:
    probability = kneser_ney(corpus.codes, corpus.split, order, len(corpus.symbols))
    return perplexity(-np.log2(probability).mean())


def written(words: list[str]) -> str:
    """Words with spaces between them, but for ends of lines."""
    return " ".join(words).replace(" \n", "\n").replace("\n ", "\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = option_parser(
        __doc__, quick="a small net and two passes", seed="weights, dropout and sample", output="word_lm.png"
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sample (default: %(default)s)")
    options = parse(parser, arguments)
    if not 0 <= options.temperature < 1e3:
        parser.error(f"argument --temperature: wanted at least 0, got {options.temperature}")
    return options


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse_arguments(arguments)
    settings = dict(QUICK if options.quick else FULL)
    epochs = settings.pop("epochs")
    corpus = load_words(VOCABULARY)
    model = LanguageModel(corpus.symbols, embedding=None, seed=options.seed, **settings)
    curve: list[float] = []
    train(
        model,
        *corpus.streams(BATCH, WINDOW),
        window=WINDOW,
        epochs=epochs,
        peak=LEARNING_RATE,
        unit="word",
        after_epoch=lambda: curve.append(held_out_perplexity(model, corpus)),
    )
    names = {1: "unigram", 2: "Kneser-Ney bigram", 3: "Kneser-Ney trigram"}
    rows = {name: kneser_ney_perplexity(corpus, order) for order, name in names.items()}
    print(f"\nheld-out perplexity ({len(corpus.codes) - corpus.split:,} words, {len(corpus.symbols):,} kinds of them)")
    for name, value in {**rows, f"lstm-{settings['hidden']}": curve[-1]}.items():
        print(f"  {name:<28}{value:8.2f}")
    print(f"\nsample at temperature {options.temperature:g}")
    print(written(list(model.sample(WORDS_OF_SAMPLE, options.temperature, options.seed, prompt=["\n"]))))
    with picture(options.output) as axes:
        axes.semilogy(np.arange(1, len(curve) + 1), curve, label=f"LSTM, {settings['hidden']} units")
        for (name, value), style in zip(rows.items(), (":", "-.", "--"), strict=True):
            axes.axhline(value, color="gray", linestyle=style, label=name)
        axes.set(xlabel="passes over the text", ylabel="held-out perplexity", title="The next word of help()'s topics")
    print(f"\n{time.perf_counter() - started:.1f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    wanted = rows["unigram" if options.quick else "Kneser-Ney trigram"]
    # Written so that nan, from a run that diverged, misses.
    if not curve[-1] < wanted:
        print(f"error: a perplexity of {curve[-1]:.2f}, wanted below {wanted:.2f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
