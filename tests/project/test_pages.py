"""The snippets of pages of the documentation run in order, and their own assertions hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page, count", [("derivations.md", 9), ("sequences.md", 8)])
def test_a_page_runs(page: str, count: int) -> None:
    if not DOCS.is_dir():
        pytest.skip("the documentation is not here")
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == count
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/{page}, Python block {number}", "exec"), names)
