"""Which module of the library imports which: no circle, and each room only what is below it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fusedrnn

PACKAGE = Path(fusedrnn.__file__).parent
MODULES = {
    ".".join(("fusedrnn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# For each room the prefixes of what it may import besides itself; of modules at the top only those named.
BELOW = {
    "fusedrnn.arrays": ("fusedrnn.native", "fusedrnn.gradients", "fusedrnn._core"),
    "fusedrnn.ops": ("fusedrnn.arrays", "fusedrnn._core", "fusedrnn.arguments", "fusedrnn.gradients"),
    "fusedrnn.engines": (
        "fusedrnn.arrays",
        "fusedrnn._core",
        "fusedrnn.arguments",
        "fusedrnn.gradients",
        "fusedrnn.options",
    ),
}


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere: in functions, and for a type checker alone, too."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module == "_core", f"{path}: a relative import"
            base = f"fusedrnn.{node.module}" if node.level else str(node.module)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in found if name.split(".")[0] == "fusedrnn"}


def module_of(name: str) -> str:
    """The module that has a name, which may be the module's own."""
    known = {*MODULES, "fusedrnn._core"}
    return name if name in known else name.rpartition(".")[0]


def graph() -> dict[str, set[str]]:
    return {name: {module_of(other) for other in imported(path)} - {name} for name, path in MODULES.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_what_is_below_it(room: str) -> None:
    for name, others in graph().items():
        if name == room or name.startswith(room + "."):
            strange = [other for other in others if not other.startswith((room, *BELOW[room]))]
            assert not strange, f"{name} imports {strange}"


def test_a_circle_would_be_found(tmp_path: Path) -> None:
    program = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fusedrnn.layers\ndef f():\n    "
    (path := tmp_path / "some.py").write_text(program + "from fusedrnn.arrays import device\n    import numpy\n")
    assert imported(path) == {"fusedrnn.arrays.device", "fusedrnn.layers"}
    assert module_of("fusedrnn.arrays.device.Device") in MODULES
