"""How gradients vanish and explode on their way back through text, and what clipping does about it.

Three small character models, an Elman network, an LSTM and a GRU, learn from the text of `help()`'s topics. Then the
error of one character alone is put at the end of a window, and the norm of dE/d(state) is drawn for every step before
it. The norms come out of the same backward pass as the gradients: `backward(..., norms=True)`. In the Elman network
they vanish with the distance; in the gated cells less (Bengio et al. 1994, Hochreiter & Schmidhuber 1997).

Then an Elman network of rectifiers starts with recurrent weights that stretch: its gradients explode with the distance.
Trained as it is, its weights are no numbers after a few updates. With the gradients clipped to a norm of 1 (Pascanu et
al. 2013), and nothing else changed, it learns the text.

    python examples/gradient_norms.py               # fails unless all of this shows
    python examples/gradient_norms.py --quick       # fewer updates
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from language_model import LanguageModel
from ngram import witten_bell_bits
from picture import option_parser, parse, picture
from text import Corpus, load_corpus
from tqdm import tqdm

import fusedrnn as fr

CELLS = {"Elman network": "rnn_tanh", "LSTM": "lstm", "GRU": "gru"}
BATCH = 32
WINDOW = 64
HIDDEN = 128
EMBEDDING = 32
LEARNING_RATE = 4e-3
MAX_NORM = 1.0
DISTANCE = 40  # steps before the error at which cells are compared
STRETCH = 1.7  # of the exploding network's recurrent weights, which turn every vector and lengthen it by that
FACTOR = 100.0  # by which a gated cell's gradient must outlive the Elman network's
FULL = {"updates": 1000, "clipped": 400}
QUICK = {"updates": 100, "clipped": 100}


def distances(model: LanguageModel, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Norms (T,) of the gradient of the state that is 0, 1, ... steps before the error of a window's last character.

    Of an LSTM h and c count together. Geometric means over the batch, relative to the first.
    """
    y, _, tape = model.recurrent.forward(model.embedding[inputs])
    last = np.ascontiguousarray(y[-1])
    _, readout = fr.linear_cross_entropy_forward(last, model.readout_weight, model.readout_bias, targets[-1])
    dy = np.zeros_like(y)
    dy[-1] = fr.linear_cross_entropy_backward(readout)[0]
    norms = model.recurrent.backward(tape, dy, norms=True).norms
    both = norms.h[0] if norms.c is None else np.hypot(norms.h[0], norms.c[0])
    mean = np.exp(np.log(np.maximum(both, np.finfo(np.float32).tiny)).mean(axis=-1))[::-1]
    return mean / mean[0]


class Training(NamedTuple):
    """What is seen of each update."""

    bits: np.ndarray
    norms: np.ndarray  # of all gradients together, before they are clipped


def train(name: str, model: LanguageModel, corpus: Corpus, updates: int, optimizer: Any, max_norm: float) -> Training:
    """Truncated BPTT; ends at once where a number is none any more."""
    streams = corpus.streams(BATCH, WINDOW)
    bits, norms, state, windows = [], [], None, iter(())
    with tqdm(range(updates), unit="update", desc=name) as bar:
        for _ in bar:
            window = next(windows, None)
            if window is None:
                windows, state = fr.tbptt_windows(*streams, window=WINDOW), None
                window = next(windows)
            loss, state, gradients = model.train_window(*window, state)
            norms.append(float(fr.clip_grad_norm(gradients, max_norm)))
            bits.append(loss / math.log(2.0))
            if not (math.isfinite(loss) and math.isfinite(norms[-1])):
                break
            optimizer.step(gradients)
            bar.set_postfix_str(f"{bits[-1]:.2f} bits", refresh=False)
    return Training(np.array(bits), np.array(norms))


def fresh(corpus: Corpus, cell: str, seed: int) -> LanguageModel:
    return LanguageModel(corpus.symbols, cell=cell, hidden=HIDDEN, embedding=EMBEDDING, seed=seed)


def stretching(corpus: Corpus, seed: int) -> LanguageModel:
    """A network of rectifiers whose recurrent weights are an orthogonal matrix times `STRETCH`."""
    model = fresh(corpus, "rnn_relu", seed)
    fr.init.orthogonal_(model.recurrent, seed)
    model.recurrent.parameters["weight_hh_l0"] *= STRETCH
    return model


