"""Tell nine speakers apart by two vowels: sequences of unequal length, many to one.

Kudo et al. (1999) recorded nine men who say the Japanese vowels a and e, and took twelve coefficients of linear
prediction in each frame: 270 utterances to learn from and 370 to be judged by, of 7 to 29 frames. A bidirectional LSTM
reads each utterance; the final states of both directions name the speaker. `lengths` keeps the padding out. The
baseline is a logistic regression on the mean frame, which sees no order.

The recordings come with the wheel of aeon, of which nothing else is needed:

    pip install --no-deps aeon
    python examples/japanese_vowels.py              # fails unless it ends at 95 % or more
    python examples/japanese_vowels.py --quick      # a few passes
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from picture import option_parser, parse, picture
from tqdm import tqdm

import fusedrnn as fr

HIDDEN = 48
BATCH = 30
LEARNING_RATE = 5e-3
MAX_NORM = 1.0
NOISE = 0.3  # standard deviations that are added to every number in training
FULL = {"epochs": 80, "target": 0.95}
QUICK = {"epochs": 12, "target": 0.8}


class Utterances:
    """Sequences of frames, padded with zeros, and who spoke.

    Attributes
    ----------
    frames : ndarray of float32, shape (T, N, 12)
    lengths : ndarray of int64, shape (N,)
    speakers : ndarray of int64, shape (N,)
        From 0 on.
    """

    def __init__(self, path: Path) -> None:
        rows = [line for line in path.read_text().splitlines() if line and line[0] not in "#@"]
        # Twelve series of one utterance stand between colons; the speaker, from 1 on, is the last part.
        parts = [row.split(":") for row in rows]
        self.speakers = np.array([int(row[-1]) - 1 for row in parts])
        series = [np.array([part.split(",") for part in row[:-1]], np.float32).T for row in parts]
        self.lengths = np.array([len(one) for one in series])
        self.frames = np.zeros((self.lengths.max(), len(series), series[0].shape[1]), np.float32)
        for n, one in enumerate(series):
            self.frames[: len(one), n] = one

    def inside(self) -> np.ndarray:
        """(T, N), true where a frame is one of the utterance."""
        return np.arange(len(self.frames))[:, None] < self.lengths

    def means(self) -> np.ndarray:
        """(N, 12): every utterance's mean frame."""
        return self.frames.sum(axis=0) / self.lengths[:, None].astype(np.float32)


def data_directory() -> Path | None:
    """Where aeon keeps the utterances; it is found and not imported."""
    found = importlib.util.find_spec("aeon")
    for place in (found.submodule_search_locations or []) if found else []:
        directory = Path(place) / "datasets" / "data" / "JapaneseVowels"
        if directory.is_dir():
            return directory
    return None


def load(directory: Path) -> tuple[Utterances, Utterances]:
    """Both parts, each coefficient with mean 0 and deviation 1 over the frames to learn from."""
    parts = [Utterances(directory / f"JapaneseVowels_{name}.ts") for name in ("TRAIN", "TEST")]
    inside = parts[0].frames[parts[0].inside()]
    mean, deviation = inside.mean(axis=0), inside.std(axis=0)
    for part in parts:
        part.frames = np.where(part.inside()[..., None], (part.frames - mean) / deviation, 0).astype(np.float32)
    return parts[0], parts[1]


class Readout:
    """A linear map to one logit for each speaker."""

    def __init__(self, width: int, classes: int) -> None:
        self.parameters = {"weight": np.zeros((classes, width), np.float32), "bias": np.zeros(classes, np.float32)}

    def differentiate(self, features: np.ndarray, speakers: np.ndarray) -> tuple[float, np.ndarray, dict]:
        """The mean cross-entropy, and its gradients with respect to the features and the parameters."""
        loss, tape = fr.linear_cross_entropy_forward(features, **self.parameters, targets=speakers)
        dfeatures, dweight, dbias = fr.linear_cross_entropy_backward(tape)
        return float(loss), dfeatures, {"weight": dweight, "bias": dbias}

    def accuracy(self, features: np.ndarray, speakers: np.ndarray) -> float:
        return float((fr.linear(features, **self.parameters).argmax(axis=-1) == speakers).mean())


