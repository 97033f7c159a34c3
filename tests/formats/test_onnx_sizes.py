"""ONNX values that depend on sizes that the model leaves open: folded only where every size gives the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    HIDDEN,
    INPUTS,
    assert_near,
    assert_parameters,
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

from fusedrnn.onnx import call_arguments, from_onnx

INT64 = onnx.TensorProto.INT64
FLOAT = onnx.TensorProto.FLOAT
H = np.random.default_rng(1).standard_normal((1, 1, HIDDEN), np.float32)
GRU = node("GRU", ["X", "W", "R", "B", "", "h"], ["Y"], "the node", hidden_size=HIDDEN, linear_before_reset=1)
PLAIN = node("GRU", ["X", "W", "R", "B"], ["Y"], "the node", hidden_size=HIDDEN, linear_before_reset=1)
NUMBERS = {
    "one": np.array([1]),
    "zero": np.array([0]),
    "two": np.array([2]),
    "four": np.array([4]),
    "minus": np.array([-1]),
    "huge": np.array([1000]),
    "half": np.float32(0.5),
}
BATCH = [
    node("Shape", ["X"], ["sizes"]),
    node("Gather", ["sizes", "one"], ["b"], axis=0),
    node("Cast", ["b"], ["bf"], to=FLOAT),
    node("Concat", ["one", "b", "one"], ["shape"], axis=0),
]


def choose(condition: str, one: str, other: str, result: str) -> Any:
    """An If that gives one or the other."""
    return node(
        "If",
        [condition],
        [result],
        then_branch=graph([node("Identity", [one], [one + "_then"])], [], [one + "_then"], {}),
        else_branch=graph([node("Identity", [other], [other + "_else"])], [], [other + "_else"], {}),
    )


# Nodes that make "p", true or false, from sizes.
CONDITIONS: dict[str, list[Any]] = {
    "b > 1": [node("Greater", ["b", "one"], ["p"])],
    "b > 4": [node("Greater", ["b", "four"], ["p"])],
    "b > 1000": [node("Greater", ["b", "huge"], ["p"])],
    "b == 1": [node("Equal", ["b", "one"], ["p"])],
    "b == 4": [node("Equal", ["b", "four"], ["p"])],
    "b <= 4": [node("LessOrEqual", ["b", "four"], ["p"])],
    "b mod 4 == 0": [node("Mod", ["b", "four"], ["m"]), node("Equal", ["m", "zero"], ["p"])],
    "b / 1000 == 0": [node("Div", ["b", "huge"], ["m"]), node("Equal", ["m", "zero"], ["p"])],
    "bool(b - 4)": [node("Sub", ["b", "four"], ["m"]), node("Cast", ["m"], ["p"], to=onnx.TensorProto.BOOL)],
    "t == b": [node("Gather", ["sizes", "zero"], ["t"], axis=0), node("Equal", ["b", "t"], ["p"])],
}


@pytest.mark.parametrize("how", ["If", "Where"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_what_a_size_chooses_is_not_folded(name: str, how: str) -> None:
    select: Callable[[str, str, str], Any] = (
        (lambda one, other, result: choose("p", one, other, result))
        if how == "If"
        else lambda one, other, result: node("Where", ["p", one, other], [result])
    )
    nodes = [*BATCH, *CONDITIONS[name]]
    states = [node("Expand", ["r", "shape"], ["h1"]), node("Neg", ["h1"], ["h2"]), select("h1", "h2", "h")]
    made = model([*nodes, *states, GRU], {**weights("GRU"), **NUMBERS, "r": H})
    with pytest.warns(
        UserWarning, match=r"initial_h of node 'the node' is no constant of the model: .*sizes of what is"
    ):
        assert from_onnx(made).initial_state is None
    assert call_arguments(made, batch=1) == {}
    own = weights("GRU")
    own["w"] = own.pop("W")
    made = model([*nodes, node("Neg", ["w"], ["w2"]), select("w", "w2", "W"), PLAIN], {**own, **NUMBERS})
    with pytest.raises(ValueError, match=r"W of node 'the node' must be an initializer.*sizes of what is fed"):
        from_onnx(made)


# Nodes that make "f" of sizes, a factor of the weights.
FACTORS: dict[str, list[Any]] = {
    "min(b, 2)": [node("Min", ["b", "two"], ["m"]), node("Cast", ["m"], ["f"], to=FLOAT)],
    "max(b, 1000)": [node("Max", ["b", "huge"], ["m"]), node("Cast", ["m"], ["f"], to=FLOAT)],
    "b": [node("Identity", ["bf"], ["f"])],
    "clip(b, 0, 0.5)": [node("Clip", ["bf", "", "half"], ["f"])],
    "t / b": [
        node("Gather", ["sizes", "zero"], ["t"], axis=0),
        node("Cast", ["t"], ["tf"], to=FLOAT),
        node("Div", ["tf", "bf"], ["f"]),
    ],
    "rows of a table": [node("Gather", ["table", "b"], ["f"], axis=0)],
}


@pytest.mark.parametrize("name", FACTORS)
def test_weights_that_depend_on_a_size_are_refused(name: str) -> None:
    own = weights("GRU")
    own["w"] = own.pop("W")
    table = np.ones(5000, np.float32)
    table[4000] = 2
    made = model([*BATCH, *FACTORS[name], node("Mul", ["w", "f"], ["W"]), PLAIN], {**own, **NUMBERS, "table": table})
    with pytest.raises(ValueError, match=r"W of node 'the node' must be an initializer.*sizes of what is fed"):
        from_onnx(made)


SAME: dict[str, list[Any]] = {
    "b > 0": [node("Greater", ["b", "zero"], ["p"])],
    "b >= 1": [node("GreaterOrEqual", ["b", "one"], ["p"])],
    "-1 < b": [node("Less", ["minus", "b"], ["p"])],
    "b != 0": [node("Equal", ["b", "zero"], ["q"]), node("Not", ["q"], ["p"])],
    "max(b, 1) == b": [
        node("Max", ["b", "one"], ["m"]),
        node("Sub", ["m", "b"], ["d"]),
        node("Equal", ["d", "zero"], ["p"]),
    ],
    "2 b / 2 > 0": [
        node("Mul", ["b", "two"], ["m"]),
        node("Div", ["m", "two"], ["d"]),
        node("Sub", ["d", "b"], ["e"]),
        node("Equal", ["e", "zero"], ["p"]),
    ],
}


@pytest.mark.parametrize("name", SAME)
def test_what_every_size_chooses_alike_is_folded(name: str) -> None:
    nodes = [*BATCH, *SAME[name], node("Expand", ["r", "shape"], ["h1"]), node("Neg", ["h1"], ["h2"])]
    made = model([*nodes, choose("p", "h1", "h2", "h"), GRU], {**weights("GRU"), **NUMBERS, "r": H})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = from_onnx(made)
    np.testing.assert_array_equal(layer.initial_state, H)
    for batch in (1, 2, 5):
        x = random_x(batch=batch)
        assert_near(layer(x)[0], directions_beside(session(made).run(["Y"], {"X": x})[0]))


def test_a_scripted_module_that_asks_for_the_batch(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")

    class Asks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(INPUTS, HIDDEN)
            self.h, self.g = (torch.nn.Parameter(torch.randn(1, 1, HIDDEN)) for _ in range(2))

        def forward(self, x):  # type: ignore[no-untyped-def]
            if x.size(1) == 1:  # noqa: SIM108, an If is what is tested
                h = self.h
            else:
                h = self.g.expand(-1, x.size(1), -1).contiguous()
            return self.rnn(x, h)[0]

    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Asks().eval())
        torch.onnx.export(
            scripted,
            (torch.tensor(random_x()),),
            path,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "t", 1: "b"}},
        )
    with pytest.warns(UserWarning, match=r"initial_h of node .* is no constant of the model: .*sizes of what is fed"):
        assert from_onnx(path).initial_state is None


def test_the_number_of_axes_is_inferred() -> None:
    rank = [node("ReduceSum", ["X", "two"], ["sum"], keepdims=0), node("Shape", ["sum"], ["s"])]
    rank += [node("Size", ["s"], ["rank"]), node("Equal", ["rank", "pair"], ["p"])]
    nodes = [*BATCH, *rank, node("Expand", ["r", "shape"], ["h1"]), node("Neg", ["h1"], ["h2"])]
    constants = {**weights("GRU"), **NUMBERS, "r": H, "pair": np.array(2)}
    layer = from_onnx(model([*nodes, choose("p", "h1", "h2", "h"), GRU], constants))
    np.testing.assert_array_equal(layer.initial_state, H)
    own = weights("GRU")
    own["w"] = own["W"] / 2
    scaled = [*rank[:3], node("Cast", ["rank"], ["f"], to=FLOAT), node("Mul", ["w", "f"], ["W"]), PLAIN]
    constants = {**own, **NUMBERS, "pair": np.array(2)}
    del constants["W"]
    assert_parameters(from_onnx(model(scaled, constants)), from_onnx(model([PLAIN], weights("GRU"))))


def test_one_that_nothing_tells_is_not_guessed() -> None:
    inputs = [value("X", ["T", "B", INPUTS]), value("q")]
    rank = [node("Shape", ["q"], ["s"]), node("Size", ["s"], ["rank"]), node("Cast", ["rank"], ["f"], to=FLOAT)]
    own = weights("GRU")
    own["w"] = own.pop("W")
    made = model([*rank, node("Mul", ["w", "f"], ["W"]), PLAIN], {**own}, inputs=inputs)
    with pytest.raises(ValueError, match="'s' depends on the number of axes of 'q'"):
        from_onnx(made)


@pytest.mark.parametrize("wide", [7, 7000])
def test_a_size_that_is_the_same_in_every_run_is_inferred(wide: int) -> None:
    own = weights("GRU")
    own["w"] = own["W"] * 7
    nodes = [node("MatMul", ["X", "v"], ["projected"]), node("Shape", ["projected"], ["s"])]
    nodes += [node("Gather", ["s", "last"], ["n"], axis=0), node("Cast", ["n"], ["f"], to=FLOAT)]
    nodes += [node("Div", ["w", "f"], ["W"]), PLAIN]
    constants = {name: array for name, array in own.items() if name != "W"}
    constants |= {"v": np.zeros((INPUTS, wide), np.float32), "last": np.array(-1)}
    layer = from_onnx(model(nodes, constants))
    expected = from_onnx(model([PLAIN], {**weights("GRU"), "W": own["w"] / np.float32(wide)}))
    assert_parameters(layer, expected)


def test_a_model_whose_shapes_contradict_each_other() -> None:
    own = weights("GRU")
    own["w"] = own.pop("W")
    nodes = [node("MatMul", ["X", "v"], ["a"]), node("Shape", ["a"], ["s"]), node("Size", ["s"], ["n"])]
    nodes += [node("Cast", ["n"], ["f"], to=FLOAT), node("Mul", ["w", "f"], ["W"]), PLAIN]
    made = model(nodes, {**own, "v": np.zeros((INPUTS + 1, 2), np.float32)})
    with pytest.raises(ValueError, match="W of node 'the node' must be"):
        from_onnx(made)


W = weights("GRU")["W"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"nope": W}, ValueError, "weights must be named as tensors of the model, which has no 'nope'"),
        ({3: W}, TypeError, "weights must have strings for names, not 3"),
        ({"W": np.ma.masked_array(W, W > 0)}, TypeError, r"^weights\['W'\] must be an array without a mask"),
        ({"W": W.tolist()}, TypeError, r"^weights\['W'\] must be an array"),
        ({"W": None}, TypeError, r"^weights\['W'\] must be an array"),
        ({"W": np.full(W.shape, "a")}, TypeError, r"^weights\['W'\] must be an array of numbers"),
    ],
)
def test_weights_that_are_given(given: Any, error: type[Exception], message: str) -> None:
    for source in (model([PLAIN], weights("GRU")), PLAIN):
        with pytest.raises(error, match=message):
            from_onnx(source, weights=given)


def test_lengths_must_be_integers() -> None:
    gru = node("GRU", ["X", "W", "R", "B", "n"], ["Y"], "the node", hidden_size=HIDDEN)
    for lengths, error, message in (
        (
            np.array([3.5, 5.0], np.float32),
            TypeError,
            "sequence_lens of node 'the node' must be integers, not of float32",
        ),
        (np.array([[3, 5]], np.int32), ValueError, r"sequence_lens of node 'the node' must have shape \(B,\), not"),
    ):
        made = model([gru], {**weights("GRU"), "n": lengths})
        for read in (from_onnx, call_arguments):
            with pytest.raises(error, match=message):
                read(made)


def test_a_weight_that_is_not_folded_is_said_to_be() -> None:
    own = weights("GRU")
    own["w"] = own.pop("W")
    made = model([node("RandomUniformLike", ["w"], ["W"], "dice"), PLAIN], own)
    with pytest.raises(ValueError, match="'W' is computed by RandomUniformLike 'dice', which is not folded"):
        from_onnx(made)


def test_weights_of_different_dtypes() -> None:
    own = weights("GRU")
    own["R"] = own["R"].astype(np.float64)
    with pytest.raises(TypeError, match="R of node 'the node' must be of float32 as W, not float64"):
        from_onnx(model([PLAIN], own))
