"""What a model in Python takes and gives: as its configuration and its class say, and checked in what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.errors import Internal, InvalidArgument
from roost.core.tensors import DATATYPE_OF_CONFIG, DATATYPES, Signature, Tensor, TensorSpec, from_array
from roost.runtimes.python.model import array_of

_OF_VALUES = {"int32_false_true": "TYPE_INT32", "fp32_false_true": "TYPE_FP32", "bool_false_true": "TYPE_BOOL"}


def signature_of_config(config: Mapping[str, Any]) -> Signature:
    """The inputs and outputs that a configuration lists, in Triton's JSON; none where it lists none.

    Raises:
        InvalidArgument: If one has no datatype that there is.
    """
    batch = (-1,) if int(config.get("max_batch_size", 0)) > 0 else ()
    inputs = [_spec_of_config(item, batch) for item in config.get("input", ())]
    outputs = [_spec_of_config(item, batch) for item in config.get("output", ())]
    if "sequence_batching" in config:  # clients do not see what only the server gives and takes
        inputs += _own(config["sequence_batching"], "input_name", batch) if inputs else []
        known = {spec.name for spec in outputs}
        own = _own(config["sequence_batching"], "output_name", batch) if outputs else []
        outputs += [spec for spec in own if spec.name not in known]
    return Signature(tuple(inputs), tuple(outputs))


def _own(batching: Mapping[str, Any], side: str, batch: tuple[int, ...]) -> list[TensorSpec]:
    """The controls and states that a model takes, or the states that it gives."""
    controls = batching.get("control_input", ()) if side == "input_name" else ()
    rows = [
        {"name": item["name"], "dims": [1], "data_type": _datatype_of_control(control)}
        for item in controls
        for control in item.get("control", ())
    ]
    rows += [{**state, "name": state[side]} for state in batching.get("state", ())]
    return [_spec_of_config(row, batch) for row in rows]


def _datatype_of_control(control: Mapping[str, Any]) -> str:
    for field, datatype in _OF_VALUES.items():
        if control.get(field):
            return datatype
    return str(control.get("data_type", ""))


def _spec_of_config(item: Mapping[str, Any], batch: tuple[int, ...]) -> TensorSpec:
    datatype = DATATYPE_OF_CONFIG.get(item.get("data_type", ""))
    if datatype is None:
        raise InvalidArgument(f"the configuration does not say what datatype '{item.get('name')}' has")
    reshape = item.get("reshape")
    dims = reshape.get("shape", ()) if reshape is not None else item.get("dims", ())
    shape = (*batch, *(int(dim) for dim in dims))
    return TensorSpec(str(item["name"]), datatype.name, shape, bool(item.get("optional", False)))


def specs_of_class(rows: Mapping[str, tuple[str, Sequence[int]]], what: str) -> tuple[TensorSpec, ...]:
    """The tensors that a class lists.

    Args:
        rows: Datatype and shape by name.
        what: What the class calls them, for error texts.

    Raises:
        InvalidArgument: If the table is not as it should be.
    """
    specs = []
    try:
        for name, (datatype, shape) in rows.items():
            specs.append(TensorSpec(str(name), DATATYPES[datatype].name, tuple(int(dim) for dim in shape)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidArgument(
            f"'{what}' of the model's class is not a table like {{'name': ('FP32', [-1, 16])}}"
        ) from None
    return tuple(specs)


def missing_of(specs: Iterable[TensorSpec], given: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Outputs that somebody wants and that were not given."""
    present = set(given)
    return [spec.name for spec in specs if spec.name not in present and (not wanted or spec.name in wanted)]


class Answers:
    """Makes tensors of what a model answers, if that is what it said that it would.

    Args:
        outputs: What it gives.
    """

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self._outputs = outputs
        self._specs = {spec.name: spec for spec in outputs}

    def tensors(self, given: object, wanted: Sequence[str], *, may_miss: bool = False) -> list[Tensor]:
        """The outputs that are wanted.

        Args:
            given: What the model has returned; should be a mapping.
            wanted: Names; empty: all.
            may_miss: Whether it may leave some of them out.

        Raises:
            Internal: If names, datatypes or shapes are wrong.
        """
        if not isinstance(given, Mapping):
            raise Internal(f"the model answered with {_kind(given)}, not with a table of arrays by output name")
        unknown = [name for name in given if name not in self._specs]
        if unknown:
            raise Internal(f"the model gave an output {str(unknown[0])!r}, which it does not have")
        missing = missing_of(self._outputs, given, wanted)
        if missing and not may_miss:
            raise Internal(f"the model did not give output '{missing[0]}'")
        return [self._tensor(name, value) for name, value in given.items() if not wanted or name in wanted]

    def _tensor(self, name: str, value: Any) -> Tensor:
        spec = self._specs[name]
        try:
            array = _array(value, spec.datatype)
        except (TypeError, ValueError, OverflowError) as error:
            raise Internal(f"output '{name}' should be {spec.datatype}: {error}") from None
        if not _fits(array.shape, spec.shape):
            raise Internal(f"output '{name}' should have shape {list(spec.shape)}, it has {list(array.shape)}")
        return from_array(name, spec.datatype, array)


def _array(value: Any, datatype: str) -> npt.NDArray[Any]:
    dtype = DATATYPES[datatype].dtype
    if dtype is None:
        array = np.asarray(value, object) if not isinstance(value, np.ndarray) else value
        if array.dtype.kind not in "OSU":
            raise TypeError(f"it is {array.dtype}")
        return array.astype(object)
    if not isinstance(value, np.ndarray):
        return array_of(value, dtype)
    if datatype == "BF16" and value.dtype.name == "bfloat16":
        return value.view(dtype)
    if value.dtype != dtype:
        raise TypeError(f"it is {value.dtype}")
    return value


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(d in (-1, s) for s, d in zip(shape, declared, strict=True))


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
