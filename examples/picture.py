"""The picture that an example leaves, and the option that says where."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """The option `--output`, for `check_output`."""
    parser.add_argument("--output", type=Path, default=Path(default), help="the picture (default: %(default)s)")


def check_output(parser: argparse.ArgumentParser, output: Path) -> None:
    """Refuse, before any work, a path that cannot be written."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        parser.error(f"argument --output: cannot write {output}: no such directory, or it is one itself")


@contextlib.contextmanager
def picture(output: Path, *, columns: int = 1, size: tuple[float, float] = (8, 5)) -> Iterator[Any]:
    """Axes to draw into, or an array of them where there are several columns; then the file. Its suffix picks the
    format."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns)
    yield axes
    for one in axes if columns > 1 else [axes]:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend()
    figure.savefig(output, dpi=150)
