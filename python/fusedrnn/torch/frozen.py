"""Packed parameters of modules in inference, kept from call to call while the parameters stay as they are.

torch counts the writes to a tensor in its version, but not those through ``.data``, through NumPy or by another
process. Of those, the compiled part notices what changes one of 16 elements of a parameter, spread over it; modules.py
forgets what is kept here at every call of a method that such writes usually go with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from fusedrnn import _core


@dataclass(slots=True)
class Frozen:
    """The tensors from which a module's call read its parameters and, from the second such call on, a packed copy.

    `aliases` keep the parameters' memory alive, so that it cannot be given to other tensors.
    """

    module: ref[Any]
    weights: list[Tensor]
    versions: list[int]
    aliases: list[Tensor]
    packed: _core.RawPacked | None = None

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, in the same versions."""
        if len(weights) != len(self.weights):
            return False
        for w, own, version in zip(weights, self.weights, self.versions, strict=True):
            if w is not own or w._version != version:
                return False
        return True


_frozen: dict[int, Frozen] = {}
"""By the id of the module: weak keys take as long as a small layer's step to look up."""


def find(module: Any) -> Frozen | None:
    """What is kept for a module."""
    found = _frozen.get(id(module))
    return found if found is not None and found.module() is module else None


@dataclass(slots=True)
class Narrowed:
    """Copies of a module's parameters in autocast's dtype, and what of those tells whether they have been written."""

    of: Frozen
    samples: bytes
    copies: list[Tensor]


_narrowed: dict[int, Narrowed] = {}


def forget(module: Any) -> None:
    """Drop what is kept for a module."""
    _frozen.pop(id(module), None)
    _narrowed.pop(id(module), None)


def _note(module: Any, weights: Sequence[Tensor], table: dict[int, Any]) -> Frozen:
    """What tells whether a module's tensors are still the same; its entry in a table goes with the module."""
    key = id(module)

    def drop(gone: ref[Any]) -> None:
        found = table.get(key)
        if found is not None and (found.of if isinstance(found, Narrowed) else found).module is gone:
            del table[key]

    versions, aliases = [w._version for w in weights], [w.detach() for w in weights]
    return Frozen(ref(module, drop), list(weights), versions, aliases)


def remember(module: Any, weights: Sequence[Tensor]) -> None:
    """Note what a call reads, unless torch counts no versions of it, as of tensors made in inference mode."""
    if any(w.is_inference() for w in weights):
        _frozen.pop(id(module), None)
    else:
        _frozen[id(module)] = _note(module, weights, _frozen)


def narrowed(module: Any, weights: Sequence[Any], low: torch.dtype, engine: _core.RawRecurrent) -> list[Tensor] | None:
    """Copies of a module's parameters in autocast's dtype, kept for later calls; None where that cannot be.

    `engine` is one for the parameters' dtype. Casting takes as long as the products of a few rows.
    """
    samples = engine.samples(weights)
    if samples is None or any(w.is_inference() for w in weights):
        return None
    found = _narrowed.get(id(module))
    if (
        found is not None
        and found.of.module() is module
        and found.of.is_of(weights)
        and found.samples == samples
        and found.copies[0].dtype is low
    ):
        return found.copies
    with torch.inference_mode(False):  # as of tensors that are made in it torch counts no versions
        copies = [w.detach().to(low) for w in weights]
    _narrowed[id(module)] = Narrowed(_note(module, weights, _narrowed), samples, copies)
    return copies


def may_keep(module: Any) -> bool:
    """Whether calls of the module now may run from packed parameters that are kept."""
    return torch.is_inference_mode_enabled() and not module.training


def packed_of(module: Any, bound: _core.RawCall, weights: Sequence[Tensor]) -> _core.RawPacked | None:
    """The packed parameters for a call that reads `weights`; None where they are not worth keeping, or cannot be."""
    found = find(module)
    if found is None or not found.is_of(weights):
        # Parametrizations make new parameters in each call: packing them for one call does not pay.
        remember(module, weights)
        return None
    if found.packed is None or not bound.fits(found.packed):
        found.packed = None  # free its memory before taking more
        found.packed = bound.pack(torch.get_num_threads())
    return found.packed
