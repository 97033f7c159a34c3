"""Optimisers: the update rules of ``torch.optim``, in place over mappings of NumPy or CuPy arrays.

>>> optimizer = fusedrnn.optim.Adam(layer.parameters, lr=1e-3)
>>> optimizer.step(layer.backward(tape, dy))

Several mappings go by a mapping of them, ``{"lstm": lstm.parameters, "readout": {"weight": weight}}``; `step` takes
gradients of the same form, with a `Gradients` object in a mapping's place where that is at hand.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import numpy as np

from fusedrnn.arguments import require_number
from fusedrnn.gradients import Array
from fusedrnn.optimizer import LARGEST, Optimizer, Rate

__all__ = ["SGD", "Adam", "AdamW"]

_BELOW_ONE = math.nextafter(1.0, 0.0)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum: ``v = momentum v + g``, ``p -= lr v``, as ``torch.optim.SGD``.

    Parameters
    ----------
    parameters : mapping of str to ndarray, or mapping of str to such mappings
        Arrays to update in place, NumPy's or CuPy's: ``layer.parameters``, or several groups by name. Of float32 or
        float64, or 16 bits wide, with the state and the arithmetic then in float32. ``layer.to(...)`` gives a layer
        new arrays, so make a new optimizer after it; the old one's `state_dict` can be loaded into that.
    lr : float, or mapping of group to float
        Learning rate, at least 0.
    momentum : float
        At least 0; 0 keeps no state.
    weight_decay : float, or mapping of group to float
        ``weight_decay * p`` is added to the gradient.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range, an array is not writable, or two of them share memory
        (views that only lie between each other's elements, such as two columns, do not).
    """

    def __init__(self, parameters: Any, lr: Rate, momentum: SupportsFloat = 0.0, weight_decay: Rate = 0.0) -> None:
        self._set_numbers({"momentum": momentum})
        self._state_names = ("velocity",) if self._momentum else ()
        super().__init__(parameters, lr, weight_decay)

    @property
    def momentum(self) -> float:
        """Share of the velocity that a step keeps."""
        return self._momentum

    def _numbers(self) -> dict[str, float]:
        return {"momentum": self._momentum}

    def _set_numbers(self, numbers: dict[str, Any]) -> None:
        self._momentum = require_number(numbers["momentum"], "momentum", least=0.0, most=LARGEST)

    def _update(self, state: dict[str, Array], value: Array, gradient: Array, workspace: Array, lr: float) -> None:
        if "velocity" in state:
            velocity = state["velocity"]
            velocity *= self._momentum
            velocity += gradient
            gradient = velocity
        np.multiply(gradient, lr, out=workspace)
        value -= workspace


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as ``torch.optim.Adam``.

    With g the gradient at step t: ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``,
    ``p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)``.

    Parameters
    ----------
    parameters
        As for `SGD`.
    lr : float, or mapping of group to float
        Learning rate, at least 0.
    betas : (float, float)
        Decay of the running means of the gradient and of its square, each in [0, 1).
    eps : float
        Added to the root, at least 0.
    weight_decay : float, or mapping of group to float
        ``weight_decay * p`` is added to the gradient.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of another kind or out of range, an array is not writable, or two of them share memory.
    """

    _state_names = ("mean", "square")

    def __init__(
        self,
        parameters: Any,
        lr: Rate = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: Rate = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas must be a tuple of two numbers, not {type(betas).__name__}")
        if len(betas) != 2:
            raise ValueError(f"betas must have two numbers, not {len(betas)}: {betas!r}")
        self._set_numbers({"beta1": betas[0], "beta2": betas[1], "eps": eps})
        super().__init__(parameters, lr, weight_decay)

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the running means."""
        return self._betas

    @property
    def eps(self) -> float:
        """What is added to the root."""
        return self._eps

    def _numbers(self) -> dict[str, float]:
        return {"beta1": self._betas[0], "beta2": self._betas[1], "eps": self._eps}

    def _set_numbers(self, numbers: dict[str, Any]) -> None:
        first, second = (
            require_number(numbers[name], label, least=0.0, most=_BELOW_ONE)
            for name, label in (("beta1", "betas[0]"), ("beta2", "betas[1]"))
        )
        self._eps = require_number(numbers["eps"], "eps", least=0.0, most=LARGEST)
        self._betas = (first, second)

    def _update(self, state: dict[str, Array], value: Array, gradient: Array, workspace: Array, lr: float) -> None:
        (beta1, beta2), mean, square = self._betas, state["mean"], state["square"]
        np.subtract(gradient, mean, out=workspace)
        if beta1 > 0.5:
            workspace *= 1.0 - beta1
            mean += workspace
        else:  # the same from the other end, or what the mean forgets would round the gradient
            workspace *= beta1
            np.subtract(gradient, workspace, out=mean)
        np.multiply(gradient, gradient, out=workspace)
        workspace *= 1.0 - beta2
        square *= beta2
        square += workspace
        # Both corrections go into the rate and eps, which are numbers, rather than over the arrays.
        root = math.sqrt(1.0 - beta2**self.steps)
        np.sqrt(square, out=workspace)
        workspace += self._eps * root
        np.divide(mean, workspace, out=workspace)
        workspace *= lr * root / (1.0 - beta1**self.steps)
        value -= workspace


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``.

    As `Adam`, but for `weight_decay`, 0.01 by default: each step first multiplies the parameters by
    ``1 - lr * weight_decay`` and leaves the gradient alone.
    """

    _decays_gradient = False

    def __init__(
        self,
        parameters: Any,
        lr: Rate = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: Rate = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)
