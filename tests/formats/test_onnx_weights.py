"""Weights that a graph computes from its constants, beside onnxruntime's own evaluation and the plain initializers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    HIDDEN,
    INPUTS,
    assert_near,
    assert_parameters,
    directions_beside,
    model,
    node,
    onnx,
    random_x,
    session,
    value,
    weights,
)

from fusedrnn.onnx import from_onnx

ROWS = 4 * HIDDEN
WEIGHTS = weights("LSTM")
W, R, B = WEIGHTS["W"], WEIGHTS["R"], WEIGHTS["B"]
LSTM = node("LSTM", ["X", "W", "R", "B"], ["Y", "Y_h", "Y_c"], "the node", hidden_size=HIDDEN)


def plain() -> Any:
    return from_onnx(model([LSTM], WEIGHTS))


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# The nodes that make W, and the constants they start from; each must give W again, to the last bit.
WAYS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Identity": ([node("Identity", ["w"], ["W"])], {"w": W}),
    "Cast": ([node("Cast", ["w"], ["W"], to=onnx.TensorProto.FLOAT)], {"w": W.astype(np.float64)}),
    "CastLike": ([node("CastLike", ["w", "like"], ["W"])], {"w": W.astype(np.float64), "like": np.float32(0)}),
    "Unsqueeze": ([node("Unsqueeze", ["w", "axes"], ["W"])], {"w": W[0], "axes": integers(0)}),
    "Squeeze": ([node("Squeeze", ["w", "axes"], ["W"])], {"w": W[None], "axes": integers(1)}),
    "Concat": ([node("Concat", ["a", "b"], ["W"], axis=1)], {"a": W[:, :5], "b": W[:, 5:]}),
    "Slice": (
        [node("Slice", ["w", "from", "to", "axes", "step"], ["W"])],
        {
            "w": np.pad(W, ((0, 0), (1, 1), (0, 0)))[:, ::-1],
            "from": integers(ROWS),
            "to": integers(0),
            "axes": integers(1),
            "step": integers(-1),
        },
    ),
    "Split": (
        [node("Split", ["w", "s"], ["other", "W"], axis=0)],
        {"w": np.concatenate([R[..., :3], W]), "s": integers(1, 1)},
    ),
    "Transpose": ([node("Transpose", ["w"], ["W"], perm=[0, 2, 1])], {"w": W.swapaxes(1, 2)}),
    "Reshape": ([node("Reshape", ["w", "shape"], ["W"])], {"w": W.reshape(-1), "shape": integers(1, -1, INPUTS)}),
    "Flatten": (
        [node("Flatten", ["w"], ["flat"], axis=2), node("Unsqueeze", ["flat", "zero"], ["W"])],
        {"w": W, "zero": integers(0)},
    ),
    "Gather": (
        [node("Gather", ["w", "rows"], ["W"], axis=1)],
        {"w": W[:, ::-1], "rows": np.arange(ROWS)[::-1].copy()},
    ),
    "GatherND": (
        [node("GatherND", ["w", "i"], ["v"]), node("Unsqueeze", ["v", "zero"], ["W"])],
        {"w": W, "i": np.stack([np.zeros(ROWS, np.int64), np.arange(ROWS)], 1), "zero": integers(0)},
    ),
    "ScatterND": (
        [node("ScatterND", ["w", "i", "new"], ["W"])],
        {"w": np.where(np.arange(ROWS)[:, None] == 2, np.float32(9), W), "i": np.array([[0, 2]]), "new": W[:, 2]},
    ),
    "Pad": (
        [node("Pad", ["w", "pads"], ["more"]), node("Add", ["more", "rest"], ["W"])],
        {
            "w": W[:, :5],
            "pads": integers(0, 0, 0, 0, ROWS - 5, 0),
            "rest": np.where(np.arange(ROWS)[:, None] < 5, np.float32(0), W),
        },
    ),
    "arithmetic": (
        [
            node("Mul", ["w", "two"], ["a"]),
            node("Sub", ["a", "w"], ["b"]),
            node("Neg", ["b"], ["c"]),
            node("Div", ["c", "minus"], ["d"]),
            node("Add", ["d", "zeros"], ["W"]),
        ],
        {"w": W, "two": np.float32(2), "minus": np.float32(-1), "zeros": np.zeros((1, 1, 1), np.float32)},
    ),
    "Constant": ([node("Constant", [], ["W"], value=onnx.numpy_helper.from_array(W))], {}),
    "ConstantOfShape": (
        [node("ConstantOfShape", ["shape"], ["zeros"]), node("Add", ["zeros", "w"], ["W"])],
        {"w": W, "shape": integers(1, ROWS, INPUTS)},
    ),
    "Where": (
        [node("Greater", ["w", "zero"], ["p"]), node("Where", ["p", "w", "n"], ["W"])],
        {"w": np.maximum(W, 0), "n": W, "zero": np.float32(0)},
    ),
    "Expand": (
        [node("Expand", ["w", "shape"], ["W"])],
        {"w": W, "shape": integers(1, ROWS, 1)},
    ),
    "Tile": (
        [node("Tile", ["w", "reps"], ["a"]), node("Slice", ["a", "zero", "one"], ["W"])],
        {"w": W, "reps": integers(3, 1, 1), "zero": integers(0), "one": integers(1)},
    ),
    "MatMul": ([node("MatMul", ["w", "unit"], ["W"])], {"w": W, "unit": np.eye(INPUTS, dtype=np.float32)}),
    "Einsum": (
        [node("Einsum", ["w", "unit"], ["W"], equation="dgi,ij->dgj")],
        {"w": W, "unit": np.eye(INPUTS, dtype=np.float32)},
    ),
    "Dropout": ([node("Dropout", ["w"], ["W"])], {"w": W}),
    "an unused output": ([node("Dropout", ["w", "ratio"], ["W", "kept"])], {"w": W, "ratio": np.float32(0.5)}),
    "If": (
        [
            node(
                "If",
                ["yes"],
                ["W"],
                then_branch=onnx.helper.make_graph([node("Identity", ["w"], ["t"])], "t", [], [value("t")]),
                else_branch=onnx.helper.make_graph([node("Neg", ["w"], ["e"])], "e", [], [value("e")]),
            )
        ],
        {"w": W, "yes": np.array(True)},
    ),
    "a shape of what is fed": (
        [
            node("Shape", ["X"], ["sizes"]),
            node("Gather", ["sizes", "two"], ["inputs"], axis=0),
            node("Concat", ["front", "inputs"], ["shape"], axis=0),
            node("Reshape", ["w", "shape"], ["W"]),
        ],
        {"w": W.reshape(-1), "two": integers(2), "front": integers(1, ROWS)},
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_compute_a_weight(name: str) -> None:
    nodes, constants = WAYS[name]
    computed = model([*nodes, LSTM], {"R": R, "B": B, **constants})
    expected = session(computed).run(["Y"], {"X": random_x()})[0]
    layer = from_onnx(computed)
    assert_parameters(layer, plain())
    assert_near(layer(random_x())[0], directions_beside(expected))


@pytest.mark.parametrize("opset", [7, 11, 12, 13, 18, 21])
def test_old_operator_sets(opset: int) -> None:
    """Axes and the like are attributes there."""
    old = opset < 13
    axes = {"axes": [0]} if old else {}
    given = [] if old else ["axes"]
    unsqueeze = node("Unsqueeze", ["w", *given], ["W"], **axes)
    split = node(
        "Split", ["b", *([] if old else ["sizes"])], ["b1", "b2"], axis=0, **({"split": [ROWS, ROWS]} if old else {})
    )
    nodes = [
        unsqueeze,
        split,
        node("Concat", ["b1", "b2"], ["b3"], axis=0),
        node("Unsqueeze", ["b3", *given], ["B"], **axes),
    ]
    constants = {"w": W[0], "b": B[0], "R": R, "axes": integers(0), "sizes": integers(ROWS, ROWS)}
    assert_parameters(from_onnx(model([*nodes, LSTM], constants, opset=opset)), plain())


def test_half_precision_is_cast() -> None:
    half = W.astype(np.float16)
    cast = node("Cast", ["w"], ["W"], to=onnx.TensorProto.FLOAT)
    layer = from_onnx(model([cast, LSTM], {"w": half, "R": R, "B": B}))
    expected = from_onnx(model([LSTM], {**WEIGHTS, "W": half.astype(np.float32)}))
    assert_parameters(layer, expected)


def test_given_weights_may_begin_a_computation() -> None:
    transpose = node("Transpose", ["w"], ["W"], perm=[0, 2, 1])
    fed = model([transpose, LSTM], {"R": R, "B": B}, inputs=[value("X", ["T", "B", INPUTS]), value("w")])
    with pytest.raises(
        ValueError,
        match=r"W of node 'the node' must be an initializer of the model or computed from such alone; 'w' is an input",
    ):
        from_onnx(fed)
    assert_parameters(from_onnx(fed, weights={"w": W.swapaxes(1, 2)}), plain())
    assert_parameters(from_onnx(fed, weights={"W": W}), plain())


def test_sparse_initializers() -> None:
    kept = np.flatnonzero(np.abs(W) > 0.3)
    thin = np.zeros_like(W).reshape(-1)
    thin[kept] = W.reshape(-1)[kept]
    sparse = model([LSTM], {"R": R, "B": B})
    sparse.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(
            onnx.numpy_helper.from_array(thin[kept], "W"), onnx.numpy_helper.from_array(kept, "places"), W.shape
        )
    )
    assert_parameters(from_onnx(sparse), from_onnx(model([LSTM], {**WEIGHTS, "W": thin.reshape(W.shape)})))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_exports_of_torch(kind: str, fold: bool, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")

    class Siamese(torch.nn.Module):
        """The same weights twice, which torch writes once, with Identity."""

        def __init__(self) -> None:
            super().__init__()
            self.one = getattr(torch.nn, kind)(INPUTS, HIDDEN, 2, bidirectional=True)
            self.other = getattr(torch.nn, kind)(INPUTS, HIDDEN, 2, bidirectional=True)
            for (name, _), parameter in zip(self.one.named_parameters(), self.other.parameters(), strict=True):
                parameter.data = getattr(self.one, name).data.clone()

        def forward(self, x: Any) -> Any:
            return self.one(x)[0] + self.other(2 * x)[0]

    torch.manual_seed(0)
    module = Siamese().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.tensor(random_x()),),
            tmp_path / "model.onnx",
            dynamo=False,
            do_constant_folding=fold,
            input_names=["x"],
            dynamic_axes={"x": {0: "t", 1: "b"}},
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # states that are zero are no cause for one
        layers = from_onnx(tmp_path / "model.onnx")
    assert len(layers) == 4
    first, second, *others = layers.values()
    x = random_x(batch=3)
    with torch.no_grad():
        expected = module.one(torch.tensor(x))[0].numpy()
    assert_near(second(first(x)[0])[0], expected, layers=2)
    for layer, same in zip(others, (first, second), strict=True):
        assert layer.initial_state is None
        assert_parameters(layer, same)


SEQUENCE = ["Transpose", "Slice", "Concat", "Reshape", "Gather", "Arithmetic", "Split", "Cast"]


@pytest.mark.parametrize("seed", range(40))
def test_random_chains_agree_with_onnxruntime(seed: int) -> None:
    """Chains of nodes that make some weight of the right shape: onnxruntime must compute it as we do."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {"R": R, "B": B, "w0": rng.standard_normal((1, ROWS, INPUTS), np.float32)}
    nodes: list[Any] = []
    last = "w0"

    def constant(array: Any) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(array)
        return name

    for number in range(int(rng.integers(1, 12))):
        made = f"w{number + 1}"
        kind = str(rng.choice(SEQUENCE))
        if kind == "Transpose":
            nodes += [
                node("Transpose", [last], [made + "t"], perm=[2, 0, 1]),
                node("Transpose", [made + "t"], [made], perm=[1, 2, 0]),
            ]
        elif kind == "Slice":
            step = constant(integers(-1))
            nodes.append(
                node(
                    "Slice",
                    [
                        last,
                        constant(integers(-1)),
                        constant(integers(-100)),
                        constant(integers(int(rng.integers(3)))),
                        step,
                    ],
                    [made],
                )
            )
        elif kind == "Concat":
            cut = int(rng.integers(1, ROWS))
            parts = [made + "a", made + "b"]
            nodes.append(node("Split", [last, constant(integers(cut, ROWS - cut))], parts, axis=1))
            nodes.append(node("Concat", parts[::-1], [made], axis=1))
        elif kind == "Reshape":
            nodes.append(node("Reshape", [last, constant(integers(INPUTS, -1))], [made + "r"]))
            nodes.append(node("Reshape", [made + "r", constant(integers(1, ROWS, INPUTS))], [made]))
        elif kind == "Gather":
            axis = int(rng.integers(1, 3))
            order = rng.permutation(W.shape[axis]) - int(rng.integers(2)) * W.shape[axis]
            nodes.append(node("Gather", [last, constant(order)], [made], axis=axis))
        elif kind == "Arithmetic":
            op = str(rng.choice(["Add", "Sub", "Mul", "Max", "Min"]))
            shape = [int(size) if rng.integers(2) else 1 for size in W.shape]
            nodes.append(node(op, [last, constant(rng.standard_normal(shape, np.float32))], [made]))
        elif kind == "Split":
            nodes.append(node("Split", [last, constant(integers(1, 2))], [made + "a", made + "b"], axis=2))
            nodes.append(node("Concat", [made + "b", made + "a"], [made], axis=2))
        else:
            nodes += [
                node("Cast", [last], [made + "h"], to=onnx.TensorProto.FLOAT16),
                node("Cast", [made + "h"], [made], to=onnx.TensorProto.FLOAT),
            ]
        last = made
    nodes.append(node("Identity", [last], ["W"]))
    computed = model([*nodes, LSTM], constants, outputs=["Y", "W"])
    expected = session(computed).run(["W"], {"X": random_x()})[0]
    # The same additions and products of the same numbers: no rounding differs.
    assert_parameters(from_onnx(computed), from_onnx(model([LSTM], {**WEIGHTS, "W": expected})))
