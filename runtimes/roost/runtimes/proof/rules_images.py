"""Convolutions, pooling and recurrent layers: operators that know which dimension is the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from roost.runtimes.proof.dims import ONE, Dim, NotProven
from roost.runtimes.proof.facts import Fact, Rows, fact_of
from roost.runtimes.proof.nodes import Node, Rule, same_rule

_MOVED = "mixes rows: they are not in the dimension that it takes for the batch"


def batch_first(fact: Fact, axis: int = 0) -> Rows | None:
    """The rows of an input, which must be where the operator expects its batch.

    Raises:
        NotProven: If they are elsewhere.
    """
    if fact.rows is not None and fact.rows.axis != axis:
        raise NotProven(_MOVED)
    return fact.rows


def _conv(node: Node, weights: int = 1, others: Sequence[int] = (2,)) -> Fact:
    node.uniform(weights, *others)
    fact, kernel = node.input(0), node.input(weights)
    rows = batch_first(fact)
    shape: list[int | None] = [*_numbers(node, "kernel_shape")] or [dim.number for dim in kernel.sizes[2:]]
    dims = [fact.sizes[0], kernel.sizes[0], *_windows(node, fact, shape)]
    return fact_of(dims, rows)


def _conv_integer(node: Node) -> Fact:
    return _conv(node, others=(2, 3))


def _qlinear_conv(node: Node) -> Fact:
    return _conv(node, weights=3, others=(1, 2, 4, 5, 6, 7, 8))


def _conv_transpose(node: Node) -> Fact:
    node.uniform(1, 2)
    fact, kernel = node.input(0), node.input(1)
    rows = batch_first(fact)
    group = node.integer("group", 1)
    dims = [fact.sizes[0], kernel.sizes[1].times(Dim(group))]
    dims += [node.fresh(axis) for axis in range(2, fact.rank)]
    if node.inferred and node.inferred[0] is not None and len(node.inferred[0]) == fact.rank:
        known = node.inferred[0]
        dims[2:] = [known[axis] if known[axis].number is not None else dims[axis] for axis in range(2, fact.rank)]
    return fact_of(dims, rows)


def _pool(node: Node) -> Fact:
    if node.has_output(1):
        raise NotProven("gives indices that count all rows")
    fact = node.input(0)
    rows = batch_first(fact)
    return fact_of([*fact.sizes[:2], *_windows(node, fact, _numbers(node, "kernel_shape"))], rows)


def _global_pool(node: Node) -> Fact:
    fact = node.input(0)
    return fact_of([*fact.sizes[:2], *[ONE] * (fact.rank - 2)], batch_first(fact))


def _numbers(node: Node, name: str) -> list[int]:
    return [int(value) for value in node.attributes.get(name, ())]


def _windows(node: Node, fact: Fact, kernel: Sequence[int | None]) -> list[Dim]:
    """How many places a window has in each dimension behind the channels."""
    count = fact.rank - 2
    strides = _numbers(node, "strides") or [1] * count
    dilations = _numbers(node, "dilations") or [1] * count
    pads = _numbers(node, "pads") or [0] * (2 * count)
    padding = node.text("auto_pad", "NOTSET")
    if len(kernel) != count or len(pads) != 2 * count or padding == "VALID":
        pads = [0] * (2 * count)
    dims: list[Dim] = []
    for index, dim in enumerate(fact.sizes[2:]):
        size, window = dim.number, kernel[index] if index < len(kernel) else None
        if size is None or window is None:
            dims.append(node.fresh(index + 2))
        elif padding.startswith("SAME"):
            dims.append(Dim(math.ceil(size / strides[index])))
        else:
            free = size + pads[index] + pads[index + count] - (window - 1) * dilations[index] - 1
            exact = free % strides[index] == 0 or not node.integer("ceil_mode", 0)
            dims.append(Dim(free // strides[index] + 1) if exact and free >= 0 else node.fresh(index + 2))
    return dims


def _recurrent(node: Node) -> list[Fact]:
    """``LSTM``, ``GRU`` and ``RNN``: the batch is the second dimension, or with ``layout`` the first."""
    node.uniform(1, 2, 3, 7)
    fact, layout = node.input(0), node.integer("layout", 0)
    rows = batch_first(fact, 0 if layout else 1)
    directions = Dim(2 if node.text("direction", "forward") == "bidirectional" else 1)
    hidden = Dim(node.integer("hidden_size", 0)) if "hidden_size" in node.attributes else node.input(2).sizes[-1]
    if rows is None:
        node.uniform(4, 5, 6)
    else:
        _same_rows(node, 4, rows.at(0))
        for position in (5, 6):
            _same_rows(node, position, rows.at(0 if layout else 1))
    steps, batch = (fact.sizes[1], fact.sizes[0]) if layout else (fact.sizes[0], fact.sizes[1])
    if layout:
        all_steps = fact_of([batch, steps, directions, hidden], rows.at(0) if rows else None)
        last = fact_of([batch, directions, hidden], rows.at(0) if rows else None)
    else:
        all_steps = fact_of([steps, directions, batch, hidden], rows.at(2) if rows else None)
        last = fact_of([directions, batch, hidden], rows.at(1) if rows else None)
    return [all_steps, last, last]


def _same_rows(node: Node, position: int, rows: Rows) -> None:
    fact = node.optional(position)
    if fact is not None and fact.rows != rows:
        raise NotProven(_MOVED)


def _depth_to_space(node: Node) -> Fact:
    fact, block = node.input(0), Dim(node.integer("blocksize", 1))
    rows = batch_first(fact)
    batch, channels, *space = fact.sizes
    fewer = channels.over(block.times(block)) or node.fresh(1)
    return fact_of([batch, fewer, *(dim.times(block) for dim in space)], rows)


def _space_to_depth(node: Node) -> Fact:
    fact, block = node.input(0), Dim(node.integer("blocksize", 1))
    rows = batch_first(fact)
    batch, channels, *space = fact.sizes
    smaller = [dim.over(block) or node.fresh(axis) for axis, dim in enumerate(space, start=2)]
    return fact_of([batch, channels.times(block).times(block), *smaller], rows)


RULES: Mapping[str, Rule] = {
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
    "ConvTranspose": _conv_transpose,
    **same_rule("AveragePool LpPool MaxPool", _pool),
    **same_rule("GlobalAveragePool GlobalLpPool GlobalMaxPool", _global_pool),
    **same_rule("GRU LSTM RNN", _recurrent),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
