"""The option that adds other peers to `pytest bench/`."""

from __future__ import annotations

import pytest

from bench.peers import PEERS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-peers",
        nargs="+",
        choices=list(PEERS),
        default=["fusedrnn"],
        help="peers to run the cases on; fusedrnn alone if not given",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "peer" in metafunc.fixturenames:
        names = metafunc.config.getoption("--bench-peers")
        metafunc.parametrize("peer", [PEERS[name] for name in names], ids=names)
