"""Operators that move, cut and copy: where they put the rows is worked out from the sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roost.runtimes.proof.dims import ONE, ZERO, Dim, NotProven, product
from roost.runtimes.proof.facts import (
    MAX_VALUES,
    UNKNOWN,
    Fact,
    Rows,
    as_values,
    fact_of,
    fact_of_values,
    joined,
)
from roost.runtimes.proof.nodes import Node, Rule, axis_of

_LOST = "may move the rows: they are in no dimension of its own afterwards"


def reshaped(fact: Fact, dims: Sequence[Dim]) -> Fact:
    """The same elements in the same order with another size.

    Raises:
        NotProven: If the rows are then not in a dimension that has them in the same order.
    """
    if fact.rows is None:
        if any(dim.counts_rows for dim in dims):
            raise NotProven("has a fixed number of elements where it needs one for each row")
        return fact_of(dims)
    before, after = product(fact.sizes), product(dims)
    if before != after:
        raise NotProven(_LOST if after.counts_rows else "needs a fixed number of rows")
    places = [axis for axis, dim in enumerate(dims) if dim.counts_rows]
    if len(places) != 1:
        raise NotProven(_LOST)
    axis = places[0]
    # Between all slower and all faster indices the row has its place in the flat order, and must find it again.
    slower = product(fact.sizes[: fact.rows.axis]).times(fact.rows.outer)
    outer = slower.over(product(dims[:axis]))
    inner = None if outer is None else dims[axis].over(Rows(0, outer).size)
    if outer is None or inner is None:
        raise NotProven(_LOST)
    return fact_of(dims, Rows(axis, outer, inner))


def _reshape(node: Node) -> Fact:
    fact = node.input(0)
    wanted = node.dims(1) if len(node.inputs) > 1 else [Dim(int(size)) for size in node.attributes.get("shape", ())]
    assert wanted is not None
    dims: list[Dim | None] = []
    for axis, dim in enumerate(wanted):
        if dim == ZERO and not node.integer("allowzero", 0):
            dims.append(fact.sizes[axis_of(axis, fact.rank)])
        else:
            dims.append(None if dim.number == -1 else dim)
    found = _resolved(fact, dims)
    if fact.values is not None and all(dim.number is not None for dim in found):
        return fact_of_values(fact.values.reshape([dim.factor for dim in found]))
    return reshaped(fact, found)


def _resolved(fact: Fact, dims: Sequence[Dim | None]) -> list[Dim]:
    """The sizes with that of -1 worked out."""
    known = product(dim for dim in dims if dim is not None)
    rest = product(fact.sizes).over(known) if None in dims else ONE
    if rest is None:
        raise NotProven(_LOST)
    return [rest if dim is None else dim for dim in dims]


def _flatten(node: Node) -> Fact:
    fact = node.input(0)
    axis = node.integer("axis", 1)
    axis = axis + fact.rank if axis < 0 else axis
    return reshaped(fact, [product(fact.sizes[:axis]), product(fact.sizes[axis:])])


def _squeeze(node: Node) -> Fact:
    fact, axes = node.input(0), node.integers(1, "axes")
    if axes is None:
        if fact.rows is not None or any(dim.number is None for dim in fact.sizes):
            raise NotProven("may move the rows: it takes out every dimension of size 1, and a batch may have one row")
        axes = [axis for axis, dim in enumerate(fact.sizes) if dim == ONE]
    out = {axis_of(axis, fact.rank) for axis in axes}
    if fact.rows is not None and fact.rows.axis in out:
        raise NotProven("needs a fixed number of rows")
    kept = [axis for axis in range(fact.rank) if axis not in out]
    if fact.values is not None:
        return fact_of_values(fact.values.reshape([fact.values.shape[axis] for axis in kept]))
    rows = fact.rows.at(kept.index(fact.rows.axis)) if fact.rows is not None else None
    return fact_of([fact.sizes[axis] for axis in kept], rows)


def _unsqueeze(node: Node) -> Fact:
    fact, axes = node.input(0), node.integers(1, "axes") or []
    rank = fact.rank + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if fact.values is not None:
        sizes = iter(fact.values.shape)
        return fact_of_values(fact.values.reshape([1 if axis in new else next(sizes) for axis in range(rank)]))
    old = [axis for axis in range(rank) if axis not in new]
    dims = [ONE] * rank
    for axis, dim in zip(old, fact.sizes, strict=True):
        dims[axis] = dim
    return fact_of(dims, fact.rows.at(old[fact.rows.axis]) if fact.rows is not None else None)


def _transpose(node: Node) -> Fact:
    fact = node.input(0)
    order = [int(axis) for axis in node.attributes.get("perm", range(fact.rank - 1, -1, -1))]
    if sorted(order) != list(range(fact.rank)):
        raise NotProven("has axes that its input does not have")
    rows = fact.rows.at(order.index(fact.rows.axis)) if fact.rows is not None else None
    return fact_of([fact.sizes[axis] for axis in order], rows)


def _expand(node: Node) -> Fact:
    fact, wanted = node.input(0), node.dims(1)
    assert wanted is not None
    rank = max(fact.rank, len(wanted))
    old = [*[ONE] * (rank - fact.rank), *fact.sizes]
    new = [*[ONE] * (rank - len(wanted)), *wanted]
    rows = fact.rows.at(fact.rows.axis + rank - fact.rank) if fact.rows is not None else None
    dims: list[Dim] = []
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if rows is not None and axis == rows.axis:
            if after not in (ONE, before):
                raise NotProven("needs a fixed number of rows")
            dims.append(before)
        elif after.counts_rows:
            if rows is not None or before != ONE:
                raise NotProven("combines rows that lie in different dimensions")
            rows = _copies(axis, after)
            dims.append(after)
        else:
            dims.append(joined(before, after))
    return fact_of(dims, rows)


def _copies(axis: int, size: Dim) -> Rows:
    """Rows that are all the same: any order of them will do, so take the usual one."""
    inner = size.over(Rows(0).size)
    if inner is None or inner.counts_rows:
        raise NotProven("computes with the number of rows")
    return Rows(axis, inner=inner)


def _constant_of_shape(node: Node) -> Fact:
    dims = node.dims(0) or []
    places = [axis for axis, dim in enumerate(dims) if dim.counts_rows]
    if len(places) > 1:
        raise NotProven("combines rows that lie in different dimensions")
    if places:
        return fact_of(dims, _copies(places[0], dims[places[0]]))
    value = node.attributes.get("value")
    sizes = [dim.number for dim in dims]
    if len(sizes) == 1 and sizes[0] is not None and sizes[0] <= MAX_VALUES:
        element = 0.0 if value is None else value.flat[0].item()
        return fact_of_values(as_values([element] * sizes[0]))
    return fact_of(dims)


def _tile(node: Node) -> Fact:
    fact, repeats = node.input(0), node.dims(1)
    assert repeats is not None
    if len(repeats) != fact.rank:
        raise NotProven("has repeats that do not fit its input")
    dims, rows = [], fact.rows
    for axis, (dim, times) in enumerate(zip(fact.sizes, repeats, strict=True)):
        if times != ONE and rows is not None and axis == rows.axis:
            raise NotProven("mixes rows: it repeats the dimension that they are in")
        if times.counts_rows:
            if rows is not None:
                raise NotProven("combines rows that lie in different dimensions")
            rows = _copies(axis, times.times(dim))
        dims.append(dim.times(times))
    return fact_of(dims, rows)


def _shape(node: Node) -> Fact:
    fact = node.input(0)
    if fact.dims is None:
        return UNKNOWN
    end = node.attributes.get("end")
    return fact_of_values(as_values(fact.dims[node.integer("start", 0) : None if end is None else int(end)]))


def _size(node: Node) -> Fact:
    fact = node.input(0)
    return UNKNOWN if fact.dims is None else fact_of_values(as_values(product(fact.dims)))


def _range(node: Node) -> Fact:
    numbers = [node.dims(position) for position in range(3)]
    start, limit, delta = (dims[0] if dims else ZERO for dims in numbers)
    if start.counts_rows or limit.counts_rows or delta.counts_rows:
        raise NotProven("numbers the rows")
    if start.number is not None and limit.number is not None and delta.number:
        steps = range(start.number, limit.number, delta.number)
        return fact_of_values(as_values(list(steps))) if len(steps) <= MAX_VALUES else fact_of([Dim(len(steps))])
    return fact_of([limit if start == ZERO and delta == ONE else node.fresh(0)])


RULES: Mapping[str, Rule] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Tile": _tile,
    "Shape": _shape,
    "Size": _size,
    "Range": _range,
}
