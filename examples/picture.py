"""The options that examples share, and the picture that each leaves."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def option_parser(description: str | None, *, quick: str, seed: str, output: str) -> argparse.ArgumentParser:
    """A parser with `--quick`, `--seed` and `--output`: what the first two mean, and the picture's file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}, for a smoke test")
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed} (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(output), help="the picture (default: %(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options; a picture that cannot be written is refused before any work."""
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"argument --seed: wanted at least 0, got {options.seed}")
    if options.output.is_dir() or not options.output.absolute().parent.is_dir():
        parser.error(f"argument --output: cannot write {options.output}: no such directory, or it is one itself")
    return options


@contextlib.contextmanager
def picture(output: Path, *, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 5)) -> Iterator[Any]:
    """Axes to draw into, or an array of them where there are several; then the file. Its suffix picks the format."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns)
    yield axes
    for one in figure.axes:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend()
    figure.savefig(output, dpi=150)