class Classifier:
    """A bidirectional LSTM whose final states, side by side, are read out."""

    def __init__(self, inputs: int, classes: int, seed: int) -> None:
        self.layer = fr.LSTM(inputs, HIDDEN, bidirectional=True, seed=seed)
        self.readout = Readout(2 * HIDDEN, classes)
        self.parameters = {"layer": self.layer.parameters, "readout": self.readout.parameters}

    def differentiate(self, frames: np.ndarray, lengths: np.ndarray, speakers: np.ndarray) -> tuple[float, dict]:
        _, (h, _), tape = self.layer.forward(frames, lengths=lengths)
        loss, dfeatures, readout = self.readout.differentiate(side_by_side(h), speakers)
        dh = np.ascontiguousarray(dfeatures.reshape(len(speakers), 2, HIDDEN).swapaxes(0, 1))
        # Nothing depends on the outputs in between, and nothing on the last c.
        return loss, {"layer": self.layer.backward(tape, None, (dh, None)), "readout": readout}

    def accuracy(self, part: Utterances) -> float:
        _, (h, _) = self.layer(part.frames, lengths=part.lengths)
        return self.readout.accuracy(side_by_side(h), part.speakers)


def side_by_side(h: np.ndarray) -> np.ndarray:
    """(D, N, H) -> (N, D * H)."""
    return np.ascontiguousarray(h.swapaxes(0, 1)).reshape(h.shape[1], -1)


def train(model: Classifier, train: Utterances, test: Utterances, epochs: int, seed: int) -> list[tuple[float, float]]:
    """Train for so many passes; gives the accuracy on both parts after each."""
    generator = np.random.default_rng(seed)
    optimizer = fr.optim.Adam(model.parameters, lr=LEARNING_RATE)
    curve = []
    with tqdm(range(epochs), unit="pass", desc="training") as bar:
        for epoch in bar:
            optimizer.lr = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
            for rows in np.split(generator.permutation(len(train.speakers)), len(train.speakers) // BATCH):
                frames = train.frames[:, rows] + NOISE * generator.standard_normal((1, 1, 1), np.float32)
                frames = frames + NOISE * generator.standard_normal(frames.shape, np.float32)
                _, gradients = model.differentiate(frames, train.lengths[rows], train.speakers[rows])
                fr.clip_grad_norm(gradients.values(), MAX_NORM)
                optimizer.step(gradients)
            curve.append((model.accuracy(train), model.accuracy(test)))
            bar.set_postfix_str(f"{curve[-1][1]:.1%} of the unseen utterances", refresh=False)
    return curve


def baseline(train: Utterances, test: Utterances, classes: int) -> float:
    """Accuracy of a logistic regression on the mean frames."""
    readout = Readout(train.frames.shape[-1], classes)
    optimizer = fr.optim.AdamW(readout.parameters, lr=0.05, weight_decay=1e-3)
    for _ in range(500):
        optimizer.step(readout.differentiate(train.means(), train.speakers)[2])
    return readout.accuracy(test.means(), test.speakers)


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(
        option_parser(__doc__, quick="a few passes", seed="weights, order and noise", output="japanese_vowels.png"),
        arguments,
    )
    directory = data_directory()
    if directory is None:
        print("error: the recordings come with aeon: pip install --no-deps aeon", file=sys.stderr)
        return 2
    settings = QUICK if options.quick else FULL
    learned, unseen = load(directory)
    classes = int(learned.speakers.max()) + 1
    model = Classifier(learned.frames.shape[-1], classes, options.seed)
    curve = train(model, learned, unseen, settings["epochs"], options.seed)
    means = baseline(learned, unseen, classes)

    accuracy = curve[-1][1]
    print(f"\naccuracy on {len(unseen.speakers)} unseen utterances of {classes} speakers")
    for name, value in (("chance", 1 / classes), ("logistic regression on means", means), ("LSTM", accuracy)):
        print(f"  {name:<30}{value:.1%}")
    with picture(options.output) as axes:
        axes.plot(np.arange(1, len(curve) + 1), curve, label=["LSTM, learned from", "LSTM, unseen"])
        axes.axhline(means, color="gray", linestyle=":", label="logistic regression on means, unseen")
        axes.set(xlabel="passes", ylabel="accuracy", title="Who says a and e?", ylim=(0.5, 1.01))
    print(f"\n{time.perf_counter() - started:.1f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    if not accuracy >= settings["target"]:
        print(f"error: an accuracy of {accuracy:.1%}, wanted {settings['target']:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
