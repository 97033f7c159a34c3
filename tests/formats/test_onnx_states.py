"""Initial states that an ONNX model holds: folded for any batch, used by default, given back, or named in a warning."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    FLOAT,
    HIDDEN,
    INPUTS,
    assert_near,
    directions_beside,
    graph,
    model,
    node,
    onnx,
    random_x,
    session,
    value,
    weights,
)
from oracles import as_tuple

from fusedrnn.onnx import call_arguments, from_onnx, to_onnx

INT64 = onnx.TensorProto.INT64


@pytest.fixture
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def row(seed: int = 1, directions: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((directions, 1, HIDDEN), np.float32)


GRU = node("GRU", ["X", "W", "R", "B", "", "h"], ["Y", "Y_h"], "the node", hidden_size=HIDDEN, linear_before_reset=1)
BATCH = [node("Shape", ["X"], ["sizes"]), node("Gather", ["sizes", "one"], ["batch"], axis=0)]
ONE = {"one": integers(1)}
SHAPE = [*BATCH, node("Concat", ["one", "batch", "one"], ["shape"], axis=0)]
H = row()
# Nodes that make h, (1, B, H), and the constants they start from; every row must be H.
WAYS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Expand": ([*SHAPE, node("Expand", ["r", "shape"], ["h"])], {"r": H, **ONE}),
    "Tile": ([*SHAPE, node("Tile", ["r", "shape"], ["h"])], {"r": H, **ONE}),
    "Reshape, Expand": (
        [*SHAPE, node("Reshape", ["r", "s"], ["a"]), node("Expand", ["a", "shape"], ["h"])],
        {"r": H.reshape(-1), "s": integers(1, 1, -1), **ONE},
    ),
    "ConstantOfShape, Add": (
        [
            *BATCH,
            node("Concat", ["one", "batch", "width"], ["shape"], axis=0),
            node("ConstantOfShape", ["shape"], ["zeros"]),
            node("Add", ["zeros", "r"], ["h"]),
        ],
        {"r": H, "width": integers(HIDDEN), **ONE},
    ),
    "Gather of an embedding": (
        [
            *BATCH,
            node("ConstantOfShape", ["batch"], ["ids"], value=onnx.numpy_helper.from_array(integers(1))),
            node("Gather", ["table", "ids"], ["a"], axis=0),
            node("Unsqueeze", ["a", "zero"], ["h"]),
        ],
        {"table": np.concatenate([H[0] + 1, H[0], H[0] - 1]), "zero": integers(0), **ONE},
    ),
    "MatMul of ones": (
        [
            *BATCH,
            node("Concat", ["one", "batch", "one"], ["s"], axis=0),
            node("ConstantOfShape", ["s"], ["ones"], value=onnx.numpy_helper.from_array(np.ones(1, np.float32))),
            node("MatMul", ["ones", "r"], ["h"]),
        ],
        {"r": H, **ONE},
    ),
    "Concat of two": (
        [
            *SHAPE,
            node("Expand", ["a", "shape"], ["ab"]),
            node("Expand", ["b", "shape"], ["bb"]),
            node("Concat", ["ab", "bb"], ["h"], axis=2),
        ],
        {"a": H[..., :1], "b": H[..., 1:], **ONE},
    ),
    "the shape of a computed tensor": (
        [
            node("Relu", ["X"], ["relu"]),
            node("Shape", ["relu"], ["sizes"]),
            BATCH[1],
            SHAPE[2],
            node("Expand", ["r", "shape"], ["h"]),
        ],
        {"r": H, **ONE},
    ),
    "the shape of a tensor of two axes": (
        [
            node("ReduceSum", ["X", "two"], ["sum"], keepdims=0),
            node("Shape", ["sum"], ["sizes"]),
            node("Gather", ["sizes", "last"], ["batch"], axis=0),
            SHAPE[2],
            node("Expand", ["r", "shape"], ["h"]),
        ],
        {"r": H, "two": integers(2), "last": integers(-1), **ONE},
    ),
    "a constant of one row": ([node("Identity", ["r"], ["h"])], {"r": H}),
    "If": (
        [
            *SHAPE,
            node("Size", ["sizes"], ["rank"]),
            node("Equal", ["rank", "three"], ["batched"]),
            node(
                "If",
                ["batched"],
                ["h"],
                then_branch=onnx.helper.make_graph([node("Expand", ["r", "shape"], ["t"])], "t", [], [value("t")]),
                else_branch=onnx.helper.make_graph([node("Neg", ["r"], ["e"])], "e", [], [value("e")]),
            ),
        ],
        {"r": H, "three": np.array(3), **ONE},
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_calls_begin_with_what_the_model_computes(name: str, silent: None) -> None:
    nodes, constants = WAYS[name]
    made = model([*nodes, GRU], {**weights("GRU"), **constants})
    layer = from_onnx(made)
    np.testing.assert_array_equal(layer.initial_state, H)
    for batch in (1, 2, 5) if name != "a constant of one row" else (1,):
        x = random_x(batch=batch)
        expected = directions_beside(session(made).run(["Y"], {"X": x})[0])
        assert_near(layer(x)[0], expected)
        y, _, tape = layer.forward(x)
        np.testing.assert_array_equal(y, layer(x)[0])
        assert layer.backward(tape, y).state.shape == (1, batch, HIDDEN)
        arguments = call_arguments(made, batch=batch)
        np.testing.assert_array_equal(arguments["state"], H.repeat(batch, 1))
        np.testing.assert_array_equal(layer(x, **arguments)[0], y)
        np.testing.assert_array_equal(layer(x, **call_arguments(made))[0] if batch == 1 else y, y)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), from_onnx(to_onnx(layer))):
        np.testing.assert_array_equal(again(random_x())[0], layer(random_x())[0])
    steps = layer.stream(2)
    np.testing.assert_array_equal(np.stack([steps.step(x_t) for x_t in random_x()]), layer(random_x())[0])


def test_the_state_of_any_batch_is_no_argument_without_one() -> None:
    nodes, constants = WAYS["Expand"]
    made = model([*nodes, GRU], {**weights("GRU"), **constants})
    assert call_arguments(made) == {}
    x = random_x(batch=3)
    np.testing.assert_array_equal(from_onnx(made)(x, **call_arguments(made))[0], from_onnx(made)(x)[0])
    for batch in (-1, 2.0, "2", True):
        with pytest.raises((TypeError, ValueError), match=r"^batch must"):
            call_arguments(made, batch=batch)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("parts", [("initial_h",), ("initial_c",), ("initial_h", "initial_c")])
def test_both_halves_or_either(parts: tuple[str, ...], directions: int, silent: None) -> None:
    rows = {part: row(seed, directions) for seed, part in enumerate(parts)}
    inputs = ["X", "W", "R", "B", "", *(part if part in parts else "" for part in ("initial_h", "initial_c"))]
    direction = "bidirectional" if directions == 2 else "reverse"
    lstm = node("LSTM", inputs, ["Y"], "the node", hidden_size=HIDDEN, direction=direction)
    expand = [node("Expand", [part + "_row", "shape"], [part]) for part in parts]
    constants = {**weights("LSTM", directions), **{part + "_row": array for part, array in rows.items()}, **ONE}
    made = model([*SHAPE, *expand, lstm], constants)
    layer = from_onnx(made)
    for part, half in zip(("initial_h", "initial_c"), layer.initial_state, strict=True):
        np.testing.assert_array_equal(half, rows.get(part, np.zeros((directions, 1, HIDDEN), np.float32)))
    x = random_x(batch=3)
    assert_near(layer(x)[0], directions_beside(session(made).run(["Y"], {"X": x})[0]))


def test_rows_that_differ_are_for_their_batch_alone(silent: None) -> None:
    h = np.concatenate([row(1), row(2)], axis=1)
    made = model([GRU], {**weights("GRU"), "h": h})
    layer = from_onnx(made)
    np.testing.assert_array_equal(layer.initial_state, h)
    x = random_x()
    assert_near(layer(x)[0], directions_beside(session(made).run(["Y"], {"X": x})[0]))
    np.testing.assert_array_equal(call_arguments(made)["state"], h)
    with pytest.raises(ValueError, match="state must be given for 3 rows: the layer's initial_state has 2 rows"):
        layer(random_x(batch=3))
    with pytest.raises(ValueError, match="batch must be 2, as the rows of the state of node 'the node', not 3"):
        call_arguments(made, batch=3)


def test_equal_rows_are_for_any_batch(silent: None) -> None:
    made = model([GRU], {**weights("GRU"), "h": H.repeat(2, 1)})
    layer = from_onnx(made)
    np.testing.assert_array_equal(layer.initial_state, H)
    np.testing.assert_array_equal(call_arguments(made)["state"], H.repeat(2, 1))
    np.testing.assert_array_equal(call_arguments(made, batch=5)["state"], H.repeat(5, 1))
    layer(random_x(batch=5))


def test_layout_1(silent: None) -> None:
    gru = node("GRU", ["X", "W", "R", "B", "", "h"], ["Y"], "the node", hidden_size=HIDDEN, layout=1)
    shape = [node("Shape", ["X"], ["sizes"]), node("Gather", ["sizes", "first"], ["batch"], axis=0)]
    shape += [node("Concat", ["batch", "one", "one"], ["shape"], axis=0), node("Expand", ["r", "shape"], ["h"])]
    constants = {**weights("GRU"), "r": H.swapaxes(0, 1), "first": integers(0), **ONE}
    layer = from_onnx(model([*shape, gru], constants, inputs=[value("X", ["B", "T", INPUTS])]))
    assert layer.batch_first
    np.testing.assert_array_equal(layer.initial_state, H)
    differ = np.concatenate([H, H + 1]).astype(np.float32)
    layer = from_onnx(model([gru], {**weights("GRU"), "h": differ}))
    np.testing.assert_array_equal(layer.initial_state, differ.swapaxes(0, 1))


def computed_at_run_time() -> dict[str, tuple[list[Any], dict[str, Any], list[Any], str]]:
    x = value("X", ["T", "B", INPUTS])
    encoder = node("GRU", ["X", "W", "R", "B"], ["", "h"], "encoder", hidden_size=HIDDEN)
    return {
        "another node": ([encoder], {}, [x], "'h' is computed by GRU 'encoder'"),
        "an input, cut": (
            [node("Slice", ["state", "zero", "one"], ["h"])],
            {"zero": integers(0), **ONE},
            [x, value("state", [2, "B", HIDDEN])],
            "'state' is an input of the graph",
        ),
        "one that no evaluator has": (
            [node("RandomNormalLike", ["r"], ["h"])],
            {"r": H},
            [x],
            "'h' is computed by RandomNormalLike 'h'",
        ),
        "the sizes themselves": (
            [
                *SHAPE,
                node("Cast", ["batch"], ["b"], to=FLOAT),
                node("Mul", ["r", "b"], ["a"]),
                node("Expand", ["a", "shape"], ["h"]),
            ],
            {"r": H, **ONE},
            [x],
            "'h' depends on the sizes of what is fed",
        ),
    }


@pytest.mark.parametrize("name", computed_at_run_time())
def test_one_that_cannot_be_folded_is_named(name: str) -> None:
    nodes, constants, inputs, reason = computed_at_run_time()[name]
    made = model([*nodes, GRU], {**weights("GRU"), **constants}, inputs=inputs)
    with pytest.warns(UserWarning, match="initial_h of node 'the node' is no constant of the model: " + reason):
        layers = from_onnx(made)
    layer = layers["the node"] if isinstance(layers, dict) else layers
    assert layer.initial_state is None
    assert call_arguments(made, "the node") == {}


def test_lengths_that_are_computed_are_named() -> None:
    gru = node("GRU", ["X", "W", "R", "B", "n"], ["Y"], "the node", hidden_size=HIDDEN)
    full = [*BATCH, node("Gather", ["sizes", "zero"], ["time"], axis=0), node("Expand", ["time", "batch"], ["m"])]
    full.append(node("Cast", ["m"], ["n"], to=onnx.TensorProto.INT32))
    made = model([*full, gru], {**weights("GRU"), "zero": integers(0), **ONE})
    with pytest.warns(
        UserWarning, match="sequence_lens of node 'the node' is no constant of the model: 'n' depends on"
    ):
        from_onnx(made)


def test_a_state_that_is_fed_is_no_cause_for_a_warning(silent: None) -> None:
    made = model([GRU], weights("GRU"), inputs=[value("X", ["T", "B", INPUTS]), value("h", [1, "B", HIDDEN])])
    assert from_onnx(made).initial_state is None
    same = model(
        [node("Identity", ["g"], ["h"]), GRU],
        weights("GRU"),
        inputs=[value("X", ["T", "B", INPUTS]), value("g", [1, "B", HIDDEN])],
    )
    assert from_onnx(same).initial_state is None
    assert from_onnx(GRU, weights=weights("GRU")).initial_state is None
    np.testing.assert_array_equal(from_onnx(GRU, weights={**weights("GRU"), "h": H}).initial_state, H)


@pytest.mark.parametrize("zeros", [np.zeros((1, 2, HIDDEN), np.float32), np.zeros((1, 1, HIDDEN), np.float32)])
def test_zeros_are_no_state(zeros: np.ndarray, silent: None) -> None:
    assert from_onnx(model([GRU], {**weights("GRU"), "h": zeros})).initial_state is None


@pytest.mark.parametrize(
    ("h", "error", "message"),
    [
        (H[0], ValueError, r"initial_h of node 'the node' must have shape \(1, B, 4\), not \(1, 4\)"),
        (H[..., :3], ValueError, r"initial_h of node 'the node' must have shape \(1, B, 4\), not \(1, 1, 3\)"),
        (row(directions=2), ValueError, r"initial_h of node 'the node' must have shape \(1, B, 4\), not \(2, 1, 4\)"),
        (
            H.astype(np.float64),
            TypeError,
            "initial_h of node 'the node' must be of float32 as its weights, not float64",
        ),
    ],
)
def test_constants_that_are_no_state(h: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_onnx(model([GRU], {**weights("GRU"), "h": h}))


def test_halves_of_different_batches() -> None:
    lstm = node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y"], "the node", hidden_size=HIDDEN)
    with pytest.raises(ValueError, match="initial_h and initial_c of node 'the node' must have as many rows"):
        from_onnx(model([lstm], {**weights("LSTM"), "h": H.repeat(2, 1), "c": H.repeat(3, 1)}))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("way", ["expand", "repeat", "zeros + h", "embedding"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("GRU", {}), ("RNN", {"batch_first": True}), ("LSTM", {"num_layers": 2, "bidirectional": True})],
)
def test_exports_of_torch(kind: str, options: dict[str, Any], way: str, fold: bool, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    shape = (options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1), 1, HIDDEN)
    batch_axis = 0 if options.get("batch_first") else 1

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Linear(INPUTS, INPUTS)
            self.rnn = getattr(torch.nn, kind)(INPUTS, HIDDEN, **options)
            self.h, self.c = (torch.nn.Parameter(torch.randn(*shape)) for _ in range(2))

        def begin(self, state: Any, x: Any) -> Any:
            batch = x.shape[batch_axis]
            if way == "repeat":
                return state.repeat(1, batch, 1)
            if way == "zeros + h":
                return torch.zeros(shape[0], batch, HIDDEN) + state
            return state.expand(-1, batch, -1).contiguous()

        def forward(self, x: Any) -> Any:
            fed = self.embedding(x)
            sized = fed if way == "embedding" else x
            h, c = self.begin(self.h, sized), self.begin(self.c, sized)
            return self.rnn(fed, (h, c) if kind == "LSTM" else h)[0]

    torch.manual_seed(0)
    module = Model().eval()
    x = torch.tensor(random_x(batch=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x,),
            tmp_path / "model.onnx",
            dynamo=False,
            do_constant_folding=fold,
            input_names=["x"],
            dynamic_axes={"x": {0: "a", 1: "b"}},
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers = from_onnx(tmp_path / "model.onnx")
    with torch.no_grad():
        x = torch.tensor(random_x(batch=3))
        y = module.embedding(x).numpy()
        expected = module(x).numpy()
    y = np.ascontiguousarray(y.swapaxes(0, 1)) if batch_axis == 0 else y
    for layer in layers.values() if isinstance(layers, dict) else [layers]:
        assert all(half.any() for half in as_tuple(layer.initial_state))
        y, _ = layer(y)
    assert_near(y.swapaxes(0, 1) if batch_axis == 0 else y, expected, layers=options.get("num_layers", 1))


def test_the_state_within_a_body(silent: None) -> None:
    """Of an If: constants of its own, of the graph about it, and the batch of what that is fed."""
    nodes, constants = WAYS["Expand"]
    branch = graph([nodes[-1], GRU], [], ["Y"], {})
    other = graph([node("Identity", ["X"], ["Y2"])], [], ["Y2"], {})
    made = model(
        [*nodes[:-1], node("If", ["yes"], ["out"], "choice", then_branch=branch, else_branch=other)],
        {**weights("GRU"), **constants},
        inputs=[value("X", ["T", "B", INPUTS]), value("yes", [], onnx.TensorProto.BOOL)],
        outputs=["out"],
    )
    np.testing.assert_array_equal(from_onnx(made).initial_state, H)


def test_rows_that_the_model_sorts_by_length(tmp_path: Any) -> None:
    """torch sorts the rows of a packed batch; those of a state that are all alike stay as they are."""
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn

    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(INPUTS, HIDDEN)
            self.h = torch.nn.Parameter(torch.randn(1, 1, HIDDEN))

        def forward(self, x: Any, lengths: Any) -> Any:
            h = self.h.expand(-1, x.shape[1], -1).contiguous()
            packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return rnn.pad_packed_sequence(self.lstm(packed, (h, h))[0])[0]

    torch.manual_seed(0)
    module, lengths = Packed().eval(), torch.tensor([3, 5, 4])
    x = torch.tensor(random_x(batch=3))
    axes = {"x": {0: "t", 1: "b"}, "n": {0: "b"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = tmp_path / "model.onnx"
        torch.onnx.export(module, (x, lengths), path, dynamo=False, input_names=["x", "n"], dynamic_axes=axes)
    with pytest.warns(UserWarning) as caught:
        layer = from_onnx(path)
    assert [str(one.message).split(" of ")[0] for one in caught] == ["sequence_lens"]
    with torch.no_grad():
        expected = module(x, lengths).numpy()
    assert_near(layer(x.numpy(), lengths=lengths.numpy())[0], expected)


def test_rows_taken_from_a_table_by_what_is_fed() -> None:
    inputs = [value("X", ["T", "B", INPUTS]), value("ids", ["B"], INT64)]
    take = [node("Gather", ["table", "ids"], ["a"], axis=0), node("Unsqueeze", ["a", "zero"], ["h"])]
    constants = {**weights("GRU"), "zero": integers(0), "table": np.concatenate([H[0], H[0] + 1])}
    made = model([*take, GRU], constants, inputs=inputs)
    with pytest.warns(UserWarning, match="initial_h of node 'the node' is no constant of the model: 'ids' is an input"):
        assert from_onnx(made).initial_state is None
