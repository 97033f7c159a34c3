"""What stands in several files that packagers read is the same in all of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedrnn as fr

ROOT = Path(__file__).resolve().parents[2]
PROJECT, CUDA, CITATION = ROOT / "pyproject.toml", ROOT / "packaging/cuda13/pyproject.toml", ROOT / "CITATION.cff"

in_a_checkout = pytest.mark.skipif(not CUDA.is_file(), reason="the files of a checkout are not here")


def test_an_import_brings_little() -> None:
    """What takes longer to import than the library itself waits until it is used."""
    names = "asyncio cupy jax keras matplotlib ml_dtypes multiprocessing onnx onnxruntime safetensors torch tqdm"
    program = f"import sys, fusedrnn; print(*[name for name in '{names}'.split() if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@in_a_checkout
def test_the_version_is_everywhere_the_same() -> None:
    own = re.search(r'^version = "(.+)"$', PROJECT.read_text(), re.MULTILINE)
    assert own is not None and own[1] == fr.__version__
    cuda = CUDA.read_text()
    assert f'version = "{own[1]}"' in cuda
    assert re.findall(r"fusedrnn(?:\[\w+\])?==([\w.]+)", cuda) == [own[1]] * 2
    assert f"version: {own[1]}\n" in CITATION.read_text()


@in_a_checkout
def test_the_toolchain_of_pypi_is_the_same() -> None:
    def toolchain(path: Path) -> list[str]:
        return sorted(set(re.findall(r'"(nvidia-[\w-]+==[\w.*]+)"', path.read_text())))

    assert toolchain(CUDA) and toolchain(CUDA) == toolchain(PROJECT)


@in_a_checkout
def test_the_releases_actions_are_pinned() -> None:
    used = re.findall(r"uses: (\S+)", (ROOT / ".github/workflows/release.yml").read_text())
    assert used and all(re.fullmatch(r"[\w-]+/[\w.-]+@[0-9a-f]{40}", each) for each in used)


@in_a_checkout
@pytest.mark.skipif(sys.platform != "linux", reason="the script is for Linux")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--python", "no-such-python"], "argument --python: there is no program 'no-such-python'"),
        (["--python", "true"], "argument --python: 'true' is no Python that has pip"),
        (["--output", str(PROJECT)], "argument --output: .* is no folder and cannot be made one: File exists"),
    ],
)
def test_wheels_are_not_compiled_for_arguments_that_cannot_do(arguments: list[str], expected: str) -> None:
    program = [sys.executable, str(ROOT / "tools/build_wheels.py")]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.search(expected, done.stderr), done.stderr
