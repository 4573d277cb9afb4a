"""ONNX files: what the graph takes and gives, what it is made of, and where its weights are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.core.tensors import Signature, TensorSpec
from roost.server.inspection.report import Findings

_DATATYPES: Mapping[int, str] = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
_OWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "org.pytorch.aten"})
_OWN_PREFIXES = ("com.microsoft", "com.ms.internal")
_EXTERNAL = 1  # TensorProto.DataLocation
_MAX_SHOWN = 5
_MAX_BYTES = 2 << 30  # of a protobuf


def look_at_onnx(path: str, root: str) -> Findings:
    """Looks at a file; weights outside of it are not read.

    Args:
        path: The file.
        root: The folder that everything of the model has to be in.
    """
    found = Findings()
    try:
        import onnx
    except ImportError:
        found.notes.append("only a load can tell what it takes and gives: the package 'onnx' is not installed")
        return found
    if os.path.getsize(path) > _MAX_BYTES:
        found.problems.append("the file is larger than 2 GiB, which no ONNX file can be: save its weights beside it")
        return found
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # what its parsers raise has no common base, and depends on which of them is there
        found.problems.append(f"the file is no ONNX model, or damaged: {type(error).__name__}")
        return found
    if not model.graph.node and not model.graph.output:
        found.problems.append("the file is no ONNX model: it has no graph")
        return found
    try:
        _describe(model, path, root, found)
    except (AttributeError, TypeError):  # names that are not UTF-8 are bytes
        found.problems.append("the file is damaged: a text in it is not UTF-8")
    return found


def _describe(model: Any, path: str, root: str, found: Findings) -> None:
    found.what = _described(model)
    found.problems += _external(model, path, root)
    domains = sorted({node.domain for graph in _graphs(model) for node in graph.node} - _defined(model))
    foreign = [shorten(name) for name in domains if name not in _OWN_DOMAINS and not name.startswith(_OWN_PREFIXES)]
    if foreign:
        found.problems.append(f"it has operators that ONNX Runtime does not have, of {', '.join(foreign[:_MAX_SHOWN])}")
    try:
        found.signature = _signature(model.graph)
    except InvalidArgument as error:
        found.problems.append(error.message)


def operators_that_mix_rows(path: str) -> str:
    """Why rows of a model can't be run together, as far as its graph tells; empty if it tells nothing against it."""
    try:
        from roost.runtimes.proof.dims import NotProven
        from roost.runtimes.proof.graph import check_graph
    except ImportError:
        return "the package 'onnx' is not installed"
    try:
        check_graph(path)
    except NotProven as reason:
        return str(reason)
    return ""


def _described(model: Any) -> str:
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    text = f"ONNX, IR version {model.ir_version}, operators of {opsets or 'no version'}"
    producer = " ".join(part for part in (model.producer_name, model.producer_version) if part)
    return f"{text}; made by {shorten(producer)}" if producer else text


def _signature(graph: Any) -> Signature:
    # Inputs that have a value are weights in old files, and ONNX Runtime shows none of them.
    given = {tensor.name for tensor in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = (_spec("input", value) for value in graph.input if value.name not in given)
    return Signature(tuple(inputs), tuple(_spec("output", value) for value in graph.output))


def _spec(kind: str, value: Any) -> TensorSpec:
    if not isinstance(value.name, str):
        raise TypeError("a name is not UTF-8")
    name = shorten(value.name)
    which = value.type.WhichOneof("value")
    if which != "tensor_type":
        what = (which or "thing of unknown type").removesuffix("_type").replace("_", " ")
        is_map = "map" in _kinds(value.type)
        hint = " (scikit-learn models: convert them with the option zipmap=False)" if is_map else ""
        raise InvalidArgument(f"{kind} '{name}' is a {what}, which can't be served{hint}")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _DATATYPES:
        raise InvalidArgument(f"{kind} '{name}' is of ONNX's datatype {tensor.elem_type}, which can't be served")
    dims = (dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorSpec(value.name, _DATATYPES[tensor.elem_type], tuple(dim if dim >= 0 else -1 for dim in dims))


def _kinds(type_: Any) -> str:
    """What a type is made of, in words."""
    which = type_.WhichOneof("value")
    if which == "sequence_type":
        return f"sequence of {_kinds(type_.sequence_type.elem_type)}"
    return str(which)


def _external(model: Any, path: str, root: str) -> Iterator[str]:
    """What is wrong with the files that weights are in."""
    folder, inside = os.path.dirname(path), os.path.realpath(root)
    for location in sorted(_locations(model)):
        target = os.path.realpath(os.path.join(folder, location))
        if not location or os.path.isabs(location) or not target.startswith(inside + os.sep):
            yield f"its weights are in '{shorten(location)}', which is not in the model's folder"
        elif not os.path.isfile(target):
            yield f"its weights are in '{shorten(location)}', which is missing"


def _locations(model: Any) -> set[str]:
    found = set()
    for graph in _graphs(model):
        tensors = list(graph.initializer)
        tensors += [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in tensors:
            if tensor.data_location == _EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                found.add(entries.get("location", ""))
    return found


def _graphs(model: Any) -> Iterator[Any]:
    """The graph and all those in its operators."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _defined(model: Any) -> set[str]:
    """The domains of functions that the model brings."""
    return {function.domain for function in model.functions}
