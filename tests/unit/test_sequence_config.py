"""What ``sequence_batching`` of a configuration says, what is refused of it, and who sees which tensor."""

from __future__ import annotations

import json

import pytest
from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.core.tensors import Signature, TensorSpec
from roost.registry_client.batching import batch_policy
from roost.registry_client.load_options import INPUTS, OUTPUTS, load_options
from roost.registry_client.model_config import complete_config, effective_signature, parse_config_text
from roost.registry_client.sequences import ControlKind, SequencePolicy, initial_bytes
from roost.registry_client.warmup import warmup_runs
from roost.runtimes.python.contract import signature_of_config

CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0.5, 2 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
"""
STATE = """
  state {
    input_name: "in" output_name: "out" data_type: TYPE_FP32 dims: [ 2, -1 ]
    initial_state { name: "first" data_type: TYPE_FP32 dims: [ 2, 3 ] data_file: "first" }
  }
"""
TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
OWN = Signature(
    (
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("START", "INT32", (-1, 1)),
        TensorSpec("READY", "FP32", (-1, 1)),
        TensorSpec("END", "BOOL", (-1, 1)),
        TensorSpec("ID", "UINT64", (-1, 1)),
        TensorSpec("in", "FP32", (-1, 2, -1)),
    ),
    (TensorSpec("y", "FP32", (-1, 4)), TensorSpec("out", "FP32", (-1, -1, 3))),
)


def policy_of(text: str, *, rest: str = "") -> SequencePolicy:
    policy = parse_config_text(f"sequence_batching {{ {text} }} {rest}", "m").sequences
    assert policy is not None
    return policy


def test_what_is_said() -> None:
    policy = policy_of(CONTROLS + STATE, rest="max_batch_size: 4")
    assert [(c.name, c.kind, c.datatype) for c in policy.controls] == [
        ("START", ControlKind.START, "INT32"),
        ("READY", ControlKind.READY, "FP32"),
        ("END", ControlKind.END, "BOOL"),
        ("ID", ControlKind.CORRELATION_ID, "UINT64"),
    ]
    assert [c.true for c in policy.controls] == [b"\1\0\0\0", b"\0\0\0\x40", b"\1", b""]
    (state,) = policy.states
    assert (state.dims, state.initial_dims, state.initial_file) == ((2, -1), (2, 3), "first")
    assert not policy.keeps_inside
    assert policy.idle_s == 1.0
    assert policy_of("max_sequence_idle_microseconds: 5000").idle_s == 0.005


@pytest.mark.parametrize(
    ("text", "rest", "is_direct", "candidates"),
    [
        ("", "", True, 1),
        ("direct { }", "max_batch_size: 4", True, 4),
        (STATE, "max_batch_size: 4 instance_group { count: 2 }", True, 8),
        (CONTROLS, "max_batch_size: 4 instance_group { count: 2 }", True, 4),
        ("oldest { max_candidate_sequences: 7 }", "max_batch_size: 4", False, 7),
        ("oldest { }", "max_batch_size: 4", False, 4),
    ],
)
def test_how_many_are_served_at_once(text: str, rest: str, is_direct: bool, candidates: int) -> None:
    policy = policy_of(text, rest=rest)
    assert (policy.is_direct, policy.candidates) == (is_direct, candidates)


def test_batches() -> None:
    oldest = "preferred_batch_size: 2 max_queue_delay_microseconds: 500 %s"
    text = f"sequence_batching {{ oldest {{ {oldest} }} }} max_batch_size: 4"
    policy = batch_policy(parse_config_text(text % "preserve_ordering: true", "m").config)
    assert (policy.preferred_rows, policy.max_delay_s, policy.preserve_ordering) == ((2,), 0.0005, True)
    assert batch_policy(parse_config_text(text % "", "m").config).is_plain


CORRID = "control { kind: CONTROL_SEQUENCE_CORRID data_type: %s }"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("iterative_sequence: true", "iterative_sequence is not supported"),
        ("control_input { }", "sequence batching control tensor must have a name for m"),
        (
            'control_input { name: "x" control { } }',
            "must specify either 'int32_false_true'.*CONTROL_SEQUENCE_START for m",
        ),
        (
            'control_input { name: "a" control { int32_false_true: 1 } }',
            "'int32_false_true' must have exactly 2 entries",
        ),
        (
            'control_input { name: "a" control { int32_false_true: [0, 1] fp32_false_true: [0, 1] } }',
            "must specify either",
        ),
        (
            2 * 'control_input { name: "a" control { int32_false_true: [0, 1] } }',
            "control tensor 'a' is specified for multiple control kinds for m",
        ),
        (CONTROLS + CONTROLS.replace('"START"', '"OTHER"'), "multiple CONTROL_SEQUENCE_START tensors for m"),
        ('control_input { name: "a" %s }' % (CORRID % "TYPE_FP32"), "unexpected data type TYPE_FP32"),
        (STATE.replace('"in"', '""'), "needs an input_name and an output_name"),
        (STATE + STATE, "named twice"),
        (STATE + CONTROLS.replace('"START"', '"in"'), "named twice"),
        (STATE.replace("TYPE_FP32 dims: [ 2, -1 ]", "TYPE_INT32 dims: [ 2, -1 ]"), "another data_type"),
        (STATE.replace("[ 2, 3 ]", "[ 2, -1 ]"), "must be positive, and fit"),
        (STATE.replace("[ 2, 3 ]", "[ 1, 3 ]"), "must be positive, and fit"),
        (STATE.replace('"first" data', '"first" data', 1).replace('file: "first"', 'file: "../first"'), "plain name"),
        (STATE.replace("[ 2, -1 ]", "[ 0, -1 ]"), "must be positive or -1"),
        ("oldest { max_candidate_sequences: -1 }", "must not be negative"),
        ("oldest { preferred_batch_size: 2 }", "preferred size must be <= max batch size 0, not 2"),
        ("direct { minimum_slot_utilization: 2 }", r"range \[0, 1\]"),
    ],
)
def test_what_is_refused(text: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        policy_of(text)


@pytest.mark.parametrize(
    ("text", "rest", "match"),
    [
        (STATE, 'input { name: "in" }', "'in' is filled in by the server"),
        (CONTROLS, 'input { name: "END" }', "'END' is filled in by the server"),
        (STATE, 'backend: "python" model_transaction_policy { decoupled: true }', "answer more than once"),
        ("", 'parameters { key: "roost.min_copies" value { string_value: "2" } }', "one copy"),
    ],
)
def test_what_does_not_go_together(text: str, rest: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        policy_of(text, rest=rest)


@pytest.mark.parametrize(("state", "most"), [("", 1), (STATE, None)])
def test_how_many_copies_there_may_be(state: str, most: int | None) -> None:
    assert parse_config_text(f"sequence_batching {{ {state} }}", "m").policy.max_copies == most


@pytest.mark.parametrize("listed", ["", TENSORS])
def test_clients_see_what_is_theirs(listed: str) -> None:
    description = parse_config_text(f"max_batch_size: 8 sequence_batching {{ {CONTROLS} {STATE} }} {listed}", "m")
    signature = effective_signature(description, OWN)
    assert [spec.name for spec in (*signature.inputs, *signature.outputs)] == ["x", "y"]
    config = complete_config(description, signature)
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert [item.name for item in config.input] == ["x"]
    shown = parse_config_text(
        f'max_batch_size: 8 sequence_batching {{ {CONTROLS} {STATE} }} output {{ name: "y" }} output {{ name: "out" }}',
        "m",
    )
    assert [spec.name for spec in effective_signature(shown, OWN).outputs] == ["y", "out"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("INT32 START", "INT32 OTHER"), "'START' of sequence_batching is not in the model"),
        (("INT32 START", "FP32 START"), "'START': sequence_batching says INT32, the model has FP32"),
        (("FP32 in", "FP32 in 1"), r"'in': sequence_batching makes its shape \[-1, 2, -1\], the model has \[-1, 1\]"),
    ],
)
def test_a_model_that_is_otherwise(change: tuple[str, str], match: str) -> None:
    datatype, name, *shape = change[1].split()
    before = change[0].split()[1]
    other = [
        TensorSpec(name, datatype, (-1, 1) if shape else spec.shape) if spec.name == before else spec
        for spec in OWN.inputs
    ]
    description = parse_config_text(f"max_batch_size: 8 sequence_batching {{ {CONTROLS} {STATE} }}", "m")
    with pytest.raises(InvalidArgument, match=match):
        effective_signature(description, Signature(tuple(other), OWN.outputs))


def test_what_workers_are_told() -> None:
    text = f'backend: "python" max_batch_size: 8 sequence_batching {{ {CONTROLS} {STATE} }} {TENSORS}'
    value = "value { data_type: TYPE_FP32 dims: 4 zero_data: true }"
    sample = f'model_warmup {{ name: "w" batch_size: 2 inputs {{ key: "x" {value} }} }}'
    description = parse_config_text(text + sample, "m")
    options = load_options(description, "1", allow_code=True)
    names = ["x", "START", "READY", "END", "ID", "in"]
    rows = json.loads(options[INPUTS])
    assert [row[0] for row in rows] == names
    assert rows[1:3] == [["START", "INT32", [-1, 1]], ["READY", "FP32", [-1, 1]]]
    assert rows[-1] == ["in", "FP32", [-1, 2, -1]]
    assert [row[0] for row in json.loads(options[OUTPUTS])] == ["y", "out"]
    signature = signature_of_config(json.loads(options["roost.model_config"]))
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [
        (name, datatype, tuple(shape)) for name, datatype, shape in rows
    ]
    assert [spec.name for spec in signature.outputs] == ["y", "out"]
    (run,) = warmup_runs(description.config)
    assert {name: given["shape"] for name, given in run["inputs"].items()} == {
        "x": [2, 4], **{name: [2, 1] for name in names[1:5]}, "in": [2, 2, 1]
    }  # fmt: skip


def test_initial_states_from_files() -> None:
    states = policy_of(STATE).states
    assert initial_bytes(states, lambda name: name.encode() + bytes(19)) == {"in": b"first" + bytes(19)}
    with pytest.raises(FailedPrecondition, match="has 2 bytes, its dims and data_type make 24"):
        initial_bytes(states, lambda _: b"12")
