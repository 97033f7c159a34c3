"""The compiled module of the CUDA engine: which one there is, and its cuBLAS."""

from __future__ import annotations

import importlib
from typing import Any

from fusedrnn import _core

INSTALL = "pip install 'fusedrnn[cuda13]'"


class Unavailable(Exception):
    """Why there is no CUDA device to use, and what would help."""


def load_native() -> Any:
    """The module `_cuda`, of this build or of the package fusedrnn-cuda13; its cuBLAS has still to be opened."""
    try:
        return importlib.import_module("fusedrnn._cuda")
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        raise Unavailable(f"the CUDA module of this build cannot be loaded: {error}") from error
    try:
        package = importlib.import_module("fusedrnn_cuda13")
        if package.__version__ != _core.version:
            raise Unavailable(
                f"fusedrnn-cuda13 is of version {package.__version__}, fusedrnn of {_core.version}: they must be equal"
            )
        return importlib.import_module("fusedrnn_cuda13._cuda")
    except ModuleNotFoundError as error:
        raise Unavailable(
            "this build of fusedrnn has no CUDA module; build one in a checkout with FUSEDRNN_CUDA=ON pip install "
            "'.[cuda13]', and with FUSEDRNN_CUDA_TOOLKIT=pypi before it where there is no CUDA toolkit (nvcc) "
            f"({error})"
        ) from error
    except ImportError as error:
        raise Unavailable(f"the module of fusedrnn-cuda13 cannot be loaded: {error}") from error


def open_blas(native: Any, path: str | None = None) -> None:
    """Give the module its cuBLAS: that of a path, or the one that `cuda.pathfinder` finds."""
    try:
        if path is None:
            pathfinder = importlib.import_module("cuda.pathfinder")
            path = str(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path or "")
        native.open_blas(path)
    except Exception as error:  # of many kinds: no library, a broken one, an old one
        raise Unavailable(f"cuBLAS cannot be opened; {INSTALL} brings it ({error})") from error
