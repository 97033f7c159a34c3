"""What the tables of a CUDA device show; they are measured as the common tables are."""

from __future__ import annotations

from bench.cases import Case
from bench.limits import Limits
from bench.peers import FUSEDRNN
from bench.runner import Figure, Figures, Row, share

OURS = FUSEDRNN.name


def cudnn_algorithm(case: Case) -> str:
    """The algorithm torch should ask cuDNN for, by what its source says; not measured."""
    even = case.hidden % 128 == 0 and case.batch % 8 == 0 and case.batch <= 128 and case.hidden <= 1024
    plain = case.layers == 1 and case.directions == 1 and not case.ragged
    if case.dtype == "float16" and case.cell == "lstm" and plain and even:
        return "PERSIST_STATIC"
    if not case.ragged and case.hidden <= (128 if case.training else 192):
        return "PERSIST_STATIC_SMALL_H"
    return "STANDARD"


def figures(row: Row, limits: Limits, threads: int) -> Figures:
    """Parts of the speed of products and of the bandwidth, the others' times over ours, and cuDNN's algorithm."""
    case, gflops = row.case, row.gflops(OURS)
    peak, bandwidth = limits.gpu_flops_per_second.get(case.arithmetic), limits.gpu_bytes_per_second
    found = {
        "of products": share(gflops, None if peak is None else peak / 1e9),
        "of bandwidth": share(None if gflops is None else case.least_bytes / row.measured[OURS].median, bandwidth),
    }
    found |= {f"{name} / ours": Figure(row.ratio(name, OURS)) for name in row.measured if name != OURS}
    return found | {"cuDNN": Figure(cudnn_algorithm(case), "s")}
