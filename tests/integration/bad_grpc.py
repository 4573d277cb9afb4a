"""Malformed calls over gRPC, and what is wrong with shared memory over both transports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roost.proto import grpc_service_pb2 as pb

from tests.integration.bad_requests import REGION, SHM_BYTES, SHM_KEY, BadRequest, Grpc, Http, InRegion

BAD, MISSING, NOT_SERVED = "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"


def infer(
    *,
    model: str = "simple",
    version: str = "",
    raws: Sequence[bytes] | None = (bytes(64), bytes(64)),
    shapes: Sequence[Sequence[int]] = ((1, 16), (1, 16)),
    datatypes: Sequence[str] = ("INT32", "INT32"),
    outputs: Sequence[str] = (),
) -> pb.ModelInferRequest:
    """A request to ``simple``, right unless something is changed."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=raws or ())
    for index, (shape, datatype) in enumerate(zip(shapes, datatypes, strict=True)):
        message.inputs.add(name=f"INPUT{index}", datatype=datatype, shape=shape)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def renamed(name: str) -> pb.ModelInferRequest:
    """A request whose second input is called something else."""
    message = infer()
    message.inputs[1].name = name
    return message


def typed(field: str, values: Sequence[Any], *, with_raws: bool = False) -> pb.ModelInferRequest:
    """A request whose inputs are in typed contents."""
    message = infer(raws=(bytes(64), bytes(64)) if with_raws else None)
    for item in message.inputs:
        getattr(item.contents, field).extend(values)
    return message


def parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    """A request with one parameter."""
    message = infer()
    message.parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def of_output(name: str, model: str = "simple", **value: Any) -> pb.ModelInferRequest:
    """A request with a parameter for its output."""
    message = infer(outputs=["OUTPUT0"]) if model == "simple" else words(b"\x01\0\0\0a")
    if not message.outputs:
        message.outputs.add(name="OUTPUT0")
    message.outputs[0].parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def words(data: bytes) -> pb.ModelInferRequest:
    """A request to the model of strings."""
    return infer(model="words", raws=[data], shapes=[(1, 1)], datatypes=["BYTES"])


def load(name: str = "simple", **parameters: Any) -> pb.RepositoryModelLoadRequest:
    """A load call; ``file`` stands for a model's file."""
    message = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        message.parameters[key.replace("file", "file:1/model.onnx")].CopyFrom(pb.ModelRepositoryParameter(**value))
    return message


def _trace(name: str, *values: str, model: str = "") -> pb.TraceSettingRequest:
    message = pb.TraceSettingRequest(model_name=model)
    message.settings[name].value.extend(values)
    return message


def _log(name: str, **value: Any) -> pb.LogSettingsRequest:
    message = pb.LogSettingsRequest()
    message.settings[name].CopyFrom(pb.LogSettingsRequest.SettingValue(**value))
    return message


