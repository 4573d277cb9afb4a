"""Whether inputs have sizes that an exported program was made for: for others its answers may be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from roost.core.errors import InvalidArgument
from torch.export.graph_signature import ConstantArgument, InputKind


@dataclass(frozen=True, slots=True)
class _Size:
    """One dimension of an argument.

    Attributes:
        position: The argument's position.
        axis: The dimension.
        name: The argument's name.
        low: The least that it may be.
        high: The most; none: anything.
        same_as: Another argument's position and dimension that it has to agree with.
        expression: What it has to be, computed from the sizes of all others by their symbols.
    """

    position: int
    axis: int
    name: str
    low: int = 0
    high: int | None = None
    same_as: tuple[int, int] | None = None
    expression: Any = None


class Sizes:
    """The sizes that an exported program takes.

    Args:
        exported: The program.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self._ranks: list[tuple[int, str, int]] = []
        self._sizes: list[_Size] = []
        self._symbols: dict[Any, tuple[int, int]] = {}  # where each is seen first
        ranges = exported.range_constraints
        nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        specs = [spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        names = [spec.arg.name for spec in specs if not isinstance(spec.arg, ConstantArgument)]
        for position, name in enumerate(names):
            value = nodes[name].meta["val"]
            if isinstance(value, torch.Tensor):
                self._ranks.append((position, name, value.dim()))
                for axis, size in enumerate(value.shape):
                    self._sizes.append(self._size(position, axis, name, size, ranges))

    def check(self, values: Mapping[int, Any]) -> None:
        """Looks at the values of a run, which come by the position of their argument.

        Raises:
            InvalidArgument: If one has another size.
        """
        shapes = {position: value.shape for position, value in values.items() if isinstance(value, torch.Tensor)}
        for position, name, rank in self._ranks:
            if len(shapes[position]) != rank:
                raise InvalidArgument(
                    f"argument '{name}' of the model has {rank} dimensions, not {len(shapes[position])}"
                )
        for size in self._sizes:
            found = shapes[size.position][size.axis]
            if found < size.low or (size.high is not None and found > size.high):
                raise _other(size, found, _range(size.low, size.high))
            if size.same_as is not None and found != shapes[size.same_as[0]][size.same_as[1]]:
                raise _other(size, found, str(shapes[size.same_as[0]][size.same_as[1]]))
            if size.expression is not None:
                known = {symbol: shapes[at][axis] for symbol, (at, axis) in self._symbols.items()}
                wanted = size.expression.subs(known)
                if wanted.is_number and wanted != found:
                    raise _other(size, found, str(wanted))

    def _size(self, position: int, axis: int, name: str, size: int | torch.SymInt, ranges: Mapping[Any, Any]) -> _Size:
        if isinstance(size, int):
            return _Size(position, axis, name, size, size)
        expression = size.node.expr
        if not expression.is_Symbol:
            return _Size(position, axis, name, expression=expression)
        low, high = 0, None
        if expression in ranges:
            # What has no limit is a number here that says of itself that it is finite.
            low = int(ranges[expression].lower) if ranges[expression].lower.is_Integer else 0
            high = int(ranges[expression].upper) if ranges[expression].upper.is_Integer else None
        first = self._symbols.setdefault(expression, (position, axis))
        return _Size(position, axis, name, low, high, first if first != (position, axis) else None)


def _range(low: int, high: int | None) -> str:
    return str(low) if low == high else f"at least {low}" if high is None else f"{low} to {high}"


def _other(size: _Size, found: int, wanted: str) -> InvalidArgument:
    return InvalidArgument(
        f"dimension {size.axis} of the model's argument '{size.name}' is {found}, and has to be {wanted}"
    )
