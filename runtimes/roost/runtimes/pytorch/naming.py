"""Which input goes to which argument of a program, and which of its results is which output.

A program of PyTorch has arguments with names and results without; a configuration has names of its own. As Triton has
it, they meet by the names themselves, else by the number at the end of names like ``INPUT__0``, else by their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, Signature, TensorSpec

_NUMBERED = re.compile(r".*__(\d{1,4})", re.DOTALL)


class Form(Enum):
    """In which form an argument wants its value; the datatype of an input for it, where only one will do."""

    TENSOR = ""
    INTEGER = "INT64"
    NUMBER = "FP64"
    FLAG = "BOOL"
    TEXT = "BYTES"
    TEXTS = "BYTES "  # many of them


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a program.

    Attributes:
        name: Its name.
        form: What it takes.
        optional: Whether it may be left out.
        spec: Datatype and shape, if the program says so.
        is_changed: Whether the program writes into the tensor that it is given.
    """

    name: str
    form: Form = Form.TENSOR
    optional: bool = False
    spec: TensorSpec | None = None
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class Declared:
    """What a configuration says of the model's tensors; shapes with the batch dimension, empty if it says nothing.

    Attributes:
        inputs: The inputs, datatypes may be empty.
        outputs: The outputs.
        max_batch_size: 0 if there is no batch dimension.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_batch_size: int = 0

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Declared:
        """Reads what the router passes on with a load."""
        return cls(
            _specs(options.get("roost.inputs", "[]")),
            _specs(options.get("roost.outputs", "[]")),
            int(options.get("roost.max_batch_size", "0") or 0),
        )


def _specs(text: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(name), str(datatype), tuple(shape)) for name, datatype, shape in json.loads(text))


def match(names: Sequence[str], own: Sequence[str], what: str) -> list[int]:
    """Says which of the program's arguments or results each configured name means.

    Args:
        names: The configuration's names.
        own: The program's names.
        what: What they are, for the message: ``input`` or ``output``.

    Raises:
        InvalidArgument: If there are more names than there is to be named, or a number is too high or comes twice.
    """
    if set(names) <= set(own):
        return [own.index(name) for name in names]
    numbers = [_NUMBERED.fullmatch(name) for name in names]
    if all(numbers):
        positions = [int(number[1]) for number in numbers if number]
        if len(set(positions)) < len(positions) or max(positions) >= len(own):
            raise InvalidArgument(
                f"{what}s {_listed(names)}: the numbers at their ends must differ and be below {len(own)}, how "
                f"many {what}s the model has"
            )
        return positions
    if len(names) > len(own):
        raise InvalidArgument(f"the config has {len(names)} {what}s, the model has {len(own)}: {_listed(own)}")
    return list(range(len(names)))


@dataclass(frozen=True, slots=True)
class Interface:
    """A program's tensors under the names that clients know.

    Attributes:
        signature: What the worker reports.
        arguments: Position of the argument that an input is for, by the input's name.
        results: Position of the result that an output is, by the output's name; its key where results have keys.
    """

    signature: Signature
    arguments: Mapping[str, int]
    results: Mapping[str, int | str]


def interface_of(
    declared: Declared, arguments: Sequence[Argument], results: Sequence[TensorSpec] | None, has_keys: bool = False
) -> Interface:
    """Brings configuration and program together.

    Args:
        declared: What the configuration says.
        arguments: The program's arguments.
        results: The program's results, if it says what they are.
        has_keys: Whether results that it says nothing of come as a dict.

    Raises:
        InvalidArgument: If they contradict each other, or leave something open.
    """
    inputs, positions = _inputs(declared, arguments)
    outputs, places = _outputs(declared.outputs, results, has_keys)
    if declared.max_batch_size > 0:
        _check_batched(positions, arguments)
    return Interface(Signature(inputs, outputs), positions, places)


def _inputs(declared: Declared, arguments: Sequence[Argument]) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    positions = match([spec.name for spec in declared.inputs], [argument.name for argument in arguments], "input")
    given = dict(zip(positions, declared.inputs, strict=True))
    inputs, by_name = [], {}
    for position, argument in enumerate(arguments):
        spec = given.get(position)
        if spec is None and argument.optional:
            continue
        known = _completed(spec, argument)
        inputs.append(replace(known, optional=argument.optional))
        by_name[known.name] = position
    return tuple(inputs), by_name


def _completed(spec: TensorSpec | None, argument: Argument) -> TensorSpec:
    """An input as clients see it: named by the configuration, for the rest as the program says."""
    wanted = argument.form.value.strip()
    if argument.spec is not None:
        return replace(argument.spec, name=spec.name if spec is not None else argument.name)
    if spec is None:
        if wanted:
            return TensorSpec(argument.name, wanted, (-1,) if argument.form is Form.TEXTS else (1,))
        raise InvalidArgument(
            f"the model does not say what its input '{argument.name}' is: list all inputs and outputs in config.pbtxt, "
            "each with data_type and dims"
        )
    if not spec.datatype or spec.datatype not in DATATYPES:
        raise _untold("input", spec.name)
    if argument.form is Form.TENSOR and spec.datatype == "BYTES":
        raise InvalidArgument(f"input '{spec.name}' is TYPE_STRING in the config, a tensor in the model")
    if wanted and (spec.datatype == "BYTES") != (wanted == "BYTES"):
        raise InvalidArgument(f"input '{spec.name}' is {spec.datatype} in the config, {wanted} in the model")
    return spec


def _outputs(
    declared: Sequence[TensorSpec], results: Sequence[TensorSpec] | None, has_keys: bool
) -> tuple[tuple[TensorSpec, ...], dict[str, int | str]]:
    names = [spec.name for spec in declared]
    if results is None:
        if not declared:
            raise InvalidArgument(
                "the model does not say what its outputs are: list all inputs and outputs in config.pbtxt, each with "
                "data_type and dims"
            )
        for spec in declared:
            if not spec.datatype:
                raise _untold("output", spec.name)
        if has_keys:
            return tuple(declared), {name: name for name in names}
        count = max([len(names), *(int(n[1]) + 1 for name in names if (n := _NUMBERED.fullmatch(name)))])
        found = match(names, [""] * count, "output")
        return tuple(declared), dict(zip(names, found, strict=True))
    own = [spec.name for spec in results]
    found = match(names, own, "output")
    renamed = dict(zip(found, names, strict=True))
    outputs = tuple(replace(spec, name=renamed.get(position, spec.name)) for position, spec in enumerate(results))
    return outputs, {spec.name: position for position, spec in enumerate(outputs)}


def _check_batched(positions: Mapping[str, int], arguments: Sequence[Argument]) -> None:
    for name, position in positions.items():
        if arguments[position].form is not Form.TENSOR:
            raise InvalidArgument(
                f"input '{name}' is one value for a whole run, so requests can't be batched: set max_batch_size to 0"
            )


def _untold(what: str, name: str) -> InvalidArgument:
    return InvalidArgument(f"{what} '{name}' needs a data_type in config.pbtxt: the model does not say it")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:20]) or "none"
