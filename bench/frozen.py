"""A frozen layer's calls beside the layer's own, and beside peers that pack their weights once too."""

from __future__ import annotations

from functools import partial

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN, Work
from bench.problem import Problem, make_problem
from bench.runner import Figure, Figures, Row, Run, interleave, prepare_agreeing

RUNNER, LAYER = "runner", "layer"


def our_runner(problem: Problem) -> Work:
    """The call of a frozen layer."""
    return Work(partial(FUSEDRNN.layer(problem).freeze(), problem.x), lambda result: {"y": result[0]})


def measure(case: Case, run: Run) -> Row:
    """Check and time both, and every peer that can run the case."""
    row, problem = Row(case), make_problem(case)
    peers = [peer for peer in run.peers if peer.name != FUSEDRNN.name]
    row.refused = {peer.name: reason for peer in peers if (reason := peer.refuses(case)) is not None}
    makers = {RUNNER: partial(our_runner, problem), LAYER: partial(FUSEDRNN.prepare, problem)}
    makers |= {peer.name: partial(peer.prepare, problem) for peer in peers if peer.name not in row.refused}
    interleave(row, prepare_agreeing(row, makers), run.settings)
    return row


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Everyone's time over the runner's."""
    return {f"{name} / {RUNNER}": Figure(row.ratio(name, RUNNER)) for name in row.measured if name != RUNNER}
