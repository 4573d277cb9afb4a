"""A node of a graph as the rules see it: its operator, its attributes, and what is known of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from roost.runtimes.proof.dims import Dim, NotProven, symbol
from roost.runtimes.proof.facts import Dims, Fact, as_dim


@dataclass(frozen=True, slots=True)
class Node:
    """See the module.

    Attributes:
        op: The operator.
        opset: The version of its domain's operators.
        inputs: What is known of its inputs; None for those that are left out.
        outputs: The names of its outputs; empty for those that are left out.
        attributes: Its attributes.
        inferred: The sizes of its outputs as shape inference says, for operators that no rule knows.
    """

    op: str
    opset: int
    inputs: Sequence[Fact | None]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]
    inferred: Sequence[Dims | None] = ()

    @property
    def present(self) -> list[Fact]:
        """The inputs that are not left out."""
        return [fact for fact in self.inputs if fact is not None]

    def optional(self, position: int) -> Fact | None:
        """An input, None if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def input(self, position: int) -> Fact:
        """An input that has to be there.

        Raises:
            NotProven: If it is not.
        """
        fact = self.optional(position)
        if fact is None:
            raise NotProven("lacks an input")
        return fact

    def has_output(self, position: int) -> bool:
        """Whether an output is asked for."""
        return position < len(self.outputs) and bool(self.outputs[position])

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def integers(self, position: int, name: str = "") -> list[int] | None:
        """Integers that are an input, or an attribute in older versions of the operator; None if left out.

        Raises:
            NotProven: If they are known only when the model runs.
        """
        if name and name in self.attributes:
            return [int(value) for value in self.attributes[name]]
        sizes = self.dims(position)
        if sizes is None:
            return None
        numbers = [dim.number for dim in sizes]
        if None in numbers:
            raise NotProven("is told what to do only when the model runs")
        return [number for number in numbers if number is not None]

    def dims(self, position: int) -> list[Dim] | None:
        """Sizes that are an input; None if left out.

        Raises:
            NotProven: If they are known only when the model runs.
        """
        fact = self.optional(position)
        if fact is None:
            return None
        if fact.values is None:
            raise NotProven("is told what to do only when the model runs")
        return [as_dim(element) for element in fact.values.flat]

    def fresh(self, axis: int, output: int = 0) -> Dim:
        """The size of a dimension of an output about which nothing is known but that rows do not change it."""
        return symbol(f"{self.outputs[output]}[{axis}]")

    def uniform(self, *positions: int) -> None:
        """Checks that inputs are the same for each row.

        Raises:
            NotProven: If one is not.
        """
        for position in positions:
            fact = self.optional(position)
            if fact is not None and fact.rows is not None:
                raise NotProven("takes rows where the same is needed for all of them")


Rule: TypeAlias = Callable[[Node], Fact | Sequence[Fact]]
"""What a node's outputs are, or ``NotProven``; a text that follows 'operator X'."""


def same_rule(operators: str, rule: Rule) -> dict[str, Rule]:
    """A rule for several operators, whose names are separated by blanks."""
    return dict.fromkeys(operators.split(), rule)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        NotProven: If there is no such axis.
    """
    if not -rank <= axis < rank:
        raise NotProven("has an axis that its input does not have")
    return axis % rank if rank else 0


def keep_apart(fact: Fact, axes: Sequence[int]) -> None:
    """Checks that an operator that works along axes leaves the rows alone.

    Raises:
        NotProven: If it doesn't.
    """
    if fact.rows is not None and fact.rows.axis in axes:
        raise NotProven("mixes rows: it works along the dimension that they are in")
