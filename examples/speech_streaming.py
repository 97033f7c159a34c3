"""Recognise phones while they are spoken: a one-directional LSTM and a transducer, decoded step by step.

The speech is `speech.py`'s: three voices that train the network, and a fourth. Where `speech.py` reads a sentence from
both ends, this network hears one step of 20 ms after another, and writes a phone as soon as it is the most probable.
The table has its phone error rates on sentences that it has not heard, beside those of the logistic regression of
frames; how long after its end a phone is written; and what a step costs.

    python examples/speech_streaming.py            # fails unless the error rates are good enough
    python examples/speech_streaming.py --quick    # one voice, few sentences: only shows that everything runs
"""

from __future__ import annotations

import os
import sys
import time
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

# Read when NumPy is first imported: its products here are small, and its threads would wait beside the library's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from flite_speech import VOICES, Missing, Utterance, speak_parts
from frame_classifier import FrameClassifier
from log_mel import HOP, MELS, RATE, STACK, heard_until
from phonemes import Phones, error_rate
from picture import option_parser, parse, picture
from speech_batches import Encoding, train
from tqdm import tqdm
from transducer import Listener, Transducer
from voices import Voices

import fusedrnn as fr

HELD_OUT = "rms"
SIZES: dict[str, Any] = {"hidden": 128, "layers": 2, "dropout": 0.2, "predictor": 64, "joint": 96}
# As in `speech.py`; the targets are error rates by voices of training and by another voice. Until some 500 steps have
# been learned from the network writes next to nothing: the quick run only shows that everything runs.
FULL = {"voices": 3, "sentences": 300, "validation": 0, "tried": 40, "epochs": 20, "batch": 8, "targets": (0.15, 0.35)}
QUICK = {"voices": 1, "sentences": 24, "validation": 0, "tried": 4, "epochs": 20, "batch": 4, "targets": (1.0, 1.0)}


class Heard(NamedTuple):
    """What was recognised of a set of utterances."""

    frames: float  # phone error rates: of the baseline,
    stream: float  # and of the transducer
    delays: np.ndarray  # seconds from the end of a phone to its being written, of those that were right
    seconds: np.ndarray  # that each step took


def written(listener: Listener, utterance: Utterance, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The labels that are written of an utterance, the step of each, and the seconds that each step took."""
    listener.reset()
    labels: list[int] = []
    steps: list[int] = []
    seconds = []
    for step, x in enumerate(encoding.steps(utterance)):
        begun = time.perf_counter()
        found = listener(x)
        seconds.append(time.perf_counter() - begun)
        labels += found
        steps += [step] * len(found)
    return np.array(labels, np.int64), np.array(steps, np.int64), seconds


def delays_of(labels: np.ndarray, steps: np.ndarray, spoken: np.ndarray, ends: np.ndarray) -> list[float]:
    """Seconds between a phone's end and the end of the step that wrote it, for labels that match spoken ones."""
    found: list[float] = []
    matcher = SequenceMatcher(None, labels.tolist(), spoken.tolist(), autojunk=False)
    for here, there, size in matcher.get_matching_blocks():
        found += (heard_until(steps[here : here + size]) - ends[there : there + size]).tolist()
    return found


def listen(listener: Listener, baseline: FrameClassifier, utterances: list[Utterance], encoding: Encoding) -> Heard:
    recognised, delays, seconds = [], [], []
    for utterance in tqdm(utterances, unit="sentence", desc="listening"):
        labels, steps, taken = written(listener, utterance, encoding)
        recognised.append(labels)
        seconds += taken
        delays += delays_of(labels, steps, encoding.phones.encode(utterance.phones), utterance.ends)
    frames = error_rate([baseline.recognise(utterance) for utterance in utterances], utterances, encoding.phones)
    stream = error_rate(recognised, utterances, encoding.phones)
    return Heard(frames, stream, np.array(delays), np.array(seconds))


def report(results: dict[str, Heard]) -> None:
    columns = ("frames", "transducer", "delay, ms", "us a step")
    print(f"\n{'phone error rate, %, pauses left out':<38}", *(f"{column:>12}" for column in columns))
    for name, heard in results.items():
        rates = (f"{100 * rate:>12.1f}" for rate in (heard.frames, heard.stream))
        delay = f"{1e3 * np.median(heard.delays):.0f}" if heard.delays.size else "-"
        print(f"{name:<38}", *rates, f"{delay:>12}", f"{1e6 * np.median(heard.seconds):>12.0f}")
    print(f"delay: from the end of a phone to its being written, median; a step hears {1e3 * STACK * HOP / RATE:g} ms")


def draw(path: Path, listener: Listener, utterance: Utterance, encoding: Encoding) -> None:
    """The features of an utterance, its phones above, and each written phone where it was written."""
    labels, steps, _ = written(listener, utterance, encoding)
    extent = (0, len(utterance.features) * HOP / RATE, 0, MELS)
    with picture(path, size=(12, 4)) as axes:
        features = encoding.voices.centred(utterance).T
        axes.imshow(features, origin="lower", aspect="auto", extent=extent, cmap="magma")
        axes.vlines(utterance.ends[:-1], MELS / 2, MELS, color="white", linewidth=0.8, label="a phone ends")
        axes.vlines(heard_until(steps), 0, MELS / 2, color="cyan", linewidth=0.8, label="a phone is written")
        for phone, begin, end in zip(utterance.phones, [0.0, *utterance.ends], utterance.ends, strict=False):
            axes.text((begin + end) / 2, MELS + 0.5, phone, ha="center", fontsize=7)
        for label, at in zip(labels, heard_until(steps), strict=True):
            axes.text(at, -1, encoding.phones.names[label], ha="center", va="top", fontsize=7)
        axes.set_title(f"{utterance.voice}: {utterance.sentence}", fontsize=10, pad=14)
        axes.set(xlabel="seconds", ylabel="mel band", ylim=(0, MELS))
        axes.tick_params(axis="x", pad=12)


def misses(results: dict[str, Heard], targets: tuple[float, ...], quick: bool) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    found = []
    for (name, heard), target in zip(results.items(), targets, strict=True):
        if not heard.stream <= target:
            found.append(f"{name}: a phone error rate of {heard.stream:.3f}, wanted at most {target}")
        if not (quick or heard.stream < heard.frames):
            found.append(f"{name}: the logistic regression of frames is as good")
    return found


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    parser = option_parser(
        __doc__,
        quick="few sentences of one voice",
        seed="sentences, weights and batches",
        output="speech_streaming.png",
    )
    options = parse(parser, arguments)
    settings = QUICK if options.quick else FULL
    known = tuple(voice for voice in VOICES if voice != HELD_OUT)[: settings["voices"]]
    try:
        parts = speak_parts(known, HELD_OUT, settings, options.seed)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    phones = Phones(utterance.phones for utterance in (*parts.training, *parts.old, *parts.new))
    encoding = Encoding(Voices([*parts.training, *parts.unlabelled], known), phones)
    baseline = FrameClassifier(parts.training, encoding, options.seed)
    model = Transducer(STACK * MELS, len(phones), seed=options.seed, **SIZES)
    train(model.learn, parts.training, encoding, settings["epochs"], settings["batch"], options.seed)

    listener = Listener(model)
    results = {
        f"new sentences, voices {', '.join(known)}": listen(listener, baseline, parts.old, encoding),
        f"new sentences, new voice {HELD_OUT}": listen(listener, baseline, parts.new, encoding),
    }
    report(results)
    draw(options.output, listener, parts.old[0], encoding)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(results, settings["targets"], options.quick)
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
