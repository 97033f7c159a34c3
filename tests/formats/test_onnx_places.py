"""Nodes in bodies and functions, those that are left out, what a model without any says, and hostile models."""

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
    graph,
    model,
    node,
    onnx,
    random_x,
    session,
    tensor,
    value,
    weights,
)

import fusedrnn as fr
from fusedrnn.onnx import from_onnx

OWN = "own"
BOOL, INT64 = onnx.TensorProto.BOOL, onnx.TensorProto.INT64


def lstm(y: str = "Y", name: str = "lstm", inputs: tuple[str, ...] = ("X", "W", "R", "B"), **attributes: Any) -> Any:
    return node("LSTM", inputs, [y], name, **{"hidden_size": HIDDEN, **attributes})


def function(name: str, inputs: list[str], outputs: list[str], nodes: list[Any], attributes: Any = ()) -> Any:
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(OWN, 1)]
    return onnx.helper.make_function(OWN, name, inputs, outputs, nodes, opsets, list(attributes))


def plain(op: str = "LSTM", **options: Any) -> Any:
    return from_onnx(model([node(op, ["X", "W", "R", "B"], ["Y"], hidden_size=HIDDEN)], weights(op, **options)))


def choice(name: str, then: Any, other: Any, out: str = "out") -> Any:
    return node("If", ["yes"], [out], name, then_branch=then, else_branch=other)


X_AND_YES = [value("X", ["T", "B", INPUTS]), value("yes", [], BOOL)]


def test_nodes_in_the_branches_of_an_if() -> None:
    """One with weights of the outer graph, one with its own, within another If."""
    inner = graph(
        [node("Identity", ["w"], ["W2"]), lstm("Z", "", ("X", "W2", "R", "B"))],
        [],
        ["Z"],
        {"w": weights("LSTM", seed=1)["W"]},
    )
    deep = graph([choice("inner", inner, graph([lstm("V")], [], ["V"], {}), "U")], [], ["U"], {})
    made = model(
        [choice("outer", graph([lstm("T")], [], ["T"], {}), deep)], weights("LSTM"), inputs=X_AND_YES, outputs=["out"]
    )
    layers = from_onnx(made)
    assert sorted(layers) == [
        "outer/else_branch/inner/else_branch/lstm",
        "outer/else_branch/inner/then_branch/Z",
        "outer/then_branch/lstm",
    ]
    assert_parameters(layers["outer/then_branch/lstm"], plain())
    other = layers["outer/else_branch/inner/then_branch/Z"]
    np.testing.assert_array_equal(other.parameters["weight_hh_l0"], plain().parameters["weight_hh_l0"])
    np.testing.assert_array_equal(other.parameters["weight_ih_l0"], plain(seed=1).parameters["weight_ih_l0"])
    for yes, name in ((True, "outer/then_branch/lstm"), (False, "outer/else_branch/inner/else_branch/lstm")):
        expected = session(made).run(None, {"X": random_x(), "yes": np.array(yes)})[0]
        assert_near(layers[name](random_x())[0], directions_beside(expected))
    assert_parameters(from_onnx(made, "Z"), other)
    with pytest.raises(
        ValueError, match=r"node means several, must be one of .*'outer/then_branch/lstm'\], not 'lstm'"
    ):
        from_onnx(made, "lstm")


def test_a_node_in_a_loop_whose_state_goes_round() -> None:
    body_inputs = [
        value("i", [], INT64),
        value("go", [], BOOL),
        value("h_in", [1, "B", HIDDEN]),
        value("c_in", [1, "B", HIDDEN]),
    ]
    nodes = [
        node("LSTM", ["X", "W", "R", "B", "", "h_in", "c_in"], ["", "h", "c"], "step", hidden_size=HIDDEN),
        node("Identity", ["go"], ["going"]),
    ]
    body = onnx.helper.make_graph(nodes, "body", body_inputs, [value("going", [], BOOL), value("h"), value("c")])
    loop = node("Loop", ["count", "", "h0", "c0"], ["h_out", "c_out"], "loop", body=body)
    state = [value(name, [1, "B", HIDDEN]) for name in ("h0", "c0")]
    made = model(
        [loop],
        {**weights("LSTM"), "count": np.array(2)},
        inputs=[value("X", ["T", "B", INPUTS]), *state],
        outputs=["h_out"],
    )
    with pytest.warns(UserWarning, match=r"initial_[hc] of node 'loop/body/step' is no constant .* fed by Loop 'loop'"):
        layer = from_onnx(made)
    x, h, c = random_x(), *(np.random.default_rng(seed).standard_normal((1, 2, HIDDEN), np.float32) for seed in (1, 2))
    expected = session(made).run(None, {"X": x, "h0": h, "c0": c})[0]
    assert_near(layer(x, layer(x, (h, c))[1])[1][0], expected)


