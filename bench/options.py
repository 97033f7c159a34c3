"""Checks of the values on the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import environment


def positive_integer(text: str) -> int:
    """A count: an integer from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def thread_count(text: str) -> int:
    """A number of threads the machine has processors for: more would measure the scheduler."""
    value, cpus = positive_integer(text), environment.usable_cpus()
    if value > cpus:
        raise argparse.ArgumentTypeError(f"{value} threads, but this process may use {cpus} processors")
    return value


def positive_seconds(text: str) -> float:
    """Seconds, positive and finite."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def file_path(suffix: str) -> Callable[[str], Path]:
    """A file of that kind that can be written."""

    def check(text: str) -> Path:
        path = Path(text)
        if path.suffix != suffix:
            raise argparse.ArgumentTypeError(f"{text} does not end in {suffix}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no directory {path.parent}")
        return path

    return check


def one_of(kind: str, names: Sequence[str]) -> Callable[[str], str]:
    """A name from a list."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"there is no {kind} {text!r}; there are {', '.join(names)}")
        return text

    return check
