"""TorchScript: programs that PyTorch's own interpreter runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from roost.core.errors import InvalidArgument
from roost.runtimes.pytorch.devices import CPU
from roost.runtimes.pytorch.naming import Argument, Form
from roost.runtimes.pytorch.program import Program

_FORMS: Mapping[str, Form] = {
    "Tensor": Form.TENSOR,
    "int": Form.INTEGER,
    "float": Form.NUMBER,
    "bool": Form.FLAG,
    "str": Form.TEXT,
    "List[str]": Form.TEXTS,
}
_TENSOR = "Tensor"


def load_script(path: str, device: torch.device = CPU) -> Program:
    """Loads TorchScript for inference, wherever it was saved.

    Raises:
        RuntimeError: If it is broken, or has operators that there are not.
        InvalidArgument: If it takes what can't be sent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # told to whoever exports models, not to who serves them
        module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        changed, keeps_state = _effects(module)
    # The method alone keeps the program alive, without the Python objects around it, which are cycles.
    method = module.forward
    schema = method.schema
    arguments = [
        Argument(item.name, _form(item), item.has_default_value(), is_changed=position in changed)
        for position, item in enumerate(schema.arguments[1:])  # without self
    ]
    names = [argument.name for argument in arguments]

    def call(values: Mapping[int, Any]) -> Any:
        return method(**{names[position]: value for position, value in values.items()})

    has_keys = schema.returns[0].type.kind() == "DictType"
    return Program(call, arguments, has_keys=has_keys, keeps_state=keeps_state, device=device)


def _form(argument: Any) -> Form:
    type_ = argument.type
    if type_.kind() == "OptionalType":
        type_ = type_.getElementType()
    form = _FORMS.get(type_.annotation_str)
    if form is None:
        raise InvalidArgument(
            f"argument '{argument.name}' of the model is a {type_.annotation_str}, which can't be sent"
        )
    return form


def _effects(module: Any) -> tuple[frozenset[int], bool]:
    """Which arguments a run writes to, and whether it writes to the module.

    Freezing makes constants of all attributes but those that are written to, and leaves out what never runs, such as
    the updates of statistics in training.
    """
    everything = frozenset(range(len(module.forward.schema.arguments) - 1))
    try:
        frozen = torch.jit.freeze(module, optimize_numerics=False)
        graph = frozen.inlined_graph
        keeps_state = bool(graph.findAllNodes("prim::SetAttr") or graph.findAllNodes("prim::GetAttr"))
        aliases = graph.alias_db()
        inputs = list(graph.inputs())[1:]
        changed = frozenset(i for i, value in enumerate(inputs) if _is_tensor(value) and aliases.has_writers(value))
    except (RuntimeError, AttributeError):  # what it does can't be told
        return everything, True
    return changed, keeps_state


def _is_tensor(value: Any) -> bool:
    return _TENSOR in value.type().annotation_str
