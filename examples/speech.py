"""Recognise phones in speech: a bidirectional LSTM trained by CTC on three voices, and tried on a fourth.

flite (`apt install flite`) speaks sentences of Python's reference topics with four voices. Three of them train the
network, which is told which phones were spoken but not when. It is then tried on sentences that it has not heard, by
these voices and by the fourth, whose warp of the bands is the one by which speech of it that nobody has transcribed
becomes the most probable. The phone error rate is the edits between recognised and spoken phones over the spoken
ones, pauses left out, by greedy decoding and by a beam search. Beside it is a logistic regression of single frames,
which was told when each phone ends. `ctc_align` finds these ends in the network's output; they are compared with
flite's own.

    python examples/speech.py                      # fails unless the error rates and the ends are good enough
    python examples/speech.py --held-out slt       # another voice held out
    python examples/speech.py --quick              # one voice, few sentences, for a smoke test
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

# Read when NumPy is first imported: its products here are small, and its threads would wait beside the library's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from fitting import fit_warp, fit_weight
from flite_speech import VOICES, Missing, Utterance, speak_parts, transcribe_all
from frame_classifier import FrameClassifier
from log_mel import HOP, MELS, RATE, moments
from matplotlib.figure import Figure
from phone_ngram import PhoneNgram
from phonemes import Phones, error_rate
from picture import option_parser, parse
from recogniser import AT_ONCE, Recogniser, beam_search
from speech_batches import Encoding, train
from tqdm import tqdm
from voices import Voices

import fusedrnn as fr

END_TARGET = 0.030  # seconds, of the median

HELD_OUT = "rms"
# `tried` sentences are held out; the targets are error rates on them, by voices of training and by another voice.
FULL = {
    "voices": 3,
    "sentences": 300,
    "validation": 20,
    "tried": 40,
    "transcripts": 1000,
    "epochs": 24,
    "batch": 8,
    "targets": (0.08, 0.12),
}
QUICK = {
    "voices": 1,
    "sentences": 24,
    "validation": 2,
    "tried": 4,
    "transcripts": 60,
    "epochs": 60,
    "batch": 4,
    "targets": (0.8, 0.9),
}


class Result(NamedTuple):
    """Of one set of utterances: phone error rates, and differences of the phones' ends in seconds."""

    frames: float
    greedy: float
    beam: float
    language: float  # the beam search with an n-gram model
    ends: np.ndarray


def evaluate(
    model: Recogniser, baseline: FrameClassifier, ngram: PhoneNgram, utterances: list[Utterance], encoding: Encoding
) -> Result:
    greedy, beam, language, late = [], [], [], []
    for first in tqdm(range(0, len(utterances), AT_ONCE), unit="batch", desc="decoding"):
        chosen = utterances[first : first + AT_ONCE]
        batch = encoding.batch(chosen)
        logits = model(batch)
        greedy += fr.ctc_greedy_decode(logits, batch.steps)
        for labels, score in ((beam, None), (language, ngram.score)):
            labels += beam_search(logits, batch.steps, score)[0]
        path, _ = fr.ctc_align(logits, batch.targets, batch.steps, batch.counts)
        late += [ends_of(path[:, row]) - utterance.ends[:-1] for row, utterance in enumerate(chosen)]
    frames = [baseline.recognise(utterance) for utterance in utterances]
    recognised = (frames, greedy, beam, language)
    return Result(*(error_rate(labels, utterances, encoding.phones) for labels in recognised), np.concatenate(late))


def ends_of(path: np.ndarray) -> np.ndarray:
    """Seconds at which all phones of a path but the last end: midway between its last step and the next one's first.

    CTC marks each phone at a few steps within it and gives the rest to the blank.
    """
    spans = fr.ctc_spans(path)
    firsts, lasts = (np.array(column) for column in list(zip(*spans, strict=True))[1:])
    return moments((lasts[:-1] - 1 + firsts[1:]) / 2)


