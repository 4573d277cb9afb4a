"""All operators that are known to keep rows apart, under which conditions, and what is said of some that do not.

What is not here is not proven: an operator that nobody has looked at may do anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from roost.runtimes.proof import (
    rules_axes,
    rules_elementwise,
    rules_images,
    rules_lookup,
    rules_parts,
    rules_products,
    rules_shapes,
)
from roost.runtimes.proof.nodes import Rule

OLDEST_OPSET = 7
"""Before, elementwise operators broadcast in ways of their own."""

RULES: Mapping[str, Mapping[str, Rule]] = {
    "": {
        **rules_axes.RULES,
        **rules_elementwise.RULES,
        **rules_images.RULES,
        **rules_lookup.RULES,
        **rules_parts.RULES,
        **rules_products.RULES,
        **rules_shapes.RULES,
    },
    "ai.onnx.ml": rules_lookup.TABLE_RULES,
    "com.microsoft": {**rules_axes.MICROSOFT_RULES, **rules_elementwise.MICROSOFT_RULES},
}

SIZE_INPUTS: Mapping[str, frozenset[int]] = {
    "CastLike": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({3}),
    "Shape": frozenset({0}),
    "Size": frozenset({0}),
    "Slice": frozenset({1, 2}),
    "Tile": frozenset({1}),
}
"""Inputs whose rule deals with the number of rows; elsewhere it may only go into sizes that are known in turn."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_ONE_SCALE = "mixes rows: it chooses one scale for all of them"
_ALL_ROWS = "mixes rows: how much it gives depends on all of them"
MIXES: Mapping[str, str] = {
    "Compress": _ALL_ROWS,
    "DynamicQuantizeLSTM": _ONE_SCALE,
    "DynamicQuantizeLinear": _ONE_SCALE,
    "DynamicQuantizeMatMul": _ONE_SCALE,
    "NonMaxSuppression": _ALL_ROWS,
    "NonZero": _ALL_ROWS,
    "ScatterND": "mixes rows: its indices may reach other rows",
    "StringSplit": _ALL_ROWS,
    "Unique": _ALL_ROWS,
}