CALLS: dict[str, BadRequest] = {
    "no message": Grpc(BAD, ("ModelInferRequest",), b"\xff" * 20),
    "message cut off": Grpc(BAD, ("ModelInferRequest",), infer().SerializeToString()[:-3]),
    "empty message": Grpc(MISSING, (), b""),
    "unknown model": Grpc(MISSING, ("'nope'",), infer(model="nope")),
    "name of 256 characters": Grpc(MISSING, (), infer(model="a" * 256)),
    "name that leads elsewhere": Grpc(MISSING, (), infer(model="../../etc/passwd")),
    "input unknown": Grpc(BAD, ("unexpected inference input 'NOPE'", "'simple'"), renamed("NOPE")),
    "input twice": Grpc(BAD, ("'INPUT0'", "already exists"), renamed("INPUT0")),
    "input without a name": Grpc(BAD, (), renamed("")),
    "version that leads elsewhere": Grpc(MISSING, (), infer(version="../1")),
    "version of 256 digits": Grpc(MISSING, (), infer(version="9" * 256)),
    "version a text": Grpc(MISSING, ("version", "x"), infer(version="x")),
    "version negative": Grpc(MISSING, ("version", "-1"), infer(version="-1")),
    "version over 64 bits": Grpc(MISSING, ("version",), infer(version=str(2**64))),
    "version unknown": Grpc(MISSING, ("'simple'", "9"), infer(version="9")),
    "no data": Grpc(BAD, ("unable to find data", "'INPUT0'"), infer(raws=None)),
    "one raw for two inputs": Grpc(BAD, ("unable to find data", "'INPUT1'"), infer(raws=[bytes(64)])),
    "raw and typed": Grpc(BAD, ("contents", "'INPUT0'"), typed("int_contents", [1] * 16, with_raws=True)),
    "typed in the wrong field": Grpc(BAD, ("unexpected explicit tensor data",), typed("fp32_contents", [1.0] * 16)),
    "15 typed values": Grpc(BAD, ("'INPUT0'", "64", "60"), typed("int_contents", [1] * 15)),
    "60 bytes": Grpc(BAD, ("'INPUT1'", "64", "60"), infer(raws=(bytes(64), bytes(60)))),
    "dim negative": Grpc(BAD, ("INPUT0",), infer(shapes=((1, -16), (1, 16)))),
    "dim 2^62": Grpc(BAD, ("INPUT0",), infer(shapes=((1, 2**62), (1, 16)))),
    "product of dims over 64 bits": Grpc(BAD, ("INPUT0",), infer(shapes=((2**40, 2**40), (1, 16)))),
    "rank 4,000": Grpc(BAD, ("INPUT0",), infer(shapes=((1,) * 4000, (1, 16)))),
    "datatype unknown": Grpc(BAD, ("INPUT0", "FLOAT"), infer(datatypes=("FLOAT", "INT32"))),
    "datatype empty": Grpc(BAD, ("INPUT0",), infer(datatypes=("", "INT32"))),
    "unknown output": Grpc(BAD, ("'NOPE'", "'simple'"), infer(outputs=["NOPE"])),
    "output twice": Grpc(BAD, ("'OUTPUT0'",), infer(outputs=["OUTPUT0", "OUTPUT0"])),
    "parameter reserved": Grpc(BAD, ("'triton_x'", "reserved"), parameter("triton_x", bool_param=True)),
    "parameter without a value": Grpc(BAD, ("'k'",), parameter("k")),
    "parameter of the wrong kind": Grpc(BAD, ("'k'",), parameter("k", uint64_param=1)),
    "priority negative": Grpc(BAD, ("'priority'",), parameter("priority", int64_param=-1)),
    "timeout a text": Grpc(BAD, ("'timeout'",), parameter("timeout", string_param="x")),
    "classification zero": Grpc(BAD, ("classification",), of_output("classification", int64_param=0)),
    "classification a text": Grpc(BAD, ("classification",), of_output("classification", string_param="x")),
    "classification of BYTES": Grpc(BAD, ("OUTPUT0", "BYTES"), of_output("classification", "words", int64_param=1)),
    "half a string": Grpc(BAD, ("INPUT0",), words(b"\x09\0\0\0abc")),
    "message over the limit": Grpc("RESOURCE_EXHAUSTED", (), infer(raws=[bytes(5 << 19), bytes(64)])),
    "decoupled model": Grpc(NOT_SERVED, ("decoupled",), infer(model="many", raws=[bytes(16)], shapes=[(1, 4)], datatypes=["FP32"])),
    # In streams errors are messages, and the call itself ends well.
    "stream: no message": Grpc("OK", ("ModelInferRequest",), b"\xff" * 20, "ModelStreamInfer"),
    "stream: unknown model": Grpc("OK", ("unknown model: 'nope'",), infer(model="nope"), "ModelStreamInfer"),
    "stream: wrong shape": Grpc("OK", ("INPUT0",), infer(shapes=((1, -16), (1, 16))), "ModelStreamInfer"),
    "unknown method": Grpc(NOT_SERVED, (), b"", "ModelNope"),
    "index of a repository": Grpc(NOT_SERVED, ("repository",), pb.RepositoryIndexRequest(repository_name="r"), "RepositoryIndex"),
    "load an unknown model": Grpc("FAILED_PRECONDITION", ("failed to load 'nope'",), load("nope"), "RepositoryModelLoad"),
    "load a name that leads elsewhere": Grpc(BAD, (), load("../../etc"), "RepositoryModelLoad"),
    "load with an unknown parameter": Grpc(BAD, ("unrecognized load parameter 'foo'",), load(foo={"string_param": ""}), "RepositoryModelLoad"),
    "load with a parameter of no value": Grpc(BAD, ("'config'",), load(config={}), "RepositoryModelLoad"),
    "load with files and no config": Grpc(BAD, (), load(file={"bytes_param": b"x"}), "RepositoryModelLoad"),
    "load with a file that is text": Grpc(BAD, (), load(config={"string_param": "{}"}, file={"string_param": "x"}), "RepositoryModelLoad"),
    "statistics of an unknown model": Grpc(MISSING, ("'nope'",), pb.ModelStatisticsRequest(name="nope"), "ModelStatistics"),
    "trace rate a word": Grpc(BAD, ("trace_rate",), _trace("trace_rate", "x"), "TraceSetting"),
    "trace switched on": Grpc("FAILED_PRECONDITION", ("trac",), _trace("trace_level", "TIMESTAMPS"), "TraceSetting"),
    "trace of an unknown model": Grpc(MISSING, ("nope",), _trace("trace_rate", "1", model="nope"), "TraceSetting"),
    "log to a file": Grpc(NOT_SERVED, (), _log("log_file", string_param="/tmp/x"), "LogSettings"),
    "log setting without a value": Grpc(BAD, ("log_info",), _log("log_info"), "LogSettings"),
}  # fmt: skip