def draw(path: Path, model: Recogniser, utterance: Utterance, encoding: Encoding) -> None:
    """The features of an utterance with the ends of its phones, flite's and the network's; the network's output."""
    batch = encoding.batch([utterance])
    logits = model(batch)
    aligned, _ = fr.ctc_align(logits, batch.targets, batch.steps, batch.counts)
    figure = Figure(figsize=(12, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = len(utterance.features) * HOP / RATE
    above.imshow(
        encoding.voices.centred(utterance).T, origin="lower", aspect="auto", extent=(0, seconds, 0, MELS), cmap="magma"
    )
    above.vlines(utterance.ends[:-1], MELS / 2, MELS, color="white", linewidth=0.8, label="ends by flite")
    above.vlines(ends_of(aligned[:, 0]), 0, MELS / 2, color="cyan", linewidth=0.8, label="ends by ctc_align")
    for phone, begin, end in zip(utterance.phones, [0.0, *utterance.ends], utterance.ends, strict=False):
        above.text((begin + end) / 2, MELS + 0.5, phone, ha="center", fontsize=7)
    above.set(ylabel="mel band", ylim=(0, MELS))
    above.legend(loc="lower right", fontsize=8)
    probabilities = fr.softmax(logits)[:, 0]
    at = moments(np.arange(len(probabilities)))
    below.plot(at, probabilities[:, 0], color="lightgray", label="blank")
    for label in range(1, len(encoding.phones)):
        below.plot(at, probabilities[:, label], linewidth=1)
    for label, first, end in fr.ctc_spans(logits[:, 0].argmax(axis=1)):
        peak = first + probabilities[first:end, label].argmax()
        below.text(at[peak], probabilities[peak, label] + 0.01, encoding.phones.names[label], ha="center", fontsize=7)
    below.set(xlabel="seconds", ylabel="probability", ylim=(0, 1.08))
    below.legend(loc="upper right", fontsize=8)
    figure.suptitle(f"{utterance.voice}: {utterance.sentence}", fontsize=10)
    figure.savefig(path, dpi=120)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = option_parser(
        __doc__, quick="few sentences of one voice", seed="sentences, weights and batches", output="speech.png"
    )
    parser.add_argument("--held-out", choices=VOICES, default=HELD_OUT, help="voice that is only tried (%(default)s)")
    return parse(parser, arguments)


def report(results: dict[str, Result]) -> None:
    columns = ("frames", "greedy", "beam", "beam, n-gram")
    print(
        f"\n{'phone error rate, %, pauses left out':<38}", *(f"{column:>13}" for column in columns), f"{'ends, ms':>10}"
    )
    for name, result in results.items():
        rates = (f"{100 * rate:>13.1f}" for rate in result[:-1])
        print(f"{name:<38}", *rates, f"{1e3 * np.median(np.abs(result.ends)):>10.1f}")


def misses(results: dict[str, Result], targets: dict[str, float]) -> list[str]:
    """What is not as good as it should be; written so that nan misses, too."""
    found = []
    for name, result in results.items():
        if not result.language <= targets[name]:
            found.append(f"{name}: a phone error rate of {result.language:.3f}, wanted at most {targets[name]}")
        if not result.greedy < result.frames:
            found.append(f"{name}: the logistic regression of frames is as good")
        if not (late := float(np.median(np.abs(result.ends)))) <= END_TARGET:
            found.append(f"{name}: ends off by {late:.3f} s in the median, wanted at most {END_TARGET}")
    return found


def main(arguments: list[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse_arguments(arguments)
    settings: dict[str, Any] = QUICK if options.quick else FULL
    known = tuple(voice for voice in VOICES if voice != options.held_out)[: settings["voices"]]
    try:
        parts = speak_parts(known, options.held_out, settings, options.seed)
        transcripts = transcribe_all(parts.kept_away(), settings["transcripts"])
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    spoken = (*parts.training, *parts.validation, *parts.old, *parts.new)
    phones = Phones([*transcripts, *(utterance.phones for utterance in spoken)])
    encoding = Encoding(Voices([*parts.training, *parts.unlabelled], known), phones)
    model, baseline = Recogniser(len(phones), options.seed), FrameClassifier(parts.training, encoding, options.seed)
    train(model.learn, parts.training, encoding, settings["epochs"], settings["batch"], options.seed)
    ngram = PhoneNgram(map(phones.encode, transcripts), len(phones))
    fit_weight(ngram, model, parts.validation, encoding, options.seed)
    encoding = fit_warp(options.held_out, ngram, model, parts.unlabelled, encoding)
    warp = encoding.warps[options.held_out]
    print(f"weight of the n-gram model: {ngram.weight}; warp of {options.held_out}: {warp:.3f}")

    names = (f"new sentences, voices {', '.join(known)}", f"new sentences, new voice {options.held_out}")
    results = {
        name: evaluate(model, baseline, ngram, utterances, encoding)
        for name, utterances in zip(names, (parts.old, parts.new), strict=True)
    }
    report(results)
    draw(options.output, model, parts.new[0], encoding)
    print(f"\n{time.perf_counter() - started:.0f} s on {fr.get_num_threads()} threads; wrote {options.output}")
    missed = misses(results, dict(zip(names, settings["targets"], strict=True)))
    for miss in missed:
        print(f"error: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
