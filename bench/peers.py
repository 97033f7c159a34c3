"""The libraries under measurement. Each one turns a problem into a call that does one inference or training step.

Adding a peer is one class and its place in `PEERS`. No library is imported before it is asked for: some of them read
their number of threads from the environment when they are, and it has to stand there by then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bench.cases import ITEM_BYTES, Case

if TYPE_CHECKING:
    from bench.problem import Array, Problem

Layers = dict[str, tuple[str, dict[str, Any]]]
"""For each cell the name of the peer's layer class and the options that select the cell."""

Outputs = dict[str, "Array"]
"""y and, after a training step, dx and the gradients by parameter name; all in our shapes."""


@dataclass(frozen=True)
class Work:
    """One prepared case.

    Parameters
    ----------
    step
        Runs one inference or training step to its end and returns whatever the peer returns.
    read
        Turns what `step` returned into arrays, for the cross-check; never timed.
    context
        Entered around a burst of steps, as a user enters it around a loop.
    parts
        The time of a step is divided by this; for a sequence whose time is wanted by its steps.
    """

    step: Callable[[], Any]
    read: Callable[[Any], Outputs]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    parts: int = 1


class Peer:
    """What every peer offers. `module` is what must be importable; `allocates` says where its results live."""

    name: str
    module: str
    allocates: str

    def available(self) -> bool:
        """Whether the library can be imported here."""
        try:
            importlib.import_module(self.module)
        except ImportError:
            return False
        return True

    def facts(self) -> dict[str, Any]:
        """What the report says of the library itself."""
        return {"version": str(importlib.import_module(self.module).__version__), "allocates": self.allocates}

    def set_threads(self, threads: int) -> None:
        """Hold the library to `threads`; peers that are told through the environment have nothing to do here."""

    def refuses(self, case: Case) -> str | None:
        """Why the peer can't run `case`, or None if it can."""
        raise NotImplementedError

    def prepare(self, problem: Problem) -> Work:
        """Build the layer, hand it the weights and return the call to be timed."""
        raise NotImplementedError


class Fusedrnn(Peer):
    """This library, through its public API."""

    name = "fusedrnn"
    module = "fusedrnn"
    allocates = "results, tape and scratch from the library's own pool, small arrays from NumPy's allocator"

    layers: ClassVar[Layers] = {
        "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
        "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
        "lstm": ("LSTM", {}),
        "lstm_peephole": ("LSTM", {"peephole": True}),
        "lstm_coupled": ("LSTM", {"coupled": True}),
        "lstm_peephole_coupled": ("LSTM", {"peephole": True, "coupled": True}),
        "gru": ("GRU", {"reset_after": True}),
        "gru_reset_before": ("GRU", {"reset_after": False}),
    }

    def set_threads(self, threads: int) -> None:
        importlib.import_module(self.module).set_num_threads(threads)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **importlib.import_module(self.module).info()}

    def refuses(self, case: Case) -> str | None:
        return None

    def options(self, case: Case) -> dict[str, Any]:
        """What a layer is told besides its sizes and its cell."""
        return {"dtype": case.dtype}

    def put(self, array: Any) -> Any:
        """A host array where the layer takes it."""
        return array

    def get(self, array: Any) -> Array:
        """What the layer gave, on the host, 16 bits as float32."""
        return array.astype("float32") if array.dtype.itemsize == 2 else array

    def layer(self, problem: Problem) -> Any:
        """The layer of the problem's cell, with the problem's weights."""
        case = problem.case
        class_name, options = self.layers[case.cell]
        layer = getattr(importlib.import_module(self.module), class_name)(
            case.inputs,
            case.hidden,
            case.layers,
            bidirectional=case.directions == 2,
            **self.options(case),
            **options,
        )
        layer.load_parameters(problem.parameters, convert=True)  # 16-bit parameters were drawn in float32
        return layer

    def work(self, problem: Problem, **options: Any) -> Work:
        """The call or training step of a case; the options go to the layer's call or its `forward`."""
        layer = self.layer(problem)
        x, dy = (self.put(array.astype(layer.dtype, copy=False)) for array in (problem.x, problem.dy))

        def train() -> Any:
            y, _, tape = layer.forward(x, **options)
            return y, layer.backward(tape, dy)

        def read_training(result: Any) -> Outputs:
            y, grads = result
            return {name: self.get(array) for name, array in {"y": y, "dx": grads.x, **grads.parameters}.items()}

        if problem.case.training:
            return Work(train, read_training)
        return Work(lambda: layer(x, **options), lambda result: {"y": self.get(result[0])})

    def prepare(self, problem: Problem) -> Work:
        return self.work(problem)


