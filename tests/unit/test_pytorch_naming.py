from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.tensors import TensorSpec
from roost.runtimes.pytorch.naming import Argument, Declared, Form, interface_of, match

X = TensorSpec("X", "FP32", (-1, 4))
Y = TensorSpec("Y", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("names", "own", "expected"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),  # by name, whatever the order
        (["INPUT__1", "INPUT__0"], ["a", "b"], [1, 0]),  # by number
        (["x__1"], ["a", "b"], [1]),
        (["left", "right"], ["a", "b"], [0, 1]),  # by order
        (["INPUT__1", "a"], ["a", "b"], [0, 1]),  # neither all by name nor all by number
        ([], ["a"], []),
    ],
)
def test_how_names_meet(names: list[str], own: list[str], expected: list[int]) -> None:
    assert match(names, own, "input") == expected


@pytest.mark.parametrize("names", [["INPUT__2"], ["a__0", "b__0"], ["one", "two", "three"]])
def test_names_that_meet_nothing(names: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="input"):
        match(names, ["a", "b"], "input")


@given(st.permutations(["a", "b", "c", "d"]), st.sampled_from(["name", "number"]))
def test_order_does_not_matter_where_names_say_enough(order: list[str], by: str) -> None:
    own = ["a", "b", "c", "d"]
    names = order if by == "name" else [f"INPUT__{own.index(name)}" for name in order]
    assert [own[position] for position in match(names, own, "input")] == order


def test_the_configuration_speaks_for_a_program_that_says_nothing() -> None:
    arguments = [Argument("x"), Argument("sr", Form.INTEGER), Argument("state", optional=True)]
    interface = interface_of(Declared((X,), (Y,)), arguments, None)
    assert [spec.name for spec in interface.signature.inputs] == ["X", "sr"]
    assert interface.signature.inputs[1] == TensorSpec("sr", "INT64", (1,))
    assert interface.arguments == {"X": 0, "sr": 1}
    assert interface.results == {"Y": 0}


def test_a_program_that_says_what_it_takes_needs_no_configuration() -> None:
    arguments = [Argument("x", spec=TensorSpec("x", "FP32", (-1, 4)))]
    results = [TensorSpec("OUTPUT__0", "FP32", (-1, 2))]
    own = interface_of(Declared(), arguments, results)
    assert [spec.name for spec in (*own.signature.inputs, *own.signature.outputs)] == ["x", "OUTPUT__0"]
    # Of a configuration only the names count: what else it says is compared with what is reported.
    other = Declared((TensorSpec("X", "FP64", (7,)),), (TensorSpec("Y", "", ()),))
    named = interface_of(other, arguments, results)
    assert named.signature.inputs == (TensorSpec("X", "FP32", (-1, 4)),)
    assert named.signature.outputs == (TensorSpec("Y", "FP32", (-1, 2)),)


def test_results_with_keys_are_found_by_them() -> None:
    results = [TensorSpec("sum", "FP32", (4,)), TensorSpec("difference", "FP32", (4,))]
    declared = Declared(outputs=(TensorSpec("difference", "FP32", (4,)),))
    assert interface_of(declared, [], results).results == {"sum": 0, "difference": 1}
    assert interface_of(declared, [], None, has_keys=True).results == {"difference": "difference"}
    renamed = Declared(outputs=(TensorSpec("OUTPUT__1", "FP32", (4,)),))
    assert interface_of(renamed, [], results).results == {"sum": 0, "OUTPUT__1": 1}


@pytest.mark.parametrize(
    ("declared", "argument", "message"),
    [
        (Declared((), (Y,)), Argument("x"), "does not say what its input 'x' is"),
        (Declared((X,), ()), Argument("x"), "does not say what its outputs are"),
        (Declared((TensorSpec("X", "", (-1, 4)),), (Y,)), Argument("x"), "needs a data_type"),
        (Declared((X,), (TensorSpec("Y", "", (-1, 2)),)), Argument("x"), "output 'Y' needs a data_type"),
        (Declared((TensorSpec("X", "BYTES", (4,)),), (Y,)), Argument("x"), "TYPE_STRING"),
        (Declared((X,), (Y,)), Argument("x", Form.TEXT), "BYTES in the model"),
        (Declared((X,), (Y,), max_batch_size=8), Argument("sr", Form.INTEGER), "max_batch_size to 0"),
    ],
)
def test_what_is_left_open_or_contradicts(declared: Declared, argument: Argument, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        interface_of(declared, [argument], None)


def test_what_the_router_passes_on() -> None:
    options = {
        "roost.inputs": json.dumps([["X", "FP32", [-1, 4]]]),
        "roost.outputs": json.dumps([["Y", "", []]]),
        "roost.max_batch_size": "8",
    }
    assert Declared.of(options) == Declared((X,), (TensorSpec("Y", "", ()),), 8)
    assert Declared.of({}) == Declared()
