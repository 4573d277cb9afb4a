"""Requests as bytes on the wire, and the answers to them read back: REST JSON, REST binary and gRPC.

The load generators send the same bytes again and again; a real client asks once before and once after, since they do
not look at what comes back.
"""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt
from roost.proto import grpc_service_pb2 as pb

from loadtests.models import TYPES, Arrays, BenchModel, expected

Protocol = Literal["json", "binary", "grpc"]
PROTOCOLS: tuple[Protocol, ...] = ("json", "binary", "grpc")
HEADER_LENGTH = "Inference-Header-Content-Length"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEADLINE_S = 30.0


class WrongAnswer(Exception):
    """A server answered with an error, or something else than ONNX Runtime does."""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One request, ready to be sent any number of times.

    Attributes:
        model: Whom it asks.
        protocol: How.
        path: The path of the URL.
        headers: Besides those of every request.
        body: What is sent; for gRPC the message with the five bytes before it.
        expected: What ONNX Runtime itself answers.
    """

    model: str
    protocol: Protocol
    path: str
    headers: Mapping[str, str]
    body: bytes
    expected: Arrays


def build(model: BenchModel, protocol: Protocol, size: int) -> WireRequest:
    """A request for so many rows, or elements of a model that does not batch."""
    inputs = model.draw(size)
    right = expected(model, inputs)
    if protocol == "grpc":
        message = _grpc_message(model, inputs)
        headers = {"content-type": "application/grpc", "te": "trailers"}
        return WireRequest(model.name, protocol, GRPC_METHOD, headers, _framed(message), right)
    path = f"/v2/models/{model.name}/infer"
    if protocol == "json":
        body = json.dumps({"inputs": [_described(model, name, a, a.ravel().tolist()) for name, a in inputs.items()]})
        return WireRequest(model.name, protocol, path, {"Content-Type": "application/json"}, body.encode(), right)
    described = [_described(model, name, array, None) for name, array in inputs.items()]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    data = b"".join(array.tobytes() for array in inputs.values())
    return WireRequest(model.name, protocol, path, headers, head + data, right)


def _datatype(model: BenchModel, name: str) -> str:
    return next(tensor.datatype for tensor in model.inputs if tensor.name == name)


def _described(model: BenchModel, name: str, array: npt.NDArray[Any], data: Any) -> dict[str, Any]:
    described = {"name": name, "datatype": _datatype(model, name), "shape": list(array.shape)}
    if data is None:
        return {**described, "parameters": {"binary_data_size": array.nbytes}}
    return {**described, "data": [_short(value) for value in data]}


def _short(value: float | int) -> float | int:
    # The digits that a float32 has, not those of the double it became.
    return value if isinstance(value, int) else float(f"{value:.7g}")


def _grpc_message(model: BenchModel, inputs: Arrays) -> bytes:
    request = pb.ModelInferRequest(model_name=model.name)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=_datatype(model, name), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    message: bytes = request.SerializeToString()
    return message


def _framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def ask(request: WireRequest, address: str) -> int:
    """Asks once and checks the answer; returns how many bytes of body it had.

    Raises:
        WrongAnswer: If it is an error or not what ONNX Runtime answers.
    """
    if request.protocol == "grpc":
        answer = _call(address, request.body[5:])
        got, length = _from_grpc(answer), len(answer) + 5
    else:
        headers, body = _post(request, address)
        got, length = _from_rest(headers, body), len(body)
    _compare(request, got, address)
    return length


def _call(address: str, message: bytes) -> bytes:
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    with grpc.insecure_channel(address, options) as channel:
        try:
            answer: bytes = channel.unary_unary(GRPC_METHOD)(message, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise WrongAnswer(f"{address}: {error}") from error
    return answer


def _post(request: WireRequest, address: str) -> tuple[Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("POST", request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        raise WrongAnswer(f"{address}{request.path}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise WrongAnswer(f"{address}{request.path}: {response.status} {body[:300]!r}")
    return dict(response.headers), body


def _from_rest(headers: Mapping[str, str], body: bytes) -> Arrays:
    length = next((value for name, value in headers.items() if name.lower() == HEADER_LENGTH.lower()), None)
    head = body if length is None else body[: int(length)]
    arrays, at = {}, len(head)
    for output in json.loads(head)["outputs"]:
        datatype = TYPES[output["datatype"]]
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], datatype)
        else:
            array, at = np.frombuffer(body[at : at + size], datatype), at + size
        arrays[output["name"]] = array.reshape(output["shape"])
    return arrays


def _from_grpc(message: bytes) -> Arrays:
    answer = pb.ModelInferResponse.FromString(message)
    arrays = {}
    for index, output in enumerate(answer.outputs):
        datatype = TYPES[output.datatype]
        if answer.raw_output_contents:
            array = np.frombuffer(answer.raw_output_contents[index], datatype)
        else:
            contents = output.contents
            array = np.array(contents.int_contents or contents.fp32_contents or contents.uint_contents, datatype)
        arrays[output.name] = array.reshape(tuple(output.shape))
    return arrays


def _compare(request: WireRequest, got: Arrays, address: str) -> None:
    for name, right in request.expected.items():
        array = got.get(name)
        if array is None or array.shape != right.shape or not np.allclose(array, right, rtol=1e-3, atol=1e-4):
            raise WrongAnswer(f"{address}: {request.model} over {request.protocol} answered {name} wrongly")
