from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.runtimes.pytorch.archives import Kind, kind_of, no_archive
from roost.runtimes.pytorch.gate import check_export, check_script

from tests.torch_archive import Entries

TREE = json.dumps(
    [1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": None, "context": None}]}]
)
PROGRAM: dict[str, Any] = {
    "graph_module": {
        "graph": {
            "inputs": [{"as_tensor": {"name": "x"}}],
            "nodes": [
                {
                    "target": "torch.ops.aten.add.Tensor",
                    "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
                    "metadata": {"stack_trace": "File model.py, in forward: x + f(1)"},
                },
                {"target": "_operator.mul", "inputs": [{"name": "a", "arg": {"as_string": "any (text)"}}]},
            ],
            "tensor_values": {"x": {"sizes": [{"as_expr": {"expr_str": "Symbol('s7', positive=True, integer=True)"}}]}},
            "custom_obj_values": {},
        },
        "module_call_graph": [{"fqn": "", "signature": {"in_spec": TREE, "out_spec": TREE}}],
    },
    "range_constraints": {"s7": {"min_val": 0, "max_val": 9}, "2*s7": {"min_val": 0, "max_val": None}},
    "torch_version": "2.13.0+cpu",
    "guards_code": ["L['args'][0].size()[0] <= 9"],
}
WEIGHTS: dict[str, Any] = {"config": {"head.weight": {"path_name": "weight_0", "is_param": True, "use_pickle": False}}}


def archive(program: Any = PROGRAM, weights: Any = WEIGHTS, **more: bytes) -> Entries:
    entries = Entries(archive_format=b"pt2", **more)
    entries["models/model.json"] = json.dumps(program).encode()
    entries["data/weights/model_weights_config.json"] = json.dumps(weights).encode()
    entries["data/weights/weight_0"] = b"\0" * 16
    entries["data/sample_inputs/model.pt"] = b""
    return entries


def with_value(where: str, value: Any) -> Any:
    """The program with something else in one place, which is written like ``a/0/b``."""
    program = copy.deepcopy(PROGRAM)
    *path, last = where.split("/")
    part: Any = program
    for key in path:
        part = part[int(key)] if isinstance(part, list) else part[key]
    part[int(last) if isinstance(part, list) else last] = value
    return program


GRAPH = "graph_module/graph"
SPEC = "graph_module/module_call_graph/0/signature/in_spec"
SIZE = f"{GRAPH}/tensor_values/x/sizes/0/as_expr/expr_str"


def test_a_program_of_operators_passes() -> None:
    check_export(archive())
    assert kind_of(archive()) is Kind.EXPORT


@pytest.mark.parametrize(
    "program",
    [
        with_value(f"{GRAPH}/nodes/0/target", "torch.os.system"),
        with_value(f"{GRAPH}/nodes/0/target", "torch.ops.aten.from_file.default"),
        with_value(f"{GRAPH}/nodes/0/target", "torch.ops.load_library"),
        with_value(f"{GRAPH}/nodes/0/target", "torch.ops.mine.op.default"),
        with_value(f"{GRAPH}/nodes/0/target", "torch.ops.higher_order.call_torchbind"),
        with_value(f"{GRAPH}/nodes/0/inputs/0/arg", {"as_operator": "builtins.exec"}),
        with_value(f"{GRAPH}/nodes/0/inputs/0/arg", {"as_custom_obj": {"name": "o", "class_fqn": "c"}}),
        with_value(f"{GRAPH}/inputs/0/as_tensor/name", "x=print(1)"),
        with_value(f"{GRAPH}/inputs/0/as_tensor/name", "x\n"),
        with_value(f"{GRAPH}/tensor_values", {"x), print(1": {}}),
        with_value(f"{GRAPH}/tensor_values", {"metadata": {"sizes": [{"as_expr": {"expr_str": "exec('1')"}}]}}),
        with_value(f"{GRAPH}/nodes/0/inputs/0/arg", {"as_string_to_argument": {"metadata": {"as_operator": "exec"}}}),
        with_value("range_constraints", {"exec('1')": {}}),
        with_value(SIZE, "exec('1')"),
        with_value(SIZE, "Symbol('exec(1)')"),
        with_value(SIZE, "Symbol.mro()"),
        with_value(SIZE, "(lambda: 1)()"),
        with_value(SIZE, "[x for x in y]"),
        with_value(SIZE, "F'{exec(1)}'"),
        with_value(SIZE, "Symbol('s7'"),
        with_value(SPEC, "nothing that is JSON"),
        with_value(SPEC, json.dumps([1, {"type": "builtins.dict", "context": json.dumps(["a=print(1)"])}])),
        with_value(SPEC, json.dumps([1, {"type": "collections.defaultdict", "children_spec": []}])),
        with_value(SPEC, json.dumps([1, {"context": json.dumps({"__enum__": True, "fqn": "os:environ"})}])),
    ],
)
def test_programs_that_are_more(program: Any) -> None:
    with pytest.raises(FailedPrecondition, match="needs --allow-code"):
        check_export(archive(program))


@pytest.mark.parametrize(
    "expression",
    ["s7", "2*s7 + 1", "Add(Integer(2), Symbol('s7', integer=True))", "-Max(1, s7)", "s7 > 3", "Eq(s7, 2)"],
)
def test_expressions_over_sizes(expression: str) -> None:
    check_export(archive(with_value(SIZE, expression)))


@given(st.text(st.sampled_from("xS7(),'=\"[]{}.:; \n+_"), min_size=1, max_size=12))
def test_no_name_with_which_something_could_be_called(name: str) -> None:
    try:
        check_export(archive(with_value(f"{GRAPH}/inputs/0/as_tensor/name", name)))
    except FailedPrecondition:
        return
    assert not set(name) & set("()[]{}'\", ;\n")


@pytest.mark.parametrize(
    ("key", "value"), [("use_pickle", True), ("path_name", "custom_obj_0"), ("path_name", "opaque_obj_0")]
)
def test_weights_that_are_objects(key: str, value: Any) -> None:
    weights = copy.deepcopy(WEIGHTS)
    weights["config"]["head.weight"][key] = value
    with pytest.raises(FailedPrecondition, match="needs --allow-code"):
        check_export(archive(weights=weights))


@pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/custom_obj_0", "data/constants/model.pt"])
def test_entries_that_are_pickles(name: str) -> None:
    with pytest.raises(FailedPrecondition, match="unknown entry"):
        check_export(archive(**{name: b""}))


@pytest.mark.parametrize("weights", [[], {"config": []}, {"config": {"a": 1}}])
def test_lists_of_weights_that_are_none(weights: Any) -> None:
    with pytest.raises(InvalidArgument, match="broken"):
        check_export(archive(weights=weights))


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("return torch.add(x, self.saved)", False),
        ("return (self.save_path, torch.from_numpy(x))", False),
        ("_packed : __torch__.torch.classes.quantized.LinearPackedParamsBase", False),
        ("return torch.from_file('/etc/passwd', False, 9)", True),
        ("return x . from_file ('/etc/passwd')", True),
        ("torch.save(x, '/tmp/x')", True),
        ("f = torch.from_file # a comment\n", True),
        ('(getattr(torch, "from\\x5ffile"))', True),
        ('getattr(torch, "from_file")', True),
        ('_0 = getattr(self.body, "0")', False),
        ("ops.prim.RaiseException(x)", False),
        ("ops.c10d.send(x)", True),
        ("(ops. # a comment\n c10d.send(x))", True),
        ("store : __torch__.torch.classes.dist_c10d.Store", True),
    ],
)
def test_script_that_reaches_for_more(source: str, is_refused: bool) -> None:
    entries = Entries({"code/__torch__/m.PY": source.encode(), "constants.pkl": b"", "data.pkl": b""})
    assert kind_of(entries) is Kind.SCRIPT
    if not is_refused:
        check_script(entries)
        return
    with pytest.raises(FailedPrecondition, match="needs --allow-code"):
        check_script(entries)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["archive_format", "models/m.json", "data/aotinductor/m/m.so"], Kind.COMPILED),
        (["data/aotinductor/m/m.so"], Kind.COMPILED),
        (["serialized_exported_program.json", "version"], Kind.OLD_EXPORT),
    ],
)
def test_archives_that_are_code(names: list[str], kind: Kind) -> None:
    assert kind_of(Entries(dict.fromkeys(names, b""))) is kind


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data.pkl", "data/0", "version"], "state dict or a pickled module.*torch.export.save"),
        (["data.pkl", ".data/extern_modules"], "torch.package"),
        (["word/document.xml"], "not a model of PyTorch"),
    ],
)
def test_archives_that_are_no_programs(names: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        kind_of(Entries(dict.fromkeys(names, b"")))


def test_files_that_are_no_archives() -> None:
    assert "a pickle, written by torch.save" in no_archive(b"\x80\x02\x8a\nl\xfc").message
    assert "broken or no model" in no_archive(b"this is no model").message
