"""The graph of a SavedModel and its functions: what calls what, and where values come from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.runtimes.tensorflow.wire import entries, fields, joined, last_text, parts, text

NOWHERE: Final = ""
"""The function that nodes of the graph itself are in."""

_MAX_DEPTH = 64
_LOOK_AT_VARIABLE = frozenset({"ReadVariableOp", "VarIsInitializedOp"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_NOTHING = memoryview(b"")
_MIN_FUNCTION_BYTES = 2
"""A value no longer than that is a number, a flag or a datatype, or a function without a name."""


class Node(NamedTuple):
    """An operation of a graph.

    Attributes:
        op: What it is.
        inputs: Where its inputs come from.
        calls: Functions that it may call.
        prints_to: Where it prints to, if it does.
        shared_name: What else refers to the same variable or table.
    """

    op: str
    inputs: Sequence[str]
    calls: Sequence[str]
    prints_to: str
    shared_name: str


Place: TypeAlias = tuple[str, str]
"""Where a node is: the function, empty for the graph itself, and its name."""


@dataclass(slots=True)
class Graph:
    """The nodes of a graph and of the functions that come with it.

    Attributes:
        nodes: By function, then by name; the graph's own are those of no function.
        arguments: What functions call their inputs.
    """

    nodes: dict[str, dict[str, Node]] = field(default_factory=lambda: {NOWHERE: {}})
    arguments: dict[str, Sequence[str]] = field(default_factory=dict)

    def reached(self, roots: Iterable[str]) -> set[Place]:
        """Every node that may run when these tensors or operations of the graph are asked for."""
        found: set[Place] = set()
        entered: set[str] = {NOWHERE}
        waiting: list[Place] = [(NOWHERE, node_of(root)) for root in roots if root]
        while waiting:
            place = waiting.pop()
            function, name = place
            node = self.nodes[function].get(name)
            if node is None or place in found:  # an argument of a function is no node
                continue
            found.add(place)
            waiting += [(function, node_of(source)) for source in node.inputs]
            for called in {*node.calls, node.op} - entered:
                entered.add(called)
                waiting += [(called, inner) for inner in self.nodes.get(called, ())]
        return found

    def sources(self, place: Place, position: int, callers: Mapping[str, Collection[Place]]) -> set[Place | None]:
        """Which nodes of the graph itself an input comes from unchanged; None stands for anything else."""
        found: set[Place | None] = set()
        seen: set[Place] = set()
        waiting = [(place, position)]
        while waiting:
            (function, name), position = waiting.pop()
            inputs = self.nodes[function][name].inputs
            source = (function, node_of(inputs[position])) if position < len(inputs) else (NOWHERE, "")
            if source in seen:
                continue
            seen.add(source)
            if source[1] in self.arguments.get(function, ()):
                index = self.arguments[function].index(source[1])
                for caller in callers.get(function, ()):
                    if self.nodes[caller[0]][caller[1]].op in _CALLS | {function}:
                        waiting.append((caller, index))
                    else:  # loops and conditions have other inputs before those
                        found.add(None)
                continue
            node = self.nodes[function].get(source[1])
            if node is not None and node.op == "Identity":
                waiting.append((source, 0))
            elif node is not None and node.op == "ReadVariableOp" and function == NOWHERE and node.inputs:
                writers = self.writers(node_of(node.inputs[0]))
                waiting += [(writer, 1) for writer in writers]
                found |= set() if writers else {None}
            else:
                found.add(source if function == NOWHERE else None)
        return found

    def writers(self, variable: str) -> list[Place]:
        """The nodes of the graph itself that give a variable its value; none if there may be others."""
        nodes = self.nodes[NOWHERE]
        handle = nodes.get(variable)
        if handle is None or handle.op != "VarHandleOp":
            return []
        known_as = handle.shared_name or variable
        others = (
            one.shared_name or name for each in self.nodes.values() for name, one in each.items() if one is not handle
        )
        # Names with a slash also come about when functions are put in the place of calls.
        if "/" in known_as or known_as in others:
            return []
        found: list[Place] = []
        for name, node in nodes.items():
            uses = [position for position, source in enumerate(node.inputs) if node_of(source) == variable]
            if not uses or node.op in _LOOK_AT_VARIABLE:
                continue
            if node.op != "AssignVariableOp" or uses != [0]:
                return []
            found.append((NOWHERE, name))
        return found

    def callers(self) -> dict[str, list[Place]]:
        """The nodes that call each function."""
        found: dict[str, list[Place]] = {}
        for function, nodes in self.nodes.items():
            for name, node in nodes.items():
                for called in (*node.calls, *((node.op,) if node.op in self.nodes else ())):
                    found.setdefault(called, []).append((function, name))
        return found


def read_graph(graph_def: memoryview) -> Graph:
    """Reads a message ``GraphDef``.

    Raises:
        InvalidArgument: If it is none, or has two nodes or functions of the same name.
    """
    graph = Graph()
    for node in parts(graph_def, 1):
        _add(graph, NOWHERE, node)
    for function in parts(joined(graph_def, 2), 1):
        declared = joined(function, 1)
        name = last_text(declared, 1)
        if not name or name in graph.nodes:
            raise InvalidArgument(f"the SavedModel has two functions '{shorten(name)}', or one without a name")
        graph.nodes[name] = {}
        graph.arguments[name] = [last_text(argument, 1) for argument in parts(declared, 2)]
        for node in parts(function, 3):
            _add(graph, name, node)
    return graph


def _add(graph: Graph, function: str, message: memoryview) -> None:
    name = op = prints_to = shared_name = ""
    inputs: list[str] = []
    calls: list[str] = []
    for number, part, _ in fields(message):
        if number == 1:
            name = text(part)
        elif number == 2:
            op = text(part)
        elif number == 3:
            inputs.append(text(part))
        elif number == 5:
            key, value = _attribute(part)
            if len(value) > _MIN_FUNCTION_BYTES:
                calls += _functions_in(value)
            if key == b"output_stream":
                prints_to = last_text(value, 2)
            elif key == b"shared_name":
                shared_name = last_text(value, 2)
    if name in graph.nodes[function]:
        raise InvalidArgument(f"the SavedModel has two operations '{shorten(name)}'")
    graph.nodes[function][name] = Node(op, inputs, calls, prints_to, shared_name)


def _attribute(entry: memoryview) -> tuple[bytes, memoryview]:
    """Key and value of an attribute; read here in one go, as there are more of them than of all else."""
    key, value = b"", _NOTHING
    for number, part, _ in fields(entry):
        if number == 1:
            key = bytes(part)
        elif number == 2:
            value = memoryview(bytes(value) + bytes(part)) if value else part
    return key, value


def _functions_in(attribute: memoryview, depth: int = 0) -> Iterator[str]:
    """The functions that a message ``AttrValue`` names."""
    if depth > _MAX_DEPTH:
        raise InvalidArgument("the SavedModel's functions are nested too deeply")
    for number, part, _ in fields(attribute):
        if number == 10:
            yield from _functions_of(part, depth)
        elif number == 1:
            for listed in parts(part, 9):
                yield from _functions_of(listed, depth)


def _functions_of(name_and_attributes: memoryview, depth: int) -> Iterator[str]:
    yield last_text(name_and_attributes, 1)
    for _, value in entries(name_and_attributes, 2):
        yield from _functions_in(value, depth + 1)


def node_of(tensor: str) -> str:
    """The node of a tensor (``node:0``), a tensor in a function (``node:out:0``) or an operation (``^node``)."""
    return tensor.removeprefix("^").partition(":")[0]
