"""Optimisers over mappings of NumPy arrays, updated in place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


class Adam:
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Floating-point arrays, written by `step`. Weight decay acts on those with two or more axes.
    betas : pair of float
        Decay of the running means of the gradient and of its square.
    epsilon : float
        Added to the root of the mean square.
    weight_decay : float
        Each step also subtracts `learning_rate * weight_decay * parameter`.
    """

    def __init__(
        self,
        parameters: Mapping[str, np.ndarray],
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = parameters
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.steps = 0
        self.mean = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.square = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.scratch = {name: np.empty_like(array) for name, array in parameters.items()}

    def step(self, gradients: Mapping[str, np.ndarray], learning_rate: float) -> None:
        """Take one step down `gradients`, which holds one array for each parameter."""
        beta1, beta2 = self.betas
        self.steps += 1
        # Both bias corrections are scalars, so they go into the step size and epsilon rather than over the arrays.
        correction = math.sqrt(1.0 - beta2**self.steps)
        step_size = learning_rate * correction / (1.0 - beta1**self.steps)
        epsilon = self.epsilon * correction
        for name, parameter in self.parameters.items():
            gradient, mean, square, scratch = gradients[name], self.mean[name], self.square[name], self.scratch[name]
            np.multiply(gradient, 1.0 - beta1, out=scratch)
            mean *= beta1
            mean += scratch
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1.0 - beta2
            square *= beta2
            square += scratch
            np.sqrt(square, out=scratch)
            scratch += epsilon
            np.divide(mean, scratch, out=scratch)
            scratch *= step_size
            if self.weight_decay and parameter.ndim > 1:
                parameter *= 1.0 - learning_rate * self.weight_decay
            parameter -= scratch


def cosine_decay(progress: float, warmup: float = 0.0) -> float:
    """Factor on the learning rate: a linear rise over the first `warmup` of the run, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))
