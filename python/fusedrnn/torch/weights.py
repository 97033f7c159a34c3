"""A module's weights: parameters, or what parametrizations, pruning and hooks compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def stored_weights(module: Any, names: Sequence[str]) -> list[Any] | None:
    """The parameters as they are now, functional_call's in their place; None where any of them is computed."""
    parameters = module._parameters
    try:
        return [parameters[name] for name in names]
    except KeyError:
        return None


def computed_weights(module: Any, names: Sequence[str]) -> list[Any]:
    """The weights where parametrizations, pruning or hooks compute some of them.

    They are read as often as torch's own forward reads them, and in its order: a parametrization may draw random
    numbers, or change its state. Unlike torch's, the module does not keep what is found, and the graph behind it.
    """
    if module._is_cell:
        return [getattr(module, name) for name in names]
    if module._weights_have_changed():
        return [getattr(module, name) if hasattr(module, name) else None for name in names]
    return list(module._flat_weights)


def traced_weights(module: Any) -> list[Any]:
    """The weights, for a compiler; parametrizations compute theirs as often as for `computed_weights`.

    torch reads the first computed weight of a layer twice, to see a change, and then each of them twice. So does this.
    """
    names = module._weight_names()
    lists = module._modules.get("parametrizations")
    computed = [] if lists is None or module._is_cell else [name for name in names if name in lists]
    for name in computed[:1] * 2:
        getattr(module, name)
    weights = []
    for name in names:
        if name in computed:
            getattr(module, name)
        weights.append(getattr(module, name))
    return weights