def two_calls() -> Any:
    """A function that is called twice with other weights, and takes its direction from an attribute."""
    body = node("LSTM", ["x", "w", "r", "b"], ["y"], "lstm")
    kinds = onnx.AttributeProto
    body.attribute.append(kinds(name="hidden_size", type=kinds.INT, ref_attr_name="size"))
    body.attribute.append(kinds(name="direction", type=kinds.STRING, ref_attr_name="way"))
    encode = function("encode", ["x", "w", "r", "b"], ["y"], [body], ["size", "way"])
    constants = {**weights("LSTM"), **{name + "2": array for name, array in weights("LSTM", seed=1).items()}}
    calls = [
        onnx.helper.make_node("encode", ["X", "W", "R", "B"], ["Y"], "first", domain=OWN, size=HIDDEN, way="forward"),
        onnx.helper.make_node("encode", ["X", "W2", "R2", ""], ["Z"], "second", domain=OWN, size=HIDDEN, way="reverse"),
    ]
    return model(calls, constants, outputs=["Y", "Z"], functions=[encode], domains=[OWN])


def test_calls_of_functions() -> None:
    layers = from_onnx(two_calls())
    assert list(layers) == ["first/lstm", "second/lstm"]
    assert [(layer.reverse, layer.bias) for layer in layers.values()] == [(False, True), (True, False)]
    expected = session(two_calls()).run(None, {"X": random_x()})
    for layer, y in zip(layers.values(), expected, strict=True):
        assert_near(layer(random_x())[0], directions_beside(y))


def test_weights_that_a_function_computes() -> None:
    inner = function("turn", ["a"], ["b"], [node("Transpose", ["a"], ["b"], perm=[0, 2, 1])])
    outer = function("make", ["a"], ["c"], [onnx.helper.make_node("turn", ["a"], ["c"], domain=OWN)])
    given = weights("LSTM")
    constants = {**given, "w": given["W"].swapaxes(1, 2)}
    constants.pop("W")
    call = onnx.helper.make_node("make", ["w"], ["W"], domain=OWN)
    made = model([call, lstm()], constants, functions=[inner, outer], domains=[OWN])
    assert_parameters(from_onnx(made), plain())


def test_nodes_that_cannot_be_taken_are_left() -> None:
    bad = lstm("Z", "bad", activations=["Sigmoid", "Tanh", "Relu"])
    fed = lstm("V", "fed", ("X", "W", "nowhere", "B"))
    made = model([lstm(), bad, fed], weights("LSTM"), outputs=["Y", "Z", "V"])
    with pytest.raises(ValueError, match="activations of node 'bad'"):
        from_onnx(made)
    with pytest.warns(UserWarning) as caught:
        layers = from_onnx(made, skip_unsupported=True)
    assert list(layers) == ["lstm"]
    assert_parameters(layers["lstm"], plain())
    told = [str(one.message) for one in caught]
    assert len(told) == 2
    assert told[0].startswith("node 'bad' is left out: activations of node 'bad' must be")
    assert told[1].startswith(
        "node 'fed' is left out: R of node 'fed' must be an initializer of the model or computed from such"
        " alone; 'nowhere' is"
    )
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="activations of node 'bad'"):
        from_onnx(made, "bad", skip_unsupported=True)
    with pytest.raises(TypeError, match="skip_unsupported must be True or False, not int"):
        from_onnx(made, skip_unsupported=1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (model([node("Relu", ["X"], ["Y"])], {}), "it has none, nor anything else that looks recurrent"),
        (
            model(
                [onnx.helper.make_node("AttnLSTM", ["X"], ["Y"], "attn", domain="com.microsoft")],
                {},
                domains=["com.microsoft"],
            ),
            "it has none, but com.microsoft::AttnLSTM 'attn'$",
        ),
        (
            model([node("Gemm", ["X", "rnn.weight_hh"], ["Y"], "gemm")], {}),
            "it has none, but Gemm 'gemm' with the weight 'rnn.weight_hh', of a cell written out",
        ),
        (
            model(
                [node("Identity", ["X"], ["Y"])],
                {},
                functions=[function("f", ["x"], ["y"], [lstm("y")])],
                domains=[OWN],
            ),
            "it has none, but LSTM 'lstm' in function 'own::f', which nothing calls",
        ),
        (
            model(
                [
                    choice(
                        "if",
                        graph([node("Scan", ["X"], ["T"], "scan", num_scan_inputs=1)], [], ["T"], {}),
                        graph([], [], ["X"], {}),
                    )
                ],
                {},
            ),
            "it has none, but Scan 'scan' in then_branch of 'if'",
        ),
    ],
)
def test_a_model_without_recurrent_nodes_says_what_it_has(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match="model_or_node must have an RNN, LSTM or GRU node in its graph; " + message):
        from_onnx(made)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


