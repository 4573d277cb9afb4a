"""Step 8 of the data path over REST: responses to buffers. Pure."""

from __future__ import annotations

from typing import Any

import orjson
from roost.core.requests import InferResponse
from roost.core.tensors import Buffer
from roost.server.rest.codec import HEADER_LENGTH, RestInferRequest
from roost.server.rest.codec_json import json_elements


def encode_response(response: InferResponse, request: RestInferRequest) -> tuple[dict[str, str], list[Buffer]]:
    """Writes a response.

    Returns:
        Headers, and buffers to write one after the other; binary outputs are the tensors' own memory.

    Raises:
        InvalidArgument: If an output can't be written as JSON.
    """
    document: dict[str, Any] = {}
    if request.id:
        document["id"] = request.id
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    in_binary = {output.name for output in request.outputs if output.binary}
    everything = request.binary_by_default and not request.outputs
    buffers: list[Buffer] = [b""]
    outputs: list[dict[str, Any]] = []
    for tensor in response.outputs:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        parameters = dict(tensor.parameters)
        is_binary = everything or tensor.name in in_binary
        if is_binary:
            view = memoryview(tensor.data).cast("B")
            parameters["binary_data_size"] = len(view)
            buffers.append(view)
        if parameters:
            output["parameters"] = parameters
        if not is_binary:
            output["data"] = json_elements(tensor)
        outputs.append(output)
    document["outputs"] = outputs
    head = buffers[0] = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(buffers) == 1:
        return {"Content-Type": "application/json"}, buffers
    return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}, buffers
