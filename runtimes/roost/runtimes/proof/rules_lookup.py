"""Operators that look elements up by index: an index must not reach into another row."""

from __future__ import annotations

from collections.abc import Mapping

from roost.runtimes.proof.dims import Dim, NotProven
from roost.runtimes.proof.facts import UNKNOWN, Fact, Rows, as_values, fact_of, fact_of_values, rows_of
from roost.runtimes.proof.nodes import Node, Rule, axis_of, keep_apart, same_rule

_REACHES = "mixes rows: its indices may reach other rows"


def _gather(node: Node) -> Fact:
    data, indices = node.input(0), node.input(1)
    if not rows_of((data, indices)) and data.dims is None:
        return UNKNOWN
    axis = axis_of(node.integer("axis", 0), data.rank)
    if data.values is not None and indices.values is not None and data.rank == 1:
        return fact_of_values(as_values(data.values[indices.values.astype(int)]))
    dims = [*data.sizes[:axis], *indices.sizes, *data.sizes[axis + 1 :]]
    if data.rows is not None:
        if indices.rows is not None or data.rows.axis == axis:
            raise NotProven(_REACHES)
        moved = data.rows.axis if data.rows.axis < axis else data.rows.axis - 1 + indices.rank
        return fact_of(dims, data.rows.at(moved))
    return fact_of(dims, indices.rows.at(axis + indices.rows.axis) if indices.rows is not None else None)


def _gather_elements(node: Node) -> Fact:
    data, indices = node.input(0), node.input(1)
    axis = axis_of(node.integer("axis", 0), data.rank)
    keep_apart(data, [axis])
    if data.rows != indices.rows and not (data.rows is None and indices.rows is not None and indices.rows.axis == axis):
        raise NotProven(_REACHES)
    return fact_of(indices.sizes, indices.rows)


def _gather_nd(node: Node) -> Fact:
    data, indices = node.input(0), node.input(1)
    batched = node.integer("batch_dims", 0)
    depth = indices.sizes[-1].number
    if depth is None:
        raise NotProven("is told what to do only when the model runs")
    keep_apart(indices, [indices.rank - 1])
    if data.rows is not None:
        if data.rows != indices.rows or data.rows.axis >= batched:
            raise NotProven(_REACHES)
    elif indices.rows is not None and indices.rows.axis < batched:
        raise NotProven("combines rows with something that has a fixed number of them")
    return fact_of([*indices.sizes[:-1], *data.sizes[batched + depth :]], indices.rows)


def _scatter_elements(node: Node) -> Fact:
    data, indices, updates = node.input(0), node.input(1), node.input(2)
    keep_apart(data, [axis_of(node.integer("axis", 0), data.rank)])
    if data.rows is None or not data.rows == indices.rows == updates.rows:
        raise NotProven(_REACHES)
    return fact_of(data.sizes, data.rows)


def _one_hot(node: Node) -> Fact:
    node.uniform(1, 2)
    indices = node.input(0)
    depth = node.input(1).values
    axis = axis_of(node.integer("axis", -1), indices.rank + 1)
    number = depth.flat[0] if depth is not None and depth.size == 1 else node.fresh(axis)
    dims = list(indices.sizes)
    dims.insert(axis, number if isinstance(number, Dim) else Dim(int(number)))
    rows = indices.rows
    return fact_of(dims, rows.at(rows.axis + (axis <= rows.axis)) if rows is not None else None)


def _array_feature_extractor(node: Node) -> Fact:
    """Picks columns of the last dimension (``ai.onnx.ml``)."""
    node.uniform(1)
    data, indices = node.input(0), node.input(1)
    keep_apart(data, [data.rank - 1])
    if data.rank < 2:
        raise NotProven(_REACHES)
    return fact_of([*data.sizes[:-1], indices.sizes[-1]], data.rows)


def _table(node: Node) -> Fact:
    """Operators of ``ai.onnx.ml`` that treat each element by itself."""
    data = node.input(0)
    return Fact(data.dims, data.rows)


def _features(node: Node) -> Fact:
    """Those that work on the features of each row."""
    data = node.input(0)
    return fact_of(data.sizes, _table_rows(data))


def _scores(node: Node) -> list[Fact]:
    """Predictors: for each row of features a label or value, and as many scores as there are classes."""
    data = node.input(0)
    rows = _table_rows(data)
    if node.op.endswith("Classifier"):
        return [fact_of(data.sizes[:1], rows), fact_of([data.sizes[0], node.fresh(1, 1)], rows)]
    return [fact_of([data.sizes[0], node.fresh(1)], rows)]


def _one_hot_categories(node: Node) -> Fact:
    data = node.input(0)
    categories = node.attributes.get("cats_int64s") or node.attributes.get("cats_strings") or ()
    return fact_of([*data.sizes, Dim(len(categories))], data.rows)


def _table_rows(data: Fact) -> Rows | None:
    if data.rank != 2 or (data.rows is not None and data.rows.axis != 0):
        raise NotProven("mixes rows: they are not in the dimension that it takes for them")
    return data.rows


RULES: Mapping[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "OneHot": _one_hot,
}
TABLE_RULES: Mapping[str, Rule] = {
    **same_rule("Binarizer CategoryMapper LabelEncoder", _table),
    **same_rule("Imputer Normalizer Scaler", _features),
    **same_rule("LinearClassifier SVMClassifier TreeEnsembleClassifier", _scores),
    **same_rule("LinearRegressor SVMRegressor TreeEnsembleRegressor", _scores),
    "ArrayFeatureExtractor": _array_feature_extractor,
    "OneHotEncoder": _one_hot_categories,
}
