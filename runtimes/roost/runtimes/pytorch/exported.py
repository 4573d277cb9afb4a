"""Programs of ``torch.export``: graphs of operators, which say what they take and give."""

from __future__ import annotations

import functools
import gc
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from roost.core.errors import FailedPrecondition, InvalidArgument
from roost.core.tensors import TensorSpec
from roost.runtimes.pytorch.archives import Archive
from roost.runtimes.pytorch.devices import CPU
from roost.runtimes.pytorch.naming import Argument, Form
from roost.runtimes.pytorch.program import Program
from roost.runtimes.pytorch.sizes import Sizes
from roost.runtimes.pytorch.values import DATATYPE_OF
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive._package import load_pt2
from torch.fx.graph import CodeGen

_SAMPLES_FOLDER = "data/sample_inputs/"


def check_samples(archive: Archive) -> None:
    """Refuses sample inputs that are more than tensors: PyTorch unpickles them with the program.

    Raises:
        FailedPrecondition: If they are.
    """
    for name in archive.get_all_records():
        if name.startswith(_SAMPLES_FOLDER) and (samples := archive.get_record(name)):
            try:
                torch.load(io.BytesIO(samples), weights_only=True)
            except (RuntimeError, pickle.UnpicklingError):
                raise FailedPrecondition(
                    "the model is not only data: its sample inputs are objects; it needs --allow-code"
                ) from None


def load_export(path: str, device: torch.device = CPU) -> Program:
    """Loads an exported program in the format of today.

    Raises:
        RuntimeError: If it is broken; PyTorch also raises errors of other kinds then.
        InvalidArgument: If it takes or gives what can't be sent.
    """
    # Not torch.export.load: where this fails, that tries the format of old, which is pickles.
    programs = load_pt2(path).exported_programs
    if not programs:
        raise InvalidArgument("the archive has no program")
    return _program(programs.get("model") or next(iter(programs.values())), device)


def load_old_export(path: str, device: torch.device = CPU) -> Program:
    """Loads an exported program in the format of old, which may run any code.

    Raises:
        RuntimeError: See ``load_export``.
        InvalidArgument: Likewise.
    """
    return _program(torch.export.load(path), device)


def _program(exported: torch.export.ExportedProgram, device: torch.device) -> Program:
    if device != CPU:  # where it was exported is written into its graph
        exported = move_to_device_pass(exported, device)
    # The checks of guards are Python code out of the archive.
    module = exported.module(check_guards=False)
    # However its values are nested outside, the graph takes and gives them one by one: so can whoever calls it.
    module.graph.set_codegen(CodeGen())
    module.recompile()
    constants, arguments = _arguments(exported)
    places = [position for position, constant in enumerate(constants) if constant is None]
    flat = [constant.value if constant is not None else None for constant in constants]
    # Not by calling the module: that looks at all sizes as well, and takes as long for it as a small net for all else.
    sizes = Sizes(exported)
    forward = module.forward
    results, kept = _results(exported)

    def call(values: Mapping[int, Any]) -> Any:
        sizes.check(values)
        given = list(flat)
        for position, value in values.items():
            given[places[position]] = value
        found = forward(*given)
        return [found[position] for position in kept]

    keeps_state = bool(exported.graph_signature.buffers_to_mutate)
    # The module has them now.
    exported.state_dict.clear()
    exported.constants.clear()
    exported.example_inputs = None
    _settle()
    return Program(call, arguments, results, keeps_state=keeps_state, release=lambda: _release(module), device=device)


def _release(module: torch.nn.Module) -> None:
    """Lets go of the tensors of a module, which is itself left to the garbage collector: graphs are full of cycles."""
    for part in module.modules():
        for attributes in (part._parameters, part._buffers, vars(part)):
            for name in [name for name, value in attributes.items() if isinstance(value, torch.Tensor)]:
                del attributes[name]


@functools.cache
def _settle() -> None:
    """Spares the garbage collector what the first load of a process has imported for good: 50 ms each time."""
    gc.collect()
    gc.freeze()


def _arguments(exported: torch.export.ExportedProgram) -> tuple[list[ConstantArgument | None], list[Argument]]:
    """What the program is called with, in order: constants that it was exported with, None for each argument."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    changed = set(exported.graph_signature.user_inputs_to_mutate.values())
    constants: list[ConstantArgument | None] = []
    arguments = []
    for spec in exported.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            constants.append(spec.arg)
            continue
        constants.append(None)
        name = spec.arg.name
        value = nodes[name].meta["val"]
        form = _form(value, name)
        described = _described(name, value) if form is Form.TENSOR else TensorSpec(name, form.value, (1,))
        arguments.append(Argument(name, form, spec=described, is_changed=name in changed))
    return constants, arguments


def _form(value: Any, name: str) -> Form:
    if isinstance(value, torch.Tensor):
        return Form.TENSOR
    if isinstance(value, torch.SymBool):
        return Form.FLAG
    if isinstance(value, torch.SymInt):
        return Form.INTEGER
    if isinstance(value, torch.SymFloat):
        return Form.NUMBER
    raise InvalidArgument(f"argument '{name}' of the model is a {type(value).__name__}, which can't be sent")


def _described(name: str, value: torch.Tensor) -> TensorSpec:
    if value.dtype not in DATATYPE_OF:
        raise InvalidArgument(f"'{name}' of the model is a tensor of {value.dtype}, which can't be served")
    return TensorSpec(name, DATATYPE_OF[value.dtype], tuple(d if isinstance(d, int) else -1 for d in value.shape))


def _results(exported: torch.export.ExportedProgram) -> tuple[tuple[TensorSpec, ...], list[int]]:
    """What the program gives, without what is None, and which of its results those are.

    They are named by its keys if it gives a plain dict: nodes of graphs have names that mean nothing.
    """
    out_spec = exported.call_spec.out_spec
    keys = out_spec.context if out_spec is not None and out_spec.type is dict else []
    nodes = {node.name: node for node in exported.graph.nodes}
    args = [s.arg for s in exported.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    has_keys = len(keys) == len(args)
    results: list[TensorSpec] = []
    kept: list[int] = []
    for position, arg in enumerate(args):
        value = arg.value if isinstance(arg, ConstantArgument) else nodes[arg.name].meta["val"]
        if value is not None:
            results.append(_result(str(keys[position]) if has_keys else f"OUTPUT__{len(kept)}", value))
            kept.append(position)
    return tuple(results), kept


def _result(name: str, value: Any) -> TensorSpec:
    if isinstance(value, torch.Tensor):
        return _described(name, value)
    if isinstance(value, bool | torch.SymBool):
        return TensorSpec(name, "BOOL", ())
    if isinstance(value, int | torch.SymInt):
        return TensorSpec(name, "INT64", ())
    if isinstance(value, float | torch.SymFloat):
        return TensorSpec(name, "FP64", ())
    raise InvalidArgument(f"result '{name}' of the model is a {type(value).__name__}, which can't be served")