def plot(before: dict, after: dict, exploding: np.ndarray, runs: dict[str, Training], unigram: float, output) -> None:
    with picture(output, columns=3, size=(18, 5)) as (vanish, explode, learn):
        for color, name in enumerate(after):
            vanish.semilogy(after[name], color=f"C{color}", label=f"{name}, trained")
            vanish.semilogy(before[name], color=f"C{color}", linestyle=":", label=f"{name}, at first")
        vanish.set(
            title="Vanishing", xlabel="steps before the error", ylabel="norm of dE/d(state), over that at the error"
        )
        explode.semilogy(exploding, label=f"rectifiers, {STRETCH} x orthogonal, at first")
        explode.set(
            title="Exploding", xlabel="steps before the error", ylabel="norm of dE/d(state), over that at the error"
        )
        for name, run in runs.items():
            learn.semilogy(
                np.arange(1, len(run.bits) + 1), run.bits, label=name, marker="x" if len(run.bits) < 20 else ""
            )
        learn.axhline(unigram, color="gray", linestyle=":", label="unigram model")
        learn.set(title="The same network, trained", xlabel="updates", ylabel="bits per character")


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(
        option_parser(__doc__, quick="few updates", seed="the weights", output="gradient_norms.png"), arguments
    )
    settings = QUICK if options.quick else FULL
    corpus = load_corpus()
    window = tuple(array[-WINDOW:] for array in corpus.streams(BATCH, WINDOW))
    before, after = {}, {}
    for name, cell in CELLS.items():
        model = fresh(corpus, cell, options.seed)
        before[name] = distances(model, *window)
        optimizer = fr.optim.Adam(model.parameters, lr=LEARNING_RATE)
        train(name, model, corpus, settings["updates"], optimizer, MAX_NORM)
        after[name] = distances(model, *window)

    exploding = distances(stretching(corpus, options.seed), *window)
    runs = {}
    for name, max_norm in (("not clipped", math.inf), (f"clipped to {MAX_NORM:g}", MAX_NORM)):
        model = stretching(corpus, options.seed)
        optimizer = fr.optim.SGD(model.parameters, lr=0.3, momentum=0.9)
        runs[name] = train(name, model, corpus, settings["clipped"], optimizer, max_norm)
    unigram = witten_bell_bits(corpus.codes, corpus.split, 1, len(corpus.symbols))

    print(f"\nnorm of dE/d(state) {DISTANCE} steps before the error, over that at the error")
    for name in CELLS:
        print(f"  {name:<16}{before[name][DISTANCE]:9.1e} at first {after[name][DISTANCE]:9.1e} trained")
    print(f"  {'stretching':<16}{exploding[DISTANCE]:9.1e} at first")
    wild, tame = runs.values()
    ends = "no number any more" if not math.isfinite(wild.bits[-1] + wild.norms[-1]) else f"{wild.bits[-1]:.2f} bits"
    bits = float(tame.bits[-20:].mean())
    print(f"the stretching network: not clipped, {ends} after {len(wild.bits)} updates; clipped, {bits:.2f} bits per")
    print(f"character after {len(tame.bits)}, with {unigram:.2f} of a unigram model")
    plot(before, after, exploding, runs, unigram, options.output)
    print(f"\n{time.perf_counter() - started:.1f} s on {fr.get_num_threads()} threads; wrote {options.output}")

    outlived = min(after[name][DISTANCE] / after["Elman network"][DISTANCE] for name in ("LSTM", "GRU"))
    wanted = {
        f"the Elman network's gradient to vanish {FACTOR:g} times as far as the gated cells'": outlived > FACTOR,
        "the stretching network's gradient to explode": exploding[DISTANCE] > FACTOR,
        "it to diverge unless clipped": not math.isfinite(wild.bits[-1] + wild.norms[-1]),
        "it to beat the unigram model when clipped": bits < unigram,
    }
    for what, holds in wanted.items():
        if not holds:
            print(f"error: wanted {what}", file=sys.stderr)
    return 0 if all(wanted.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
