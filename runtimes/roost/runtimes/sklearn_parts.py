"""The parts of an estimator, however deep they are in it, and whether its trees stay within their arrays.

The loops that walk a fitted tree trust its numbers of nodes, features and rows. skops therefore trusts no file with
trees: a crafted one would make the process read beyond an array. What those loops rely on can be checked once, after
the load.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument
from scipy.sparse import issparse
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
from sklearn.neighbors import BallTree, KDTree
from sklearn.tree._tree import Tree

_LEAF = -1
_WORDS_OF_CATEGORIES = 8
_CLOSED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def parts(model: Any) -> Iterator[Any]:
    """All objects that a model consists of, each once; classes, functions and what belongs to them are none."""
    seen: set[int] = set()
    left = [model]
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, _CLOSED):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, np.ndarray):  # the collector does not look into arrays
            if part.dtype == object:
                left.extend(part.flat)
        else:
            left.extend(gc.get_referents(part))


def check_arrays(model: Any) -> None:
    """Checks that whoever walks down the model's trees ends at a leaf, and looks at features that rows have.

    Raises:
        InvalidArgument: If not.
    """
    known: dict[int, int] = {}  # trees that were checked, and the features that they need
    for part in parts(model):
        if isinstance(part, Tree):
            known[id(part)] = _checked_tree(part)
        elif isinstance(part, KDTree | BallTree):
            _check_neighbors(part)
        elif issparse(part):
            _check_sparse(part)
    for part in parts(model):
        _check_owner(part, known)


def _check_owner(part: Any, known: dict[int, int]) -> None:
    """Checks that a row which an estimator lets through has all features that its trees look at."""
    attributes: dict[str, Any] = getattr(part, "__dict__", {})
    width = attributes.get("n_features_in_", 0)
    # Ensembles hand their own rows, or fewer columns of them, to their trees without another check.
    own = [part, *_items(attributes.get("estimators_"))]
    trees = [tree for holder in own if isinstance(tree := getattr(holder, "__dict__", {}).get("tree_"), Tree)]
    needed = max((known[id(tree)] for tree in trees), default=0)
    if "_predictors" in attributes:
        predictors = [
            predictor for predictor in parts(attributes["_predictors"]) if isinstance(predictor, TreePredictor)
        ]
        needed = max((_checked_predictor(predictor) for predictor in predictors), default=0)
    if needed > width:
        raise InvalidArgument(f"a tree of the model needs {needed} features, but it takes {width}")


def _items(estimators: Any) -> list[Any]:
    """The estimators of an ensemble, which has them in a list or an array."""
    if isinstance(estimators, np.ndarray):
        return estimators.reshape(-1).tolist()
    return estimators if isinstance(estimators, list) else []


def _checked_tree(tree: Any) -> int:
    """How many features a tree needs."""
    count = tree.node_count
    # What the arrays are views of has room for so many nodes; their length is only claimed.
    if not 0 < count <= tree.capacity:
        raise InvalidArgument("a tree of the model is damaged: it has not as many nodes as it says")
    return _checked_nodes(tree.children_left, tree.children_right, tree.feature, tree.children_left != _LEAF)


def _checked_predictor(predictor: Any) -> int:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    by_category = inner & (nodes["is_categorical"] != 0)
    sets = predictor.raw_left_cat_bitsets
    if (
        sets.ndim != 2
        or sets.shape[1:] != (_WORDS_OF_CATEGORIES,)
        or np.any(nodes["bitset_idx"][by_category] >= len(sets))
    ):
        raise InvalidArgument("a tree of the model is damaged: it has no such set of categories")
    return _checked_nodes(nodes["left"], nodes["right"], nodes["feature_idx"], inner)


def _checked_nodes(
    left: npt.NDArray[Any], right: npt.NDArray[Any], feature: npt.NDArray[Any], inner: npt.NDArray[np.bool_]
) -> int:
    """How many features inner nodes look at, once it is sure that every way down goes on to later nodes.

    Frameworks number nodes as they make them, and a child is made after its parent.
    """
    own = np.flatnonzero(inner)
    for children in (left[inner].astype(np.int64), right[inner].astype(np.int64)):
        if np.any(children <= own) or np.any(children >= len(inner)):
            raise InvalidArgument("a tree of the model is damaged: a node has no such child")
    features = feature[inner].astype(np.int64)
    if np.any(features < 0):
        raise InvalidArgument("a tree of the model is damaged: a node looks at no feature")
    return int(features.max(initial=-1)) + 1


def _check_neighbors(tree: Any) -> None:
    """Checks that a tree of neighbours looks at rows that it has, and at nodes: those of node i are 2i+1 and 2i+2."""
    data, rows, nodes, bounds, _, levels, count = tree.__getstate__()[:7]
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    start, end = nodes["idx_start"], nodes["idx_end"]
    if not (
        count == len(nodes) == 2**levels - 1
        and bounds.shape == (2 if isinstance(tree, KDTree) else 1, count, data.shape[1])
        and len(rows) == len(data)
        and np.all((rows >= 0) & (rows < len(data)))
        and np.all((start >= 0) & (start <= end) & (end <= len(data)))
        and np.all(2 * inner + 2 < count)
    ):
        raise InvalidArgument("a tree of the model is damaged: it has not the rows or nodes that it says")


def _check_sparse(matrix: Any) -> None:
    """Checks that a sparse matrix names rows and columns that it has: whoever multiplies it does not look."""
    if matrix.format not in ("csr", "csc"):
        raise InvalidArgument(f"the model has a sparse matrix of the format '{matrix.format}', not 'csr' or 'csc'")
    try:
        matrix.check_format(full_check=True)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InvalidArgument(f"a sparse matrix of the model is damaged: {error}") from None


def thresholds_of(model: Any) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """The features that each of the model's trees looks at, and the values that it compares them to."""
    for part in parts(model):
        if isinstance(part, Tree):
            features, thresholds = part.feature, part.threshold
        elif isinstance(part, TreePredictor):
            inner = part.nodes[part.nodes["is_leaf"] == 0]
            features, thresholds = inner["feature_idx"], inner["num_threshold"]
        else:
            continue
        inner = features >= 0
        yield features[inner].astype(np.int64), thresholds[inner].astype(np.float64)
