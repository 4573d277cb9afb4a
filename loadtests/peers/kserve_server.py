"""A model server of KServe's SDK with all models, on the loopback address alone, which the SDK has no setting for."""

import json
import os
import sys
from typing import Any

import grpc.aio
import kserve
import onnxruntime
import uvicorn

LOOPBACK = "127.0.0.1"
ANONYMOUS = "0"  # its answers must have an id


class OnnxModel(kserve.Model):
    """Runs one model."""

    def __init__(self, name: str, model: dict[str, Any]) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model["file"], options, providers=["CPUExecutionProvider"])
        self._outputs = [(tensor["name"], tensor["datatype"]) for tensor in model["outputs"]]
        self.ready = True

    async def predict(
        self, payload: kserve.InferRequest, headers: Any = None, response_headers: Any = None
    ) -> kserve.InferResponse:
        """Answers a request."""
        feed = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        values = self._session.run([name for name, _ in self._outputs], feed)
        binary = payload.from_grpc or bool(payload.use_binary_outputs)
        outputs = []
        for (name, datatype), value in zip(self._outputs, values, strict=True):
            output = kserve.InferOutput(name, list(value.shape), datatype)
            output.set_data_from_numpy(value, binary_data=binary)
            outputs.append(output)
        return kserve.InferResponse(payload.id or ANONYMOUS, self.name, outputs, use_binary_outputs=binary)


class LoopbackConfig(uvicorn.Config):
    """The SDK binds all addresses."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **{**options, "host": LOOPBACK})


def loopback_server(*args: Any, _server: Any = grpc.aio.server, **options: Any) -> Any:
    """The same for gRPC."""
    server = _server(*args, **options)
    add = server.add_insecure_port
    server.add_insecure_port = lambda address: add(f"{LOOPBACK}:{address.rpartition(':')[2]}")
    return server


if __name__ == "__main__":
    uvicorn.Config = LoopbackConfig
    grpc.aio.server = loopback_server
    with open(os.environ["BENCH_MODELS"], encoding="utf-8") as models:
        served = [OnnxModel(name, model) for name, model in json.load(models).items()]
    http_port, grpc_port = map(int, sys.argv[1:3])
    kserve.ModelServer(http_port=http_port, grpc_port=grpc_port, workers=1, enable_latency_logging=False).start(served)
