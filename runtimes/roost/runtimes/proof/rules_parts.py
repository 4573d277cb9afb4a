"""Operators that cut tensors apart and put them together; the dimension with the rows has to stay whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from roost.runtimes.proof.dims import ZERO, Dim, NotProven, add
from roost.runtimes.proof.facts import UNKNOWN, Fact, Values, as_values, fact_of, fact_of_values
from roost.runtimes.proof.nodes import Node, Rule, axis_of, keep_apart

_WHOLE = 2**20
"""An end that lies behind every batch: exporters write any large number."""

_SINCE_CROPS = 11


def _concat(node: Node) -> Fact:
    facts = node.present
    if all(fact.values is not None and fact.rank == 1 for fact in facts):
        return fact_of_values(as_values([value for fact in facts for value in _flat(fact)]))
    if not any(fact.rows is not None for fact in facts) and any(fact.dims is None for fact in facts):
        return UNKNOWN
    rank = facts[0].rank
    axis = axis_of(node.integer("axis", 1), rank)
    places = {fact.rows for fact in facts}
    if any(fact.rank != rank for fact in facts) or len(places) != 1:
        raise NotProven("combines rows with something that has a fixed number of them")
    for fact in facts:
        keep_apart(fact, [axis])
    dims = [facts[0].sizes[index] for index in range(rank)]
    dims[axis] = reduce(add, (fact.sizes[axis] for fact in facts), ZERO)
    return fact_of(dims, facts[0].rows)


def _flat(fact: Fact) -> list[object]:
    assert fact.values is not None
    return list(fact.values.flat)


def _split(node: Node) -> list[Fact]:
    fact = node.input(0)
    axis = axis_of(node.integer("axis", 0), fact.rank)
    keep_apart(fact, [axis])
    sizes = node.integers(1, "split")
    count = len(node.outputs)
    if sizes is None:
        whole = fact.sizes[axis].over(Dim(count))
        parts = [whole or node.fresh(axis, output) for output in range(count)]
    else:
        parts = [Dim(size) for size in sizes]
    if len(parts) != count:
        raise NotProven("has sizes that do not fit its outputs")
    return [fact_of([*fact.sizes[:axis], part, *fact.sizes[axis + 1 :]], fact.rows) for part in parts]


def _slice(node: Node) -> Fact:
    fact = node.input(0)
    node.uniform(1, 2, 3, 4)
    starts, ends = _bounds(node, 1, "starts"), _bounds(node, 2, "ends")
    axes = node.integers(3, "axes")
    steps = node.integers(4)
    count = len(starts)
    axes = [axis_of(axis, fact.rank) for axis in (axes if axes is not None else range(count))]
    steps = steps if steps is not None else [1] * count
    if fact.values is not None and fact.rank == 1 and count == 1:
        return _sliced_values(fact.values, starts[0], ends[0], steps[0])
    dims = list(fact.sizes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = start == ZERO and step == 1 and (end == dims[axis] or (end.number or 0) >= _WHOLE)
        if not whole:
            keep_apart(fact, [axis])
            dims[axis] = _cut(node, axis, dims[axis], start, end, step)
    return fact_of(dims, fact.rows)


def _bounds(node: Node, position: int, name: str) -> list[Dim]:
    if name in node.attributes:
        return [Dim(int(value)) for value in node.attributes[name]]
    return node.dims(position) or []


def _cut(node: Node, axis: int, size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    if start.counts_rows or end.counts_rows:
        raise NotProven("computes with the number of rows")
    numbers = (size.number, start.number, end.number)
    if None in numbers or not step:
        return node.fresh(axis)
    return Dim(len(range(size.factor)[start.factor : end.factor : step]))


def _sliced_values(values: Values, start: Dim, end: Dim, step: int) -> Fact:
    if start.number is None or end.number is None or not step:
        raise NotProven("is told what to do only when the model runs")
    return fact_of_values(values[start.factor : end.factor : step])


def _pad(node: Node) -> Fact:
    fact, pads = node.input(0), node.integers(1, "pads")
    node.uniform(2, 3)
    given = node.integers(3)
    axes = [axis_of(axis, fact.rank) for axis in (given if given is not None else range(fact.rank))]
    if pads is None or len(pads) != 2 * len(axes):
        raise NotProven("has padding that does not fit its input")
    dims = list(fact.sizes)
    for index, axis in enumerate(axes):
        before, after = pads[index], pads[index + len(axes)]
        if before or after:
            keep_apart(fact, [axis])
            size = dims[axis].number
            dims[axis] = node.fresh(axis) if size is None else Dim(size + before + after)
    return fact_of(dims, fact.rows)


def _resize(node: Node) -> Fact:
    """``Resize`` and ``Upsample``: the dimension with the rows has to keep its size."""
    fact = node.input(0)
    old = node.op == "Upsample" or node.opset < _SINCE_CROPS
    node.uniform(1, 2, 3)
    if node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NotProven("is not known to keep rows apart with crops")
    axes = [axis_of(int(axis), fact.rank) for axis in node.attributes.get("axes", range(fact.rank))]
    scales = node.optional(1 if old else 2)
    by_scale = scales is not None and (scales.values is None or scales.values.size > 0)
    asked = scales.values if by_scale and scales is not None else None
    sizes = None if by_scale else node.dims(3)
    dims = [_resized(node, axis) if axis in axes else fact.sizes[axis] for axis in range(fact.rank)]
    if fact.rows is not None and fact.rows.axis in axes:
        place = axes.index(fact.rows.axis)
        by_one = asked is not None and float(asked.flat[place]) == 1.0
        if not by_one and (sizes is None or sizes[place] != fact.rows.size):
            raise NotProven("needs a fixed number of rows")
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise NotProven("is not known to keep rows apart with this policy")
        dims[fact.rows.axis] = fact.rows.size
    return fact_of(dims, fact.rows)


def _resized(node: Node, axis: int) -> Dim:
    inferred = node.inferred[0] if node.inferred else None
    known = inferred[axis] if inferred is not None and axis < len(inferred) else None
    return known if known is not None and known.number is not None else node.fresh(axis)


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
