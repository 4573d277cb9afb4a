"""The static half of the proof: every operator of the graph keeps the rows apart.

What each tensor holds is followed from the inputs, whose first dimension is the batch, to the outputs, where it must be
the first dimension again. The weights are not read, only their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import numpy_helper
from roost.core.names import shorten
from roost.runtimes.proof.dims import BATCH, Dim, NotProven, symbol
from roost.runtimes.proof.facts import MAX_VALUES, Dims, Fact, Rows, as_values, fact_of, rows_of
from roost.runtimes.proof.nodes import Node
from roost.runtimes.proof.rules import MIXES, OLDEST_OPSET, RANDOM, RULES, SIZE_INPUTS

_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_MAX_NODES = 100_000
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def check_graph(path: str) -> None:
    """Checks that the operators of a model keep rows apart.

    Raises:
        NotProven: If one may not, or if that can't be told; the text names the operator.
    """
    model = _read(path)
    try:
        _Graph(model).check()
    except _MALFORMED as error:
        raise NotProven("its graph can't be read") from error


def _read(path: str) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _forget_weights(model.graph)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise NotProven("its file can't be read") from error
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        return model  # it only adds to what the rules find out


def _forget_weights(graph: onnx.GraphProto) -> None:
    """Drops the elements of large tensors: only their sizes matter, and they would be copied several times."""
    constants = (a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
    for tensor in (*graph.initializer, *constants):
        if not _is_small(tensor.dims):
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "string_data"):
                tensor.ClearField(field)


def _is_small(dims: Iterable[int]) -> bool:
    count = 1
    for dim in dims:
        count *= dim
    return count <= MAX_VALUES


class _Graph:
    """One graph and what is known of its tensors so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self._facts: dict[str, Fact] = {}
        self._inferred = {value.name: _sizes_of(value) for value in (*model.graph.value_info, *model.graph.output)}

    def check(self) -> None:
        if self._opsets.get("", OLDEST_OPSET) < OLDEST_OPSET:
            raise NotProven(f"it uses operators older than version {OLDEST_OPSET} of ONNX")
        if len(self._graph.node) > _MAX_NODES:
            raise NotProven(f"it has more than {_MAX_NODES} operators")
        for tensor in self._graph.initializer:
            self._facts[tensor.name] = fact_of_tensor(tensor)
        for sparse in self._graph.sparse_initializer:
            self._facts[sparse.values.name] = fact_of([Dim(dim) for dim in sparse.dims])
        self._begin()
        for node in self._needed():
            self._follow(node)
        for value in self._graph.output:
            self._check_output(value)

    def _begin(self) -> None:
        """Takes the first dimension of each input for the batch."""
        inputs = [value for value in self._graph.input if value.name not in self._facts]
        batch_names = {_dims_of(value)[0].dim_param for value in inputs if _dims_of(value)} - {""}
        for value in inputs:
            dims = _dims_of(value)
            _require_open(dims, "input", value.name)
            if any(dim.dim_param in batch_names for dim in dims[1:]):
                raise NotProven(f"input '{_shown(value.name)}' has the number of rows in another dimension too")
            others = [_size_of(dim, value.name, axis) for axis, dim in enumerate(dims)][1:]
            self._facts[value.name] = fact_of([BATCH, *others], Rows(0))

    def _needed(self) -> Iterator[onnx.NodeProto]:
        """The nodes that outputs depend on, in the order in which they can be computed."""
        wanted = {value.name for value in self._graph.output}
        needed: list[onnx.NodeProto] = []
        for node in reversed(self._graph.node):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                needed.append(node)
        return reversed(needed)

    def _follow(self, node: onnx.NodeProto) -> None:
        try:
            for name, fact in zip(node.output, self._outputs_of(node), strict=False):
                self._facts[name] = fact
        except NotProven as error:
            where = f" (node '{_shown(node.name)}')" if node.name else ""
            raise NotProven(f"operator {_shown(node.op_type)} {error}{where}") from None

    def _outputs_of(self, proto: onnx.NodeProto) -> Sequence[Fact]:
        if proto.op_type == "Constant" and _domain(proto.domain) == "":
            return [_fact_of_constant(proto)]
        if any(attribute.type in _GRAPHS for attribute in proto.attribute):
            raise NotProven("runs another graph inside this one")
        if proto.op_type in RANDOM:
            raise NotProven("draws random numbers")
        node = self._node_of(proto)
        try:
            return self._apply(node, _domain(proto.domain))
        except NotProven:
            if rows_of(node.present) or any(fact.counts_rows for fact in node.present) or proto.op_type == "Dropout":
                raise
            if not onnx.defs.has(proto.op_type, domain=_domain(proto.domain)):
                raise
        # Whatever it is, it computes the same for each row.
        return [Fact(sizes) for sizes in node.inferred]

    def _node_of(self, proto: onnx.NodeProto) -> Node:
        missing = [name for name in proto.input if name and name not in self._facts]
        if missing:
            raise NotProven(f"comes before its input '{_shown(missing[0])}'")
        return Node(
            proto.op_type,
            self._opsets.get(_domain(proto.domain), 1),
            [self._facts[name] if name else None for name in proto.input],
            list(proto.output),
            {attribute.name: _attribute(attribute) for attribute in proto.attribute},
            [self._inferred.get(name) for name in proto.output],
        )

    def _apply(self, node: Node, domain: str) -> Sequence[Fact]:
        rule = RULES.get(domain, {}).get(node.op)
        if rule is None:
            raise NotProven(MIXES.get(node.op, "is not known to keep rows apart"))
        try:
            found = rule(node)
        except _MALFORMED as error:
            raise NotProven("has inputs or attributes that can't be made sense of") from error
        facts = [found] if isinstance(found, Fact) else found
        sizes_allowed = SIZE_INPUTS.get(node.op, frozenset())
        for position, fact in enumerate(node.inputs):
            if fact is None or not fact.counts_rows or position in sizes_allowed:
                continue
            if any(output.values is None for output in facts):
                raise NotProven("computes with the number of rows")
        return facts

    def _check_output(self, value: onnx.ValueInfoProto) -> None:
        name, fact = _shown(value.name), self._facts.get(value.name)
        if fact is None or fact.rows is None:
            raise NotProven(f"output '{name}' is the same whatever the rows are")
        if fact.rows != Rows(0):
            raise NotProven(f"output '{name}' does not have one element of its first dimension for each row")
        if _dims_of(value):
            _require_open(_dims_of(value), "output", value.name)


