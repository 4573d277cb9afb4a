"""Operators that work along axes: reductions, softmax, sorting and normalisation. They must leave out the rows'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roost.runtimes.proof.dims import ONE, Dim, NotProven
from roost.runtimes.proof.facts import UNKNOWN, Fact, broadcast, fact_of, fact_of_values
from roost.runtimes.proof.nodes import Node, Rule, axis_of, keep_apart, same_rule
from roost.runtimes.proof.rules_images import batch_first

_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
_SINCE_LAST_AXIS_ALONE = 13


def _reduce(node: Node) -> Fact:
    fact = node.input(0)
    if fact.dims is None:
        return UNKNOWN
    axes = node.integers(1, "axes")
    if not axes:
        if node.integer("noop_with_empty_axes", 0):
            return Fact(fact.dims, fact.rows)
        axes = list(range(fact.rank))
    if node.op == "ReduceProd" and fact.values is not None and fact.rank == 1:
        return _product(node, fact)
    return _without(node, fact, axes)


def _product(node: Node, fact: Fact) -> Fact:
    total = ONE
    for dim in node.dims(0) or ():
        total = total.times(dim)
    keep = node.integer("keepdims", 1)
    return fact_of_values([total] if keep else total) if fact.values is not None else UNKNOWN


def _arg(node: Node) -> Fact:
    fact = node.input(0)
    return UNKNOWN if fact.dims is None else _without(node, fact, [node.integer("axis", 0)])


def _without(node: Node, fact: Fact, axes: Sequence[int]) -> Fact:
    """The tensor once the axes are reduced to one element each."""
    reduced = {axis_of(axis, fact.rank) for axis in axes}
    keep_apart(fact, sorted(reduced))
    if node.integer("keepdims", 1):
        return fact_of([ONE if axis in reduced else dim for axis, dim in enumerate(fact.sizes)], fact.rows)
    return dropped(fact, reduced)


def dropped(fact: Fact, axes: set[int]) -> Fact:
    """The tensor without some axes, none of which has the rows."""
    dims = [dim for axis, dim in enumerate(fact.sizes) if axis not in axes]
    if fact.rows is None:
        return fact_of(dims)
    before = sum(axis < fact.rows.axis for axis in axes)
    return fact_of(dims, fact.rows.at(fact.rows.axis - before))


def _softmax(node: Node) -> Fact:
    fact = node.input(0)
    if fact.rows is not None:
        new = node.opset >= _SINCE_LAST_AXIS_ALONE
        axis = axis_of(node.integer("axis", -1 if new else 1), fact.rank)
        # Before, all dimensions from the axis on were taken together.
        keep_apart(fact, [axis] if new else range(axis, fact.rank))
    return Fact(fact.dims, fact.rows)


def _cumulative(node: Node) -> Fact:
    fact, axes = node.input(0), node.integers(1)
    if fact.rows is not None:
        keep_apart(fact, [axis_of(axis, fact.rank) for axis in axes or range(fact.rank)])
    return Fact(fact.dims, fact.rows)


def _top_k(node: Node) -> list[Fact]:
    fact = node.input(0)
    node.uniform(1)
    axis = axis_of(node.integer("axis", -1), fact.rank)
    keep_apart(fact, [axis])
    counts = node.input(1).values
    count = counts.flat[0] if counts is not None and counts.size == 1 else node.fresh(axis)
    dims = list(fact.sizes)
    dims[axis] = count if isinstance(count, Dim) else Dim(int(count))
    if dims[axis].counts_rows:
        raise NotProven("computes with the number of rows")
    found = fact_of(dims, fact.rows)
    return [found, found]


def _layer_normalization(node: Node) -> list[Fact]:
    fact = node.input(0)
    node.uniform(1, 2)
    axis = axis_of(node.integer("axis", -1), fact.rank)
    keep_apart(fact, range(axis, fact.rank))
    _same_for_rows(fact, node.optional(1), node.optional(2))
    means = fact_of([dim if index < axis else ONE for index, dim in enumerate(fact.sizes)], fact.rows)
    return [fact_of(fact.sizes, fact.rows), means, means]


def _skip_layer_normalization(node: Node) -> list[Fact]:
    total = broadcast((node.input(0), node.input(1)))
    node.uniform(2, 3, 4)
    keep_apart(total, [total.rank - 1])
    _same_for_rows(total, node.optional(2), node.optional(3), node.optional(4))
    means = fact_of([*total.sizes[:-1], ONE], total.rows)
    return [total, means, means, total]


def _same_for_rows(fact: Fact, *factors: Fact | None) -> None:
    """Checks that what rows are multiplied with or added to is not a different thing for each of them."""
    present = [factor for factor in factors if factor is not None]
    if fact.rows is not None:
        broadcast([fact, *present])


def _batch_normalization(node: Node) -> Fact:
    if node.integer("training_mode", 0) or any(node.has_output(position) for position in range(1, 5)):
        raise NotProven("mixes rows: it is in training mode")
    node.uniform(1, 2, 3, 4)
    fact = node.input(0)
    return fact_of(fact.sizes, batch_first(fact))


def _instance_normalization(node: Node) -> Fact:
    node.uniform(1, 2)
    fact = node.input(0)
    return fact_of(fact.sizes, batch_first(fact))


def _mean_variance_normalization(node: Node) -> Fact:
    fact = node.input(0)
    axes = [int(axis) for axis in node.attributes.get("axes", (0, 2, 3))]
    keep_apart(fact, [axis_of(axis, fact.rank) for axis in axes])
    return fact_of(fact.sizes, fact.rows)


def _lp_normalization(node: Node) -> Fact:
    fact = node.input(0)
    keep_apart(fact, [axis_of(node.integer("axis", -1), fact.rank)])
    return fact_of(fact.sizes, fact.rows)


def _local_response_normalization(node: Node) -> Fact:
    fact = node.input(0)
    return fact_of(fact.sizes, batch_first(fact))


def _trilu(node: Node) -> Fact:
    fact = node.input(0)
    node.uniform(1)
    keep_apart(fact, [fact.rank - 2, fact.rank - 1])
    return fact_of(fact.sizes, fact.rows)


def _reverse_sequence(node: Node) -> Fact:
    fact, lengths = node.input(0), node.input(1)
    axis = axis_of(node.integer("batch_axis", 1), fact.rank)
    keep_apart(fact, [axis_of(node.integer("time_axis", 0), fact.rank)])
    expected = fact.rows.at(0) if fact.rows is not None and fact.rows.axis == axis else None
    if lengths.rows != expected:
        raise NotProven("combines rows with something that has a fixed number of them")
    return fact_of(fact.sizes, fact.rows)


RULES: Mapping[str, Rule] = {
    **same_rule(_REDUCTIONS, _reduce),
    **same_rule("ArgMax ArgMin", _arg),
    **same_rule("Softmax LogSoftmax Hardmax", _softmax),
    "CumSum": _cumulative,
    "TopK": _top_k,
    "LayerNormalization": _layer_normalization,
    "SimplifiedLayerNormalization": _layer_normalization,
    "RMSNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _instance_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "LpNormalization": _lp_normalization,
    "LRN": _local_response_normalization,
    "Trilu": _trilu,
    "ReverseSequence": _reverse_sequence,
}
MICROSOFT_RULES: Mapping[str, Rule] = {
    "SkipLayerNormalization": _skip_layer_normalization,
    "LayerNormalization": _layer_normalization,
    "SimplifiedLayerNormalization": _layer_normalization,
}
