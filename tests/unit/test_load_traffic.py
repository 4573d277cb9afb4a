"""What simulated users send."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from roost.core.requests import RequestContext
from roost.core.tensors import to_array
from roost.proto import grpc_service_pb2 as pb
from roost.server.rest.codec import decode_infer

from loadtests.traffic import Zipf, grpc_message, inputs_of, rest_body


def test_models_come_by_zipfs_law() -> None:
    names = [f"m{rank}" for rank in range(1, 51)]
    zipf = Zipf(names, 1.0, seed=0)
    seen = Counter(zipf.draw() for _ in range(20_000))
    assert seen["m1"] / seen["m2"] == pytest.approx(2.0, rel=0.15)
    assert seen["m1"] / seen["m10"] == pytest.approx(10.0, rel=0.25)
    assert set(seen) == set(names)


def test_an_exponent_of_zero_draws_all_alike() -> None:
    zipf = Zipf(["a", "b"], 0.0, seed=0)
    seen = Counter(zipf.draw() for _ in range(2_000))
    assert seen["a"] == pytest.approx(1_000, rel=0.1)


def test_there_must_be_models() -> None:
    with pytest.raises(ValueError, match="no models"):
        Zipf([], 1.0)


METADATA = {
    "inputs": [
        {"name": "floats", "datatype": "FP32", "shape": [-1, 3, -1]},
        {"name": "indices", "datatype": "INT64", "shape": ["-1", "4"]},
        {"name": "words", "datatype": "BYTES", "shape": [2]},
        {"name": "halves", "datatype": "BF16", "shape": [1]},
    ]
}


def test_inputs_fit_what_the_model_says() -> None:
    inputs = inputs_of(METADATA, 5, np.random.default_rng(0))
    assert [(tensor.datatype, tensor.shape) for tensor in inputs] == [
        ("FP32", (5, 3, 1)),
        ("INT64", (5, 4)),
        ("BYTES", (2,)),
        ("BF16", (1,)),
    ]
    assert set(to_array(inputs[1]).ravel()) <= {0, 1}
    assert to_array(inputs[2]).tolist() == [b"text", b"text"]


def test_both_transports_carry_the_same_inputs() -> None:
    inputs = inputs_of(METADATA, 1, np.random.default_rng(0))
    body, headers = rest_body(inputs)
    rest = decode_infer(
        memoryview(body),
        int(headers["Inference-Header-Content-Length"]),
        model_name="m",
        model_version="",
        context=RequestContext(0.0, 1.0),
    )
    message = pb.ModelInferRequest.FromString(grpc_message("m", inputs))
    assert [bytes(tensor.data) for tensor in rest.inputs] == [*message.raw_input_contents]
    assert [(tensor.name, tensor.shape) for tensor in rest.inputs] == [
        (tensor.name, tuple(tensor.shape)) for tensor in message.inputs
    ]
    assert message.model_name == "m"
