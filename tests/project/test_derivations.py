"""The snippets of docs/derivations.md run in order, and their own assertions hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "derivations.md"


def test_the_page_runs() -> None:
    if not PAGE.is_file():
        pytest.skip("docs/derivations.md is not here")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 9
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/derivations.md, Python block {number}", "exec"), names)
