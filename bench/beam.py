"""CTC's prefix search in one row: ours beside fast-ctc-decode and pyctcdecode, each where it is installed.

A case's `inputs` are the classes, and its variant has the beam's width. fast-ctc-decode takes probabilities and leaves
nothing out, as ours. pyctcdecode takes their logarithms and leaves out improbable classes and beams, as it does unless
told otherwise; so its labels are not compared with ours.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, Outputs, Work
from bench.problem import SEED, Array
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

OURS, FAST, PYTHON = FUSEDRNN.name, "fast-ctc-decode", "pyctcdecode, pruning"
MODULES = {FAST: "fast_ctc_decode", PYTHON: "pyctcdecode"}
SPREAD = 3.0
"""Standard deviation of the logits: a frame has one or a few probable classes, as a trained network's."""


def draw(case: Case) -> Array:
    """Logits (T, B, C)."""
    generator = np.random.default_rng(SEED)
    return (SPREAD * generator.standard_normal((case.steps, case.batch, case.inputs))).astype(case.dtype)


def width_of(case: Case) -> int:
    """The beam's."""
    return int(case.variant.partition(",")[2])


def alphabet(case: Case) -> list[str]:
    """A letter for each class, none for the blank."""
    return ["", *(chr(ord("a") + label) if label < 26 else chr(0x0400 + label) for label in range(case.inputs - 1))]


def labels_of(texts: list[str], letters: list[str]) -> Outputs:
    """The labels that the rows' texts stand for, one row after the other."""
    number = {letter: label for label, letter in enumerate(letters)}
    return {"labels": np.array([float(number[letter]) for text in texts for letter in text])}


def probabilities(logits: Array) -> Array:
    """Of each row's frames: (B, T, C)."""
    powers = np.exp(logits - logits.max(-1, keepdims=True)).transpose(1, 0, 2)
    return np.ascontiguousarray(powers / powers.sum(-1, keepdims=True))


def our_work(case: Case) -> Work:
    """From logits."""
    import fusedrnn

    logits = draw(case)

    def read(found: Any) -> Outputs:
        return {"labels": np.concatenate([hypotheses[0][0] for hypotheses in found]).astype(float)}

    return Work(lambda: fusedrnn.ctc_beam_decode(logits, beam_width=width_of(case)), read)


def fast_work(case: Case) -> Work:
    """From probabilities, row by row."""
    import fast_ctc_decode

    letters, rows = alphabet(case), probabilities(draw(case))
    search = partial(fast_ctc_decode.beam_search, beam_size=width_of(case), beam_cut_threshold=0.0)
    return Work(
        lambda: [search(row, letters) for row in rows],
        lambda found: labels_of([text for text, _ in found], letters),
    )


def python_work(case: Case, expected: Callable[[], Outputs]) -> Work:
    """From log-probabilities, row by row; what it leaves out is not compared."""
    logging.getLogger("pyctcdecode").setLevel(
        logging.ERROR
    )  # it warns of a missing language model, and of its alphabet
    import pyctcdecode

    decoder = pyctcdecode.build_ctcdecoder(alphabet(case))
    rows = [np.log(row) for row in probabilities(draw(case))]
    width = width_of(case)
    return Work(lambda: [decoder.decode_beams(row, beam_width=width) for row in rows], lambda _: expected())


def measure(case: Case, run: Run) -> Row:
    """Time all that are installed, on one thread: a row is one thread's work in all of them."""
    row = Row(case)
    ours = our_work(case)
    others = {FAST: partial(fast_work, case), PYTHON: partial(python_work, case, lambda: ours.read(ours.step()))}
    installed = {name: maker for name, maker in others.items() if importlib.util.find_spec(MODULES[name])}
    row.refused.update({name: "not installed" for name in others if name not in installed})
    interleave(row, prepare_agreeing(row, {OURS: lambda: ours, **installed}), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """The others' times over ours."""
    return {f"{name} / ours": Figure(row.ratio(name, OURS), ".1f") for name in (FAST, PYTHON)}
