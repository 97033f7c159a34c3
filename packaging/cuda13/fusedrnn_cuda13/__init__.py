"""The CUDA 13 module of fusedrnn. Nothing here is to be called: fusedrnn finds it."""

from importlib.metadata import version

__version__ = version("fusedrnn-cuda13")
