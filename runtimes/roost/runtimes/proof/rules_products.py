"""Matrix products in all their forms: rows may be in any dimension but the one that is summed over."""

from __future__ import annotations

from collections.abc import Mapping

from roost.runtimes.proof.dims import ONE, Dim, NotProven
from roost.runtimes.proof.facts import UNKNOWN, Fact, Rows, broadcast, fact_of, joined, rows_of
from roost.runtimes.proof.nodes import Node, Rule

_SUMMED = "mixes rows: it sums over the dimension that they are in"


def matmul(left: Fact, right: Fact) -> Fact:
    """What ``numpy.matmul`` makes of two tensors.

    Raises:
        NotProven: If rows would meet.
    """
    if not rows_of((left, right)) and (left.dims is None or right.dims is None):
        return UNKNOWN
    if not left.rank or not right.rank:
        raise NotProven("takes no scalars")
    if left.rows is not None and left.rows.axis == left.rank - 1:
        raise NotProven(_SUMMED)
    if right.rows is not None and right.rows.axis == max(0, right.rank - 2):
        raise NotProven(_SUMMED)
    stacked = broadcast((_stack_of(left), _stack_of(right)))
    dims, places = list(stacked.sizes), [] if stacked.rows is None else [stacked.rows]
    if left.rank > 1:
        if left.rows is not None and left.rows.axis == left.rank - 2:
            places.append(left.rows.at(len(dims)))
        dims.append(left.sizes[-2])
    if right.rank > 1:
        if right.rows is not None and right.rows.axis == right.rank - 1:
            places.append(right.rows.at(len(dims)))
        dims.append(right.sizes[-1])
    if len(places) > 1:
        raise NotProven("mixes rows: it multiplies each with every other one")
    return fact_of(dims, places[0] if places else None)


def _stack_of(fact: Fact) -> Fact:
    """The dimensions that only say how many matrices there are."""
    rank = max(0, fact.rank - 2)
    rows = fact.rows if fact.rows is not None and fact.rows.axis < rank else None
    return fact_of(fact.sizes[:rank], rows)


def _transposed(fact: Fact, wanted: int) -> Fact:
    if not wanted or fact.dims is None:
        return fact
    if fact.rank != 2:
        raise NotProven("takes matrices only")
    return fact_of(fact.sizes[::-1], fact.rows.at(1 - fact.rows.axis) if fact.rows is not None else None)


def _matmul(node: Node) -> Fact:
    return matmul(node.input(0), node.input(1))


def _gemm(node: Node) -> Fact:
    left = _transposed(node.input(0), node.integer("transA", 0))
    right = _transposed(node.input(1), node.integer("transB", 0))
    total = matmul(left, right)
    added = node.optional(2)
    return total if added is None else broadcast((total, added))


def _single(node: Node, *positions: int) -> None:
    """Checks that scales are one number each: one for each row would treat rows by their place."""
    node.uniform(*positions)
    for position in positions:
        fact = node.optional(position)
        if fact is not None and any(dim != ONE for dim in fact.sizes):
            raise NotProven("treats each row differently")


def _matmul_integer(node: Node) -> Fact:
    _single(node, 2)
    node.uniform(3)
    return matmul(node.input(0), node.input(1))


def _qlinear_matmul(node: Node) -> Fact:
    _single(node, 1, 2, 6, 7)
    node.uniform(4, 5)
    return matmul(node.input(0), node.input(3))


def _einsum(node: Node) -> Fact:
    equation = node.text("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    labels = terms.split(",")
    if "." in equation or not arrow or len(labels) != len(node.present):
        raise NotProven("is not known to keep rows apart with this equation")
    sizes: dict[str, Dim] = {}
    rows: dict[str, Rows] = {}
    for term, fact in zip(labels, node.present, strict=True):
        if fact.rank != len(term) or len(set(term)) != len(term):
            raise NotProven("is not known to keep rows apart with this equation")
        for axis, label in enumerate(term):
            sizes[label] = joined(sizes.get(label, ONE), fact.sizes[axis])
        if fact.rows is not None:
            rows[term[fact.rows.axis]] = fact.rows
    if len(rows) > 1:
        raise NotProven("mixes rows: it multiplies each with every other one")
    for label, place in rows.items():
        if label not in result:
            raise NotProven(_SUMMED)
        _check_label(label, place, labels, node.present)
        return fact_of([sizes[known] for known in result], place.at(result.index(label)))
    return fact_of([sizes[known] for known in result])


def _check_label(label: str, place: Rows, labels: list[str], facts: list[Fact]) -> None:
    """Whatever else has the label of the rows has rows of the same layout there."""
    for term, fact in zip(labels, facts, strict=True):
        if label in term and (fact.rows is None or fact.rows != place.at(term.index(label))):
            raise NotProven("combines rows with something that has a fixed number of them")


RULES: Mapping[str, Rule] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "MatMulInteger": _matmul_integer,
    "QLinearMatMul": _qlinear_matmul,
    "Einsum": _einsum,
}
