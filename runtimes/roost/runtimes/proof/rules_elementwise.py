"""Operators that compute each element from those at the same place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from roost.runtimes.proof.dims import ONE, NotProven
from roost.runtimes.proof.elements import cast, compute
from roost.runtimes.proof.facts import Fact, broadcast, fact_of, fact_of_values
from roost.runtimes.proof.nodes import Node, Rule, axis_of, same_rule

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
_INTEGERS = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    }
)


def _elementwise(node: Node) -> Fact:
    facts = node.present
    values = compute(node.op, facts)
    return broadcast(facts) if values is None else fact_of_values(values)


def _cast(node: Node) -> Fact:
    fact = node.input(0)
    to = node.integer("to", 0)
    if fact.values is not None:
        values = cast(fact.values, to in _INTEGERS) if to != onnx.TensorProto.BOOL else None
        if values is not None:
            return fact_of_values(values)
    return Fact(fact.dims, fact.rows)


def _cast_like(node: Node) -> Fact:
    return Fact(node.input(0).dims, node.input(0).rows)  # of the second input only the datatype counts


def _clip(node: Node) -> Fact:
    node.uniform(1, 2)
    return Fact(node.input(0).dims, node.input(0).rows)


def _dropout(node: Node) -> list[Fact]:
    training = node.optional(2)
    if training is not None and (training.values is None or any(training.values.flat)):
        raise NotProven("draws random numbers: it may be in training mode")
    fact = Fact(node.input(0).dims, node.input(0).rows)
    return [fact, fact]


def _quantize(node: Node) -> Fact:
    """``QuantizeLinear`` and ``DequantizeLinear`` with scales that are part of the model."""
    node.uniform(1, 2)
    fact, scale = node.input(0), node.input(1)
    if fact.rows is not None and any(dim != ONE for dim in scale.sizes):
        if node.integer("block_size", 0):
            raise NotProven("is not known to keep rows apart with blocks")
        if axis_of(node.integer("axis", 1), fact.rank) == fact.rows.axis:
            raise NotProven("treats each row differently")
    return fact_of(fact.sizes, fact.rows) if fact.rows is not None else Fact(fact.dims)


RULES: Mapping[str, Rule] = {
    **same_rule(_UNARY, _elementwise),
    **same_rule(_BROADCAST, _elementwise),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Dropout": _dropout,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
}
MICROSOFT_RULES: Mapping[str, Rule] = same_rule("BiasGelu FastGelu Gelu QuickGelu", _elementwise)
