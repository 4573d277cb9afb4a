"""KServe's v1 protocol: bodies of predict calls to requests. Pure.

The two forms are TensorFlow Serving's: rows (``instances``), which are stacked along the first dimension, and columns
(``inputs``), which are whole tensors. Neither says datatypes; those are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import RequestContext
from roost.core.tensors import DATATYPES, Buffer, Parameters, Tensor, TensorSpec, element_count, pack_bytes
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.codec_base64 import decode_base64
from roost.server.rest.codec_json import SourceText, check_depth, flatten, kind, pack_elements, parse_json, slices
from roost.server.rest.codec_parameters import request_parameters

_KNOWN_KEYS = frozenset({"instances", "inputs", "id", "parameters"})
BASE64_KEY = "b64"


@dataclass(slots=True)
class PredictRequest(RestInferRequest):
    """A predict call; ``in_rows`` says that it came as rows, so that its answer goes out as rows."""

    in_rows: bool = False


def decode_predict(
    body: memoryview, inputs: Sequence[TensorSpec], *, model_name: str, model_version: str, context: RequestContext
) -> PredictRequest:
    """Reads the body of a predict call.

    Args:
        body: The whole body, not compressed.
        inputs: The model's, batch dimension included.
        model_name: From the path.
        model_version: From the path, empty if it is not there.
        context: The request's context; parameters may bring its deadline closer and set its priority.

    Raises:
        InvalidArgument: Whatever is wrong with the body.
    """
    return predict_of(parse_json(body), body, inputs, model_name, model_version, context)


def predict_of(
    document: object,
    body: memoryview,
    inputs: Sequence[TensorSpec],
    model_name: str,
    model_version: str,
    context: RequestContext,
) -> PredictRequest:
    """The same for a body that is parsed already."""
    if type(document) is not dict:
        raise InvalidArgument(f"unable to parse the request JSON: expected an object, got {kind(document)}")
    in_rows = "instances" in document
    if in_rows == ("inputs" in document):
        raise InvalidArgument(
            'a predict request has either "instances" (rows) or "inputs" (columns), this one has '
            + ("both" if in_rows else "neither")
        )
    for key in document.keys() - _KNOWN_KEYS:
        check_depth(document[key], 2)
    parameters: Parameters = {}
    if "parameters" in document:
        parameters, _ = request_parameters(document["parameters"], context, SourceText(body))
    model = _Model(model_name, {spec.name: spec for spec in inputs})
    tensors = model.of_rows(document["instances"]) if in_rows else model.of_columns(document["inputs"])
    id_ = document.get("id")
    if type(id_) is not str:
        check_depth(id_, 2)
        id_ = ""
    return PredictRequest(model_name, model_version, context, tensors, id=id_, parameters=parameters, in_rows=in_rows)


class _Model:
    """What is known of a model's inputs."""

    def __init__(self, name: str, specs: Mapping[str, TensorSpec]) -> None:
        self._name = name
        self._specs = specs

    def of_rows(self, instances: object) -> list[Tensor]:
        """The tensors of ``instances``: one value for each, or one object with a value for each input."""
        if type(instances) is not list:
            raise InvalidArgument(f"unable to parse 'instances': expected an array, got {kind(instances)}")
        if not instances:
            raise InvalidArgument("no instances in the request")
        columns = _columns(instances) if _is_named(instances[0]) else {self._only("instances"): instances}
        tensors = []
        for name, column in columns.items():
            spec = self._spec(name)
            self._check_rows(spec, len(instances))
            tensors.append(_tensor(spec, column))
        return tensors

    def of_columns(self, inputs: object) -> list[Tensor]:
        """The tensors of ``inputs``: an object with a tensor for each input, or the tensor of the only one."""
        columns = inputs if _is_named(inputs) else {self._only("inputs"): inputs}
        assert type(columns) is dict
        return [_tensor(self._spec(name), value) for name, value in columns.items()]

    def _spec(self, name: str) -> TensorSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise InvalidArgument(
                f"unexpected inference input '{name[:128]}' for model '{self._name}', it takes {self._names()}"
            )
        return spec

    def _only(self, key: str) -> str:
        required = [spec.name for spec in self._specs.values() if not spec.optional] or list(self._specs)
        if len(required) != 1:
            form = "is an object with a tensor for each" if key == "inputs" else "holds objects with a value for each"
            raise InvalidArgument(
                f"model '{self._name}' takes {len(self._specs)} inputs ({self._names()}), so that '{key}' {form}"
            )
        return required[0]

    def _names(self) -> str:
        return ", ".join(f"'{name}'" for name in self._specs)

    def _check_rows(self, spec: TensorSpec, rows: int) -> None:
        """Rows are stacked, so the first dimension has to take as many."""
        if not spec.shape:
            raise InvalidArgument(
                f"input '{spec.name}' of model '{self._name}' is a single value, which no instances can make up: "
                'send it as "inputs"'
            )
        if spec.shape[0] not in (-1, rows):
            raise InvalidArgument(
                f"got {rows} instances for model '{self._name}', which has no batch dimension: its input "
                f"'{spec.name}' has the shape {list(spec.shape)} and takes exactly {spec.shape[0]}"
            )


def _is_named(value: object) -> bool:
    """Whether this is an object of values by input, and not base64."""
    return type(value) is dict and not _is_base64(value)


def _is_base64(value: object) -> bool:
    return type(value) is dict and len(value) == 1 and type(value.get(BASE64_KEY)) is str


def _columns(instances: list[Any]) -> dict[str, list[Any]]:
    """Turns instances that name their inputs around."""
    names = instances[0].keys()
    for index, instance in enumerate(instances):
        if type(instance) is not dict or instance.keys() != names:
            raise InvalidArgument(f"instance {index} does not have the same inputs as instance 0")
    return {name: [instance[name] for instance in instances] for name in names}


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    """A tensor of evenly nested arrays, or of one element."""
    shape = _shape(value)
    try:
        count = element_count(shape)
    except InvalidArgument as error:
        raise InvalidArgument(f"input '{spec.name}': {error.message}") from None
    elements = value if type(value) is list else [value]
    if spec.datatype == "BYTES":
        data = _pack_strings(spec.name, shape, count, elements)
    else:
        data = pack_elements(spec.name, DATATYPES[spec.datatype], shape, count, elements)
    return Tensor(spec.name, spec.datatype, shape, data)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape, if the arrays are nested evenly, which whoever flattens them finds out."""
    shape: list[int] = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _pack_strings(name: str, shape: Sequence[int], count: int, data: list[Any]) -> Buffer:
    elements, kinds = flatten(name, data)
    if dict not in kinds:
        return pack_elements(name, DATATYPES["BYTES"], shape, count, elements)
    return b"".join([pack_bytes([_bytes(name, item) for item in piece]) for piece in slices(elements)])


def _bytes(name: str, item: Any) -> bytes:
    if type(item) is str:
        return item.encode()
    if not _is_base64(item):
        expected = 'strings and objects like {"b64": "..."}'
        raise InvalidArgument(f"unable to parse 'data' of input '{name}': BYTES expects {expected}, got {kind(item)}")
    text = item[BASE64_KEY]
    try:
        # TensorFlow Serving does without the padding.
        return decode_base64(text + "=" * (-len(text) % 4))
    except ValueError:
        raise InvalidArgument(f"unable to parse 'data' of input '{name}': 'b64' holds what is not base64") from None
