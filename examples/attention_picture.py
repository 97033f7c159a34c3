"""The picture of `attention_beside_rnn.py`: a row of three panels for each part that has run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from picture import picture
from sequence_tasks import VALUES

SHOWN = 1e-12  # the least gradient
MARKERS = "osD^"  # of the models, in their order


class Costs(NamedTuple):
    """Of each model: seconds and bytes (lengths, 2) of a training step; norms of gradients (T,), the last step's 1."""

    steps: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]


class Learnt(NamedTuple):
    """Shares of right answers by task, model and gap; norms of gradients as in `Costs`, after `recall` is learnt."""

    right: dict[str, dict[str, list[float]]]
    norms: dict[str, np.ndarray]


def plot(lengths: list[int], costs: Costs | None, gaps: list[int], learnt: Learnt | None, output: Path) -> None:
    parts = [part for part in (costs, learnt) if part is not None]
    with picture(output, rows=len(parts), columns=3, size=(13, 4 * len(parts))) as axes:
        rows = iter(np.atleast_2d(axes))
        if costs is not None:
            plot_costs(next(rows), lengths, costs)
        if learnt is not None:
            plot_learnt(next(rows), gaps, learnt)


def plot_costs(axes: Any, lengths: list[int], costs: Costs) -> None:
    times, memory, gradients = axes
    for marker, (name, values) in zip(MARKERS, costs.steps.items(), strict=True):
        times.loglog(lengths, 1e3 * values[:, 0], marker=marker, label=name)
        # Where nothing was added, the least that a logarithm shows.
        memory.loglog(lengths, np.maximum(values[:, 1], 1e5) / 1e6, marker=marker)
    for panel in (times, memory):
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(steps) for steps in lengths])
    times.set(xlabel="steps T", ylabel="ms", title="processor time of a training step")
    memory.set(xlabel="steps T", ylabel="MB", title="memory that it adds")
    plot_norms(gradients, costs.norms, "gradient of an answer, before training")


def plot_learnt(axes: Any, gaps: list[int], learnt: Learnt) -> None:
    for panel, (title, models) in zip(axes, learnt.right.items(), strict=False):
        for marker, (name, shares) in zip(MARKERS, models.items(), strict=True):
            panel.plot(gaps, shares, marker=marker, label=name if panel is axes[0] else None)
        panel.axhline(1 / VALUES, color="gray", linestyle=":", label="chance" if panel is axes[0] else None)
        panel.set(
            xlabel="gap in steps", ylabel="share of right answers", ylim=(0, 1.04), title=f"{title}, after training"
        )
    plot_norms(axes[-1], learnt.norms, "gradient of an answer, recall learnt")


def plot_norms(axes: Any, norms: dict[str, np.ndarray], title: str) -> None:
    for values in norms.values():
        axes.semilogy(np.arange(len(values))[::-1], np.where(values > SHOWN, values, np.nan))
    axes.set(xlabel="steps back", ylabel="norm by step, over the last's", title=title)
