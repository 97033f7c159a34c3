"""Say what is where in a picture, word by word, looking at the right place for each word (Xu et al. 2015).

Scenes are made of handwritten digits of scikit-learn, and a network learns to caption them: convolutions make a grid of
features, which `AttentionDecoder` reads at each word. Soft attention reads a weighted mean of the grid's locations, and
the paper's doubly stochastic penalty has it look at all of them in the course of a caption. Hard attention reads one
location, which is drawn, and learns by REINFORCE with a moving baseline and an entropy term; in the first half of its
updates it learns as soft attention does, and unlike the paper's each location has its place as a feature, too.

The network is then tried on scenes of digits that it has not seen. A caption is right when all of its words are. A look
is right when the location with the largest weight, at the word for a digit, has its middle in the digit's 8 x 8 pixels.
Beside it are the same network with the mean feature in place of attention, and the most frequent caption. It needs
PyTorch.

    python examples/caption.py --attention soft     # fails unless 80 % of the captions are right, and of the looks
    python examples/caption.py --attention hard
    python examples/caption.py --quick              # few updates, two digits a scene: for a smoke test
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from caption_teacher import Teacher
from captioner import GRID, STRIDE, Captioner, Told
from digit_scenes import CANVAS, FIRST_DIGIT, MOST, SIZE, WORDS, Digits, Scenes, draw, read, split_digits
from matplotlib.figure import Figure
from picture import option_parser, parse
from tqdm import tqdm

import fusedrnn as fr

HELD_OUT = 360  # images of digits
COLUMNS = 7  # of the picture


class Settings(NamedTuple):
    """Of a run; `targets` are the shares of right captions and of right looks."""

    updates: dict[str, int]
    batch: int  # scenes of an update
    most: int  # digits of a scene
    tried: int  # scenes
    targets: tuple[float, float]


FULL = Settings({"soft": 700, "hard": 1500}, batch=32, most=MOST, tried=1000, targets=(0.8, 0.8))
QUICK = Settings({"soft": 210, "hard": 210}, batch=16, most=2, tried=300, targets=(0.15, 0.6))


class Score(NamedTuple):
    """Shares of what is right: captions, their words for digits, and the largest weights at these words."""

    captions: float
    digits: float
    looks: float


def train(attention: str, digits: Digits, updates: int, settings: Settings, seed: int) -> Captioner:
    torch.manual_seed(seed)
    model, generator = Captioner(attention), np.random.default_rng(seed)
    teacher = Teacher(model, updates)
    with tqdm(range(updates), unit="update", desc="mean feature" if attention == "none" else attention) as bar:
        for _ in bar:
            loss = teacher.learn(draw(generator, digits, settings.batch, settings.most))
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    return model


def looks_at(weights: np.ndarray, corner: np.ndarray) -> bool:
    """Whether the middle of the location with the largest weight lies within the digit at this corner."""
    middle = STRIDE * np.array(divmod(int(weights.argmax()), GRID)) + STRIDE / 2
    return bool(((corner <= middle) & (middle < corner + SIZE)).all())


def score(told: Told, scenes: Scenes) -> Score:
    captions = digits = looks = 0
    for b, (length, count) in enumerate(zip(scenes.lengths, scenes.counts, strict=True)):
        wanted, words = scenes.words[:length, b], told.words[:, b]
        captions += bool((words[:length] == wanted).all())
        places = np.flatnonzero(words >= FIRST_DIGIT)[:count]
        digits += int((words[places] == wanted[wanted >= FIRST_DIGIT][: len(places)]).sum())
        # Without attention there is one weight.
        if told.attention.shape[2] > 1:
            looks += sum(looks_at(told.attention[t, b], scenes.corners[b, k]) for k, t in enumerate(places))
    named = int(scenes.counts.sum())
    return Score(captions / len(scenes.lengths), digits / named, looks / named)


def most_frequent(digits: Digits, scenes: Scenes, seed: int) -> float:
    """The share of scenes that the most frequent caption of others is right for."""
    known = draw(np.random.default_rng(seed), digits, 10 * len(scenes.lengths), int(scenes.counts.max()))
    common = Counter(read(words) for words in known.words.T).most_common(1)[0][0]
    return float(np.mean([read(words) == common for words in scenes.words.T]))


def plot(path: Path, told: Told, scenes: Scenes, attention: str) -> None:
    """The first scene of most digits, and at each word of its caption what the network looks at."""
    b = int(scenes.counts.argmax())
    words = [WORDS[word] for word in told.words[: scenes.lengths[b], b]]
    rows = -(-(len(words) + 1) // COLUMNS)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS).ravel()
    extent = (0, CANVAS, CANVAS, 0)
    for panel in panels:
        panel.axis("off")
    for panel in panels[: len(words) + 1]:
        panel.imshow(scenes.canvas[b, 0], cmap="gray", extent=extent)
    panels[0].set_title("the scene")
    for t, (panel, word) in enumerate(zip(panels[1:], words, strict=False)):
        weights = told.attention[t, b].reshape(GRID, GRID)
        panel.imshow(weights, cmap="inferno", vmin=0, vmax=weights.max(), alpha=0.65, extent=extent)
        panel.set_title(word)
    figure.suptitle(f"{attention} attention: {read(told.words[:, b])}")
    figure.savefig(path, dpi=130)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = option_parser(
        __doc__, quick="few updates, two digits a scene", seed="digits, scenes and weights", output="caption.png"
    )
    parser.add_argument("--attention", choices=("soft", "hard"), default="soft", help="(default: %(default)s)")
    return parse(parser, arguments)


def misses(found: Score, without: Score, targets: tuple[float, float]) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    missed = []
    for name, share, target in (("captions", found.captions, targets[0]), ("looks", found.looks, targets[1])):
        if not share >= target:
            missed.append(f"{100 * share:.1f} % of the {name} are right, wanted at least {100 * target:.0f} %")
    if not found.captions > without.captions:
        missed.append(
            f"{100 * found.captions:.1f} % of the captions are right, {100 * without.captions:.1f} % without attention"
        )
    return missed


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # images are small: beside other work, more threads spend most of their time waiting
    settings = QUICK if options.quick else FULL
    known, held_out = split_digits(HELD_OUT, options.seed)
    scenes = draw(np.random.default_rng(options.seed + 1), held_out, settings.tried, settings.most)
    told, updates = {}, settings.updates[options.attention]
    for kind in (options.attention, "none"):
        told[kind] = train(kind, known, updates, settings, options.seed).tell(scenes.canvas)
    scores = {kind: score(one, scenes) for kind, one in told.items()}
    print(f"\n{f'right on {settings.tried} scenes of unseen digits, %':<42}{'captions':>10}{'digits':>10}{'looks':>10}")
    print(f"{'most frequent caption':<42}{100 * most_frequent(known, scenes, options.seed + 2):>10.1f}")
    for kind, (captions, digits, looks) in scores.items():
        name, last = ("mean feature", "") if kind == "none" else (f"{kind} attention", f"{100 * looks:.1f}")
        print(f"{name:<42}{100 * captions:>10.1f}{100 * digits:>10.1f}{last:>10}")
    plot(options.output, told[options.attention], scenes, options.attention)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(scores[options.attention], scores["none"], settings.targets)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