HUGE = integers(2**40, 2**20)
GIVEN = {name: weights("LSTM")[name] for name in ("R", "B")}
# What W is made of, and what the error says after the node's name.
HOSTILE: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "a huge constant": ([node("ConstantOfShape", ["s"], ["W"])], {"s": HUGE}, "takes .* elements"),
    "a large constant": ([node("ConstantOfShape", ["s"], ["W"])], {"s": integers(2**25)}, "takes .* elements"),
    "Expand": ([node("Expand", ["a", "s"], ["W"])], {"a": np.float32(1), "s": HUGE}, "takes .* elements"),
    "Tile": ([node("Tile", ["a", "s"], ["W"])], {"a": np.ones((1, 1), np.float32), "s": HUGE}, "takes .* elements"),
    "Range": (
        [node("Range", ["a", "b", "c"], ["W"])],
        {"a": np.float32(0), "b": np.float32(1e9), "c": np.float32(1e-9)},
        "takes .* elements",
    ),
    "a product": (
        [node("MatMul", ["a", "b"], ["W"])],
        {"a": np.ones((2**14, 1), np.float32), "b": np.ones((1, 2**14), np.float32)},
        "takes .* elements",
    ),
    "Pad": (
        [node("Pad", ["a", "s"], ["W"])],
        {"a": np.ones(1, np.float32), "s": integers(0, 2**50)},
        "takes .* elements",
    ),
    "OneHot": (
        [node("OneHot", ["i", "d", "v"], ["W"])],
        {"i": integers(1), "d": np.array(2**50), "v": np.zeros(2, np.float32)},
        "takes .* elements",
    ),
    "doubling": (
        [node("Concat", [f"a{i}"] * 4, [f"a{i + 1}"], axis=0) for i in range(30)] + [node("Identity", ["a30"], ["W"])],
        {"a0": np.ones(1, np.float32)},
        "takes .* elements",
    ),
    "itself": ([node("Add", ["W", "a"], ["W"])], {"a": np.float32(1)}, "'W' is computed from itself"),
    "a ring": (
        [node("Neg", ["b"], ["W"]), node("Neg", ["W"], ["b"])],
        {},
        "is computed from itself",
    ),
    "a wrong shape": (
        [node("Reshape", ["a", "s"], ["W"])],
        {"a": np.ones(3, np.float32), "s": integers(2, 2)},
        "cannot be computed",
    ),
    "too few inputs": ([node("Add", ["a"], ["W"])], {"a": np.ones(3, np.float32)}, "cannot be computed"),
    "none": ([node("Expand", [], ["W"])], {}, "cannot be computed"),
    "text": ([node("Constant", [], ["W"], value_string="W")], {}, "does not hold numbers|cannot be computed"),
    "a wrong rank": ([node("Identity", ["a"], ["W"])], {"a": np.ones((2, 2, 2, 2), np.float32)}, "have shape"),
    "nothing": ([], {}, "'W' is nowhere in the model"),
    "an output too many": ([node("Split", ["a"], ["", "", "W"], axis=0)], {"a": np.ones(1, np.float32)}, "'W'"),
    "no such branch": ([node("If", ["a"], ["W"])], {"a": np.array(True)}, "has no then_branch"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_errors_that_name_the_node(name: str) -> None:
    nodes, constants, message = HOSTILE[name]
    with pytest.raises(ValueError, match=f"W of node 'lstm' must .*({message})"):
        from_onnx(model([*nodes, lstm()], {**GIVEN, **constants}))


def test_a_chain_of_any_length() -> None:
    nodes = [node("Identity", [f"w{i}"], [f"w{i + 1}"]) for i in range(3000)]
    constants = {**weights("LSTM"), "w0": weights("LSTM")["W"]}
    made = model([*nodes[::-1], lstm(inputs=("X", "w3000", "R", "B"))], constants)
    assert_parameters(from_onnx(made), plain())


def call(name: str, out: str = "y") -> Any:
    return onnx.helper.make_node(name, ["x"], [out], domain=OWN)


def test_functions_that_call_themselves() -> None:
    for functions in (
        [function("f", ["x"], ["y"], [call("f")])],
        [function("f", ["x"], ["y"], [call("g")]), function("g", ["x"], ["y"], [call("f"), lstm("z")])],
    ):
        made = model([lstm(), call("f", "out")], weights("LSTM"), functions=functions, domains=[OWN])
        with pytest.raises(ValueError, match="must not have functions that call themselves: own::f"):
            from_onnx(made)


def test_functions_that_grow() -> None:
    """Each calls the next twice: nobody could list the nodes."""
    for leaf, message in ((lstm("y", "leaf", ("x", "W", "R")), "at most"), (node("Neg", ["x"], ["y"]), None)):
        functions = [function(f"f{i}", ["x"], ["y"], [call(f"f{i + 1}", "a"), call(f"f{i + 1}")]) for i in range(40)]
        functions.append(function("f40", ["x"], ["y"], [leaf]))
        made = model([lstm(), call("f0", "out")], weights("LSTM"), functions=functions, domains=[OWN])
        if message is None:
            assert_parameters(from_onnx(made), plain())  # there is none to be listed
            continue
        with pytest.raises(ValueError, match=message):
            from_onnx(made)


def test_functions_within_functions() -> None:
    functions = [function(f"f{i}", ["x"], ["y"], [call(f"f{i + 1}")]) for i in range(300)]
    functions.append(function("f300", ["x"], ["y"], [node("Neg", ["x"], ["y"])]))
    made = model([lstm(), call("f0", "out")], weights("LSTM"), functions=functions, domains=[OWN])
    with pytest.raises(ValueError, match="must nest calls at most 64 deep"):
        from_onnx(made)


def test_a_state_that_is_too_large_is_an_error() -> None:
    nodes = [node("ConstantOfShape", ["s"], ["h"]), lstm(inputs=("X", "W", "R", "B", "", "h"))]
    with pytest.raises(ValueError, match=r"initial_h of node 'lstm' cannot be had: ConstantOfShape .* takes"):
        from_onnx(model(nodes, {**weights("LSTM"), "s": HUGE}))


@pytest.mark.parametrize("seed", range(30))
def test_damaged_models(seed: int) -> None:
    """Bytes of a good model with some of them changed: a layer or one of the library's errors, nothing else."""
    rng = np.random.default_rng(seed)
    good = bytearray(two_calls().SerializeToString())
    for place in rng.integers(0, len(good), int(rng.integers(1, 6))):
        good[place] = int(rng.integers(256))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            layers = from_onnx(bytes(good))
        except (ValueError, TypeError):
            return
    assert all(isinstance(one, fr.LSTM) for one in (layers.values() if isinstance(layers, dict) else [layers]))


def test_sparse_tensors_of_any_size() -> None:
    made = model([lstm()], GIVEN)
    one = onnx.helper.make_sparse_tensor(tensor("W", np.ones(1, np.float32)), tensor("i", integers(0)), [2**40, 3])
    made.graph.sparse_initializer.append(one)
    with pytest.raises(ValueError, match=r"W of node 'lstm' must .*elements"):
        from_onnx(made)
