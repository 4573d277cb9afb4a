"""What users of MLServer send, with its codecs over REST and its stubs over gRPC; prints one JSON object.

Run with the interpreter of the clients' environment, in a process that imports neither tritonclient nor KServe's SDK:
all three register the protocol's messages under the same names. ``test_mlserver_client.py`` reads the results.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd

# The package imports its server, whose own dependencies warn.
warnings.simplefilter("ignore")

from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec  # noqa: E402
from mlserver.grpc import dataplane_pb2 as pb  # noqa: E402
from mlserver.grpc import model_repository_pb2 as repository_pb  # noqa: E402
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter  # noqa: E402
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402
from mlserver.grpc.model_repository_pb2_grpc import ModelRepositoryServiceStub  # noqa: E402
from mlserver.types import InferenceRequest, InferenceResponse, RepositoryIndexResponse  # noqa: E402

ARRAYS = (np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32))
WORDS = ["one", "größe", "three"]


def simple() -> InferenceRequest:
    """A request to ``simple``, with the content types that the codecs write."""
    return InferenceRequest(inputs=[NumpyCodec.encode_input(f"INPUT{i}", array) for i, array in enumerate(ARRAYS)])


def words(use_bytes: bool) -> InferenceRequest:
    """Strings, one per row; gRPC wants bytes, JSON can't have them."""
    return InferenceRequest(inputs=[StringCodec.encode_input("INPUT0", WORDS, use_bytes=use_bytes)])


def frame() -> InferenceRequest:
    """A table: a content type for the request, and one input per column."""
    columns = {"INPUT0": np.arange(3, dtype=np.int32), "INPUT1": np.ones(3, np.int32)}
    return PandasCodec.encode_request(pd.DataFrame(columns), use_bytes=False)


def decoded(response: InferenceResponse) -> dict[str, Any]:
    """The outputs as the codecs give them."""
    outputs = {}
    for output in response.outputs:
        is_text = output.datatype == "BYTES"
        value = StringCodec.decode_output(output) if is_text else NumpyCodec.decode_output(output).reshape(-1).tolist()
        outputs[output.name] = value
    return {"id": response.id, "model": response.model_name, "outputs": outputs}


def rest(base: str) -> dict[str, Any]:
    """Inference with each codec, and the repository."""
    results: dict[str, Any] = {}
    with httpx.Client(base_url=base) as client:

        def infer(model: str, request: InferenceRequest) -> dict[str, Any]:
            answer = client.post(f"/v2/models/{model}/infer", json=request.model_dump(exclude_none=True, mode="json"))
            if answer.status_code != 200:
                return {"status": answer.status_code, "message": answer.json()["error"]}
            return decoded(InferenceResponse.model_validate(answer.json()))

        results["numpy"] = infer("simple", simple())
        # The codec for a whole request names its only input itself.
        single = NumpyRequestCodec.encode_request(np.ones((1, 3), np.float32))
        single.inputs[0].name = "INPUT0"
        results["numpy_request"] = infer("identity_FP32", single)
        results["strings"] = infer("identity_BYTES", words(use_bytes=False))
        results["pandas"] = infer("columns", frame())
        results["unknown_model"] = infer("nope", simple())
        index = RepositoryIndexResponse.model_validate(client.post("/v2/repository/index", json={}).json())
        results["index"] = sorted({item.name for item in index.root})
        results["model_ready"] = client.get("/v2/models/simple/ready").status_code
    return results


def over_grpc(address: str) -> dict[str, Any]:
    """The unary calls of MLServer's stubs, with typed and with raw tensors."""
    with grpc.insecure_channel(address) as channel:
        stub, repository = GRPCInferenceServiceStub(channel), ModelRepositoryServiceStub(channel)

        def infer(model: str, request: InferenceRequest, use_raw: bool) -> dict[str, Any]:
            message = ModelInferRequestConverter.from_types(request, model_name=model, use_raw=use_raw)
            try:
                return decoded(ModelInferResponseConverter.to_types(stub.ModelInfer(message)))
            except grpc.RpcError as error:
                return {"status": error.code().name, "message": error.details()}

        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="simple"))
        index = repository.RepositoryIndex(repository_pb.RepositoryIndexRequest())
        return {
            "live": stub.ServerLive(pb.ServerLiveRequest()).live,
            "ready": stub.ServerReady(pb.ServerReadyRequest()).ready,
            "model_ready": stub.ModelReady(pb.ModelReadyRequest(name="simple")).ready,
            "server": stub.ServerMetadata(pb.ServerMetadataRequest()).name,
            "inputs": [item.name for item in metadata.inputs],
            "typed": infer("simple", simple(), use_raw=False),
            "raw": infer("simple", simple(), use_raw=True),
            "strings_typed": infer("identity_BYTES", words(use_bytes=True), use_raw=False),
            "strings_raw": infer("identity_BYTES", words(use_bytes=True), use_raw=True),
            "unknown_model": infer("nope", simple(), use_raw=False),
            "index": sorted({item.name for item in index.models}),
        }


def _main(http_address: str, grpc_address: str) -> None:
    json.dump({"rest": rest(f"http://{http_address}"), "grpc": over_grpc(grpc_address)}, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
