"""What decoding a request and encoding its answer cost, by format: microseconds, medians of several rounds.

Run from a checkout: ``python loadtests/codecs.py``. The row ``json + numpy`` is what a handler would do that parses the
whole body with the standard library, makes an array of the list, and writes a list of the array.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from roost.core.requests import InferResponse, RequestContext
from roost.core.tensors import Tensor, TensorSpec, from_array
from roost.proto import grpc_service_pb2 as pb
from roost.server import grpc_codec
from roost.server.rest.codec import RestInferRequest, decode_infer
from roost.server.rest.codec_raw import decode_raw
from roost.server.rest.codec_response import encode_large_response, encode_response, large_outputs, write_outputs

SIZES = (16, 150_528)  # a row of features, and an image of 224 x 224 in three colours
_ROUND_S = 0.2


@dataclass(frozen=True)
class Format:
    """One way to carry a tensor, both ways."""

    name: str
    decode: Callable[[], Any]
    encode: Callable[[], Any]


def formats(elements: int) -> list[Format]:
    """All formats, for one FP32 tensor of so many elements."""
    array = np.random.default_rng(1).standard_normal((1, elements), dtype=np.float32)
    tensor = from_array("x", "FP32", array)
    response = InferResponse("model", "1", [from_array("y", "FP32", array)])
    return [*_rest(array, tensor, response), *_grpc(array, tensor, response), _plain(array)]


def _context() -> RequestContext:
    return RequestContext(0.0, math.inf)


def _rest(array: Any, tensor: Tensor, response: InferResponse) -> list[Format]:
    described = {"name": "x", "datatype": "FP32", "shape": list(tensor.shape)}
    in_json = json.dumps({"inputs": [{**described, "data": array.tolist()}]}).encode()
    size = len(tensor.data)
    options = {"binary_data_output": True}
    head = json.dumps(
        {"inputs": [{**described, "parameters": {"binary_data_size": size}}], "parameters": options}
    ).encode()
    in_binary = head + bytes(tensor.data)
    specs = [TensorSpec("x", "FP32", (1, -1))]

    def decode(body: bytes, header_length: int | None) -> RestInferRequest:
        view = memoryview(body)
        return decode_infer(view, header_length, model_name="model", model_version="", context=_context())

    def raw() -> RestInferRequest:
        view = memoryview(tensor.data)
        return decode_raw(view, specs, 0, model_name="model", model_version="", context=_context())

    def encode(request: RestInferRequest) -> Any:
        if large := large_outputs(response, request):
            return encode_large_response(response, request, write_outputs(large))
        return encode_response(response, request)

    json_request, binary_request = decode(in_json, None), decode(in_binary, len(head))
    return [
        Format("REST, JSON", lambda: decode(in_json, None), lambda: encode(json_request)),
        Format("REST, binary", lambda: decode(in_binary, len(head)), lambda: encode(binary_request)),
        Format("REST, raw", raw, lambda: encode(binary_request)),
    ]


def _grpc(array: Any, tensor: Tensor, response: InferResponse) -> list[Format]:
    raw = pb.ModelInferRequest(model_name="model", raw_input_contents=[bytes(tensor.data)])
    typed = pb.ModelInferRequest(model_name="model")
    for message in (raw, typed):
        message.inputs.add(name="x", datatype="FP32", shape=tensor.shape)
    typed.inputs[0].contents.fp32_contents.extend(array.reshape(-1).tolist())
    in_raw, in_typed = raw.SerializeToString(), typed.SerializeToString()

    def encode() -> bytes:
        return grpc_codec.encode_response(response)

    return [
        Format("gRPC, raw", lambda: grpc_codec.decode_infer(in_raw, 0.0, math.inf), encode),
        Format("gRPC, typed", lambda: grpc_codec.decode_infer(in_typed, 0.0, math.inf), encode),
    ]


def _plain(array: Any) -> Format:
    described = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
    body = json.dumps({"inputs": [{**described, "data": array.tolist()}]}).encode()

    def decode() -> Any:
        item = json.loads(body)["inputs"][0]
        return np.array(item["data"], dtype=np.float32).reshape(item["shape"])

    def encode() -> bytes:
        output = {**described, "data": array.reshape(-1).tolist()}
        return json.dumps({"model_name": "model", "model_version": "1", "outputs": [output]}).encode()

    return Format("json + numpy", decode, encode)


def time_us(call: Callable[[], Any], rounds: int) -> float:
    """The median over rounds of what one call takes."""
    call()
    began = time.perf_counter()
    call()
    repeat = max(1, min(20_000, int(_ROUND_S / max(1e-7, time.perf_counter() - began))))
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeat):
            call()
        found.append((time.perf_counter() - began) / repeat * 1e6)
    return statistics.median(found)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"Python {platform.python_version()}, {platform.machine()}, {rounds} rounds, microseconds\n")
    heads = [f"{what}, {size:,} elements" for size in SIZES for what in ("decode", "encode")]
    print("| | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    columns = [formats(size) for size in SIZES]
    for row in zip(*columns, strict=True):
        cells = [time_us(call, rounds) for item in row for call in (item.decode, item.encode)]
        print(f"| {row[0].name} | " + " | ".join(f"{cell:,.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