class Torch(Peer):
    """torch.nn's layers."""

    name = "torch"
    module = "torch"
    device = "cpu"
    allocates = "y, graph and gradients fresh for each call, from the C library's allocator"

    layers: ClassVar[Layers] = {
        "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
        "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
        "lstm": ("LSTM", {}),
        "gru": ("GRU", {}),
    }

    def set_threads(self, threads: int) -> None:
        importlib.import_module("torch").set_num_threads(threads)

    def refuses(self, case: Case) -> str | None:
        return None if case.cell in self.layers else "no such cell in torch.nn"

    def module_of(self, problem: Problem) -> Any:
        """The module of the problem's cell, with the problem's weights."""
        import torch

        case = problem.case
        class_name, options = self.layers[case.cell]
        module = getattr(torch.nn, class_name)(
            case.inputs,
            case.hidden,
            case.layers,
            bidirectional=case.directions == 2,
            device=self.device,
            dtype=getattr(torch, case.dtype),
            **options,
        )
        module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in problem.parameters.items()})
        return module

    def get(self, tensor: Any) -> Array:
        """A tensor as an array on the host, 16 bits as float32."""
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.element_size() == 2 else tensor).numpy()

    def work(
        self, problem: Problem, forward: Callable[[Any, Any], Any], change: Callable[[Any], Any] = lambda module: None
    ) -> Work:
        """The call or training step of a case, where forward(module, x) gives y, and change(module) comes first."""
        import torch

        module = self.module_of(problem)
        change(module)
        dtype = getattr(torch, problem.case.dtype)
        x, dy = (torch.tensor(array, dtype=dtype, device=self.device) for array in (problem.x, problem.dy))
        if not problem.case.training:
            return Work(lambda: forward(module, x), lambda y: {"y": self.get(y)}, torch.inference_mode)

        leaves = {"dx": x.requires_grad_(), **dict(module.named_parameters())}

        def train() -> Any:
            # What zero_grad(set_to_none=True) does, the input included.
            for leaf in leaves.values():
                leaf.grad = None
            y = forward(module, x)
            y.backward(dy)
            return y

        def read(y: Any) -> Outputs:
            return {"y": self.get(y), **{name: self.get(leaf.grad).copy() for name, leaf in leaves.items()}}

        return Work(train, read)

    def prepare(self, problem: Problem) -> Work:
        return self.work(problem, lambda module, x: module(x)[0])


class Onnxruntime(Peer):
    """onnxruntime's CPU provider, the model called through `session.run`."""

    name = "onnxruntime"
    module = "onnxruntime"
    allocates = "y fresh for each call; scratch from the session's own arena"
    threads = 1

    def available(self) -> bool:
        try:
            importlib.import_module("onnx")
        except ImportError:
            return False
        return super().available()

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, case: Case) -> str | None:
        if case.training:
            return "inference only"
        return None if case.dtype == "float32" else "its recurrent operators are float32 only"

    def session(self, model: bytes) -> Any:
        """A session of a serialised model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def prepare(self, problem: Problem) -> Work:
        from bench.onnx_graph import build_model

        feed = {"x": problem.x}
        session = self.session(build_model(problem))

        def read(result: Any) -> Outputs:
            (y,) = result
            return {"y": y[:, 0] if y.ndim == 4 else y}

        return Work(lambda: session.run(None, feed), read)


class Jax(Peer):
    """The cells written for `jax.lax.scan` and compiled as a whole; the gradient is `jax.vjp`'s, compiled with it."""

    name = "jax"
    module = "jax"
    allocates = "results and scratch fresh for each call, from XLA's allocator"

    def refuses(self, case: Case) -> str | None:
        return "compared in wider dtypes" if ITEM_BYTES[case.dtype] == 2 else None

    def prepare(self, problem: Problem) -> Work:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from bench.plain_cells import Operations, run_layers

        # Without it float64 arrays become float32; float32 ones are unchanged by it.
        jax.config.update("jax_enable_x64", True)
        ops = Operations(jnp.tanh, jax.nn.sigmoid, jax.nn.relu, jnp.zeros, jnp.concatenate)

        def scan(step: Any, state: Any, projected: Any, reverse: bool) -> Any:
            def body(carried: Any, entry: Any) -> Any:
                following = step(carried, entry)
                return following, following[0]

            return jax.lax.scan(body, state, projected, reverse=reverse)[1]

        def infer(parameters: Any, x: Any) -> Any:
            return {"y": run_layers(problem.case, ops, scan, parameters, x)}

        def train(parameters: Any, x: Any, dy: Any) -> Any:
            result, pull_back = jax.vjp(infer, parameters, x)
            grads, dx = pull_back({"y": dy})
            return {**result, "dx": dx, **grads}

        arguments = [problem.parameters, problem.x, *([problem.dy] if problem.case.training else [])]
        arguments = jax.tree_util.tree_map(jnp.asarray, arguments)
        compiled = jax.jit(train if problem.case.training else infer).lower(*arguments).compile()
        return Work(
            lambda: jax.block_until_ready(compiled(*arguments)),
            lambda result: {name: np.asarray(value) for name, value in result.items()},
        )


class Numpy(Peer):
    """A plain loop over time in NumPy, as one writes it without a library."""

    name = "numpy"
    module = "numpy"
    allocates = "every temporary fresh, from NumPy's allocator"

    def refuses(self, case: Case) -> str | None:
        if ITEM_BYTES[case.dtype] == 2:
            return "no products of such a dtype"
        return "inference only" if case.training else None

    def prepare(self, problem: Problem) -> Work:
        import numpy as np

        from bench.plain_cells import Operations, run_layers

        ops = Operations(np.tanh, lambda z: 1 / (1 + np.exp(-z)), lambda z: np.maximum(z, 0), np.zeros, np.concatenate)

        def scan(step: Any, state: Any, projected: Any, reverse: bool) -> Any:
            outputs = np.empty((*projected.shape[:2], problem.case.hidden), projected.dtype)
            steps = range(len(projected))
            for t in reversed(steps) if reverse else steps:
                state = step(state, projected[t])
                outputs[t] = state[0]
            return outputs

        # The loop multiplies by the transposes: stored this way those are contiguous, which OpenBLAS likes better.
        parameters = {name: np.asfortranarray(value) for name, value in problem.parameters.items()}
        return Work(
            lambda: run_layers(problem.case, ops, scan, parameters, problem.x),
            lambda y: {"y": y},
        )


FUSEDRNN, TORCH, ONNXRUNTIME = Fusedrnn(), Torch(), Onnxruntime()

# The first one that runs a case is what the others' outputs are compared with.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (FUSEDRNN, TORCH, ONNXRUNTIME, Jax(), Numpy())}
