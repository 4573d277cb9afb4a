"""What simulated users send: which model next, and inputs made from what the server says of the model."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from roost.core.tensors import DATATYPES, Tensor, from_array
from roost.proto import grpc_service_pb2 as pb

_BF16_ONE = 0x3F80


class Zipf:
    """Draws models so that the one of rank k comes ``1 / k ** exponent`` as often as the first.

    Args:
        names: In order of rank.
        exponent: 0 draws all alike; traffic of real services has about 1.
        seed: Of the draws.
    """

    def __init__(self, names: Sequence[str], exponent: float, seed: int | None = None) -> None:
        if not names:
            raise ValueError("there are no models to draw from")
        self._names = list(names)
        self._weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, len(names) + 1)))
        self._random = random.Random(seed)

    def draw(self) -> str:
        """The next model."""
        return self._random.choices(self._names, cum_weights=self._weights)[0]


def inputs_of(metadata: Mapping[str, Any], rows: int, rng: np.random.Generator) -> list[Tensor]:
    """Random inputs for a model.

    Args:
        metadata: What ``GET /v2/models/NAME`` answers.
        rows: What a first dimension becomes that the model leaves open; every other open dimension becomes 1.
        rng: Where values come from. Integers are 0 or 1, which every table that a model looks them up in has.
    """
    return [_input(declared, rows, rng) for declared in metadata["inputs"]]


def _input(declared: Mapping[str, Any], rows: int, rng: np.random.Generator) -> Tensor:
    name, datatype = str(declared["name"]), str(declared["datatype"])
    dims = [int(dim) for dim in declared["shape"]]
    shape = [(rows if index == 0 else 1) if dim < 0 else dim for index, dim in enumerate(dims)]
    dtype = DATATYPES[datatype].dtype
    if dtype is None:
        return from_array(name, datatype, np.full(shape, b"text", object))
    if datatype == "BF16":  # as the bits that it is seen as
        return from_array(name, datatype, np.full(shape, _BF16_ONE, dtype))
    values = rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
    return from_array(name, datatype, values.astype(dtype))


def rest_body(inputs: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request with binary tensors, which asks for binary outputs."""
    described = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for tensor in inputs
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return b"".join([head, *(bytes(tensor.data) for tensor in inputs)]), headers


def grpc_message(model: str, inputs: Sequence[Tensor]) -> bytes:
    """A ``ModelInferRequest`` with raw contents."""
    request = pb.ModelInferRequest(model_name=model)
    for tensor in inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(bytes(tensor.data))
    message: bytes = request.SerializeToString()
    return message