def _in_region(size_bytes: int = 64, offset: int = 0, *, name: str = "r", output: bool = False) -> dict[str, Any]:
    """A REST request to ``simple`` with a tensor in shared memory."""
    part = {"shared_memory_region": name, "shared_memory_byte_size": size_bytes, "shared_memory_offset": offset}
    inputs: list[dict[str, Any]] = [
        {"name": name_, "datatype": "INT32", "shape": [1, 16], "data": [1] * 16} for name_ in ("INPUT0", "INPUT1")
    ]
    if output:
        return {"inputs": inputs, "outputs": [{"name": "OUTPUT0", "parameters": part}]}
    del inputs[0]["data"]
    inputs[0]["parameters"] = part
    return {"inputs": inputs}


def _grpc_in_region(size_bytes: int = 64, offset: int = 0, *, name: str = "r") -> pb.ModelInferRequest:
    message = infer(raws=[bytes(64)])
    parameters = message.inputs[0].parameters
    parameters["shared_memory_region"].string_param = name
    parameters["shared_memory_byte_size"].int64_param = size_bytes
    parameters["shared_memory_offset"].int64_param = offset
    return message


def _register(status: int, words: tuple[str, ...], **changes: Any) -> InRegion:
    body = {"key": f"/{SHM_KEY}", "offset": 0, "byte_size": SHM_BYTES, **changes}
    return InRegion(Http(status, words, {k: v for k, v in body.items() if v is not None}, REGION), register=False)


def _registered(key: str) -> Grpc:
    message = pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=64)
    return Grpc(BAD, ("'r'",), message, "SystemSharedMemoryRegister")


REGIONS: dict[str, BadRequest] = {
    "register without a key": _register(400, ("'key'",), key=None),
    "register without a size": _register(400, ("'byte_size'",), byte_size=None),
    "register nothing": _register(404, ("'r'",), key="/no-such-object"),
    "register a path": _register(400, ("'r'",), key="/../../etc/passwd"),
    "register a key of 256 characters": _register(400, ("'r'",), key="a" * 256),
    "register a key with NUL": _register(400, ("'r'",), key="a\0b"),
    "register a server's own": _register(400, ("reserved",), key="/triton_python_backend_shm_region_1"),
    "register beyond the end": _register(400, ("'r'",), byte_size=SHM_BYTES + 1),
    "register an offset beyond the end": _register(400, ("'r'",), offset=SHM_BYTES),
    "register with an offset of 2^64": _register(400, (), offset=2**64 - 1),
    "register a negative offset": _register(400, ("'offset'",), offset=-1),
    "register a size of zero": _register(400, ("'r'",), byte_size=0),
    "register twice": InRegion(Http(409, ("'r'", "already"), {"key": f"/{SHM_KEY}", "byte_size": 64}, REGION)),
    "status of an unknown region": Http(404, ("'nope'",), path="/v2/systemsharedmemory/region/nope/status", method="GET"),
    "CUDA memory": Http(400, ("'r'", "GPU"), {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}, "/v2/cudasharedmemory/region/r/register"),
    "CUDA memory with bad base64": Http(400, ("base64",), {"raw_handle": {"b64": "*"}, "device_id": 0, "byte_size": 64}, "/v2/cudasharedmemory/region/r/register"),
    "input in an unknown region": Http(404, ("'nope'",), _in_region(name="nope")),
    "output in an unknown region": Http(404, ("'nope'",), _in_region(name="nope", output=True)),
    "input at a wrong offset": InRegion(Http(400, ("Invalid offset", "'r'"), _in_region(offset=9999))),
    "input beyond the region": InRegion(Http(400, ("Invalid offset + byte size",), _in_region(offset=SHM_BYTES - 60))),
    "input of another size": InRegion(Http(400, ("'INPUT0'", "64", "32"), _in_region(32))),
    "input of 2^62 bytes": InRegion(Http(400, ("'r'",), _in_region(2**62))),
    "output too small": InRegion(Http(400, ("'OUTPUT0'", "at least 64 bytes"), _in_region(8, output=True))),
    "input in memory that was cut off": InRegion(Http(400, ("'r'", "truncated"), _in_region()), truncate_to=10),
    "output in memory that was cut off": InRegion(Http(400, ("'r'", "truncated"), _in_region(output=True)), truncate_to=0),
    "gRPC: register a path": InRegion(_registered("../x"), register=False),
    "gRPC: register an empty key": InRegion(_registered(""), register=False),
    "gRPC: input in an unknown region": Grpc(MISSING, ("'nope'",), _grpc_in_region(name="nope")),
    "gRPC: input at a negative offset": InRegion(Grpc(BAD, ("offset",), _grpc_in_region(offset=-1))),
    "gRPC: input beyond the region": InRegion(Grpc(BAD, ("'r'",), _grpc_in_region(offset=SHM_BYTES))),
    "gRPC: input in memory that was cut off": InRegion(Grpc(BAD, ("truncated",), _grpc_in_region()), truncate_to=0),
    "gRPC: CUDA memory": Grpc(BAD, ("GPU",), pb.CudaSharedMemoryRegisterRequest(name="r", byte_size=64), "CudaSharedMemoryRegister"),
}  # fmt: skip