def fact_of_tensor(tensor: onnx.TensorProto) -> Fact:
    """What is known of a weight or constant: its elements if they are few numbers that lie in the model's file."""
    fact = fact_of([Dim(dim) for dim in tensor.dims])
    if not _is_small(tensor.dims) or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return fact
    array = numpy_helper.to_array(tensor)
    return Fact(fact.dims, None, as_values(array.tolist())) if array.dtype.kind in "biuf" else fact


def _fact_of_constant(proto: onnx.NodeProto) -> Fact:
    (attribute,) = proto.attribute
    if attribute.type == onnx.AttributeProto.TENSOR:
        return fact_of_tensor(attribute.t)
    if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        return fact_of([Dim(dim) for dim in attribute.sparse_tensor.dims])
    values = as_values(_attribute(attribute))
    fact = fact_of([Dim(dim) for dim in values.shape])
    is_text = attribute.type in (onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS)
    return fact if is_text or values.size > MAX_VALUES else Fact(fact.dims, None, values)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t) if _is_small(attribute.t.dims) else None
    return onnx.helper.get_attribute_value(attribute)


def _domain(domain: str) -> str:
    return "" if domain in _DEFAULT_DOMAINS else domain


def _dims_of(value: onnx.ValueInfoProto) -> Sequence[Any]:
    return list(value.type.tensor_type.shape.dim)


def _sizes_of(value: onnx.ValueInfoProto) -> Dims | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        Dim(dim.dim_value) if dim.HasField("dim_value") else symbol(f"{value.name}[{axis}]")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def _size_of(dim: Any, name: str, axis: int) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value > 0:  # some exporters write 0 for what is open
        return Dim(dim.dim_value)
    return symbol(dim.dim_param or f"{name}[{axis}]")


def _require_open(dims: Sequence[Any], what: str, name: str) -> None:
    if not dims:
        raise NotProven(f"{what} '{_shown(name)}' has no dimension for rows")
    if dims[0].HasField("dim_value") and dims[0].dim_value > 0:
        raise NotProven(f"{what} '{_shown(name)}' has a fixed first dimension")


def _shown(name: str) -> str:
    return shorten("".join(c if c.isprintable() else "?" for c in name), 80)
