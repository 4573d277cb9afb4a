"""Calls about shared memory, and the configurations that load calls bring and repositories hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Final

from roost.core.errors import InvalidArgument
from roost.core.requests import RegionSlice
from roost.core.tensors import Signature, TensorSpec
from roost.registry_client.completion import complete_config
from roost.registry_client.description import ModelDescription, parse_config_json, parse_config_text
from roost.registry_client.model_settings import parse_settings
from roost.server.client_memory import FOLDER, ClientMemory
from roost.server.rest.codec_json import parse_json
from roost.server.rest.config_json import config_to_json

from tests.fuzz.driver import Target
from tests.fuzz.mutation import mutate_bytes, mutate_json

_SHM_BYTES: Final = 4096
_SIGNATURE: Final = Signature((TensorSpec("X", "FP32", (-1, 4)),), (TensorSpec("Y", "FP32", (-1, 2)),))

_CONFIG: Final[dict[str, Any]] = {
    "name": "m",
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": ["4"]}],
    "output": [
        {"name": "Y", "data_type": "TYPE_FP32", "dims": [2], "reshape": {"shape": [2]}, "label_filename": "l.txt"}
    ],
    "version_policy": {"specific": {"versions": [1, 2]}},
    "instance_group": [{"kind": "KIND_CPU", "count": 2}],
    "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": "100"},
    "parameters": {"intra_op_thread_count": {"string_value": "2"}},
    "optimization": {"graph": {"level": 1}},
}
_TEXT: Final = b"""name: "m"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "l.txt" } ]
version_policy { all {} }
instance_group { kind: KIND_CPU count: 1 }
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
parameters { key: "session.x" value { string_value: "1" } }
"""
_SETTINGS: Final[dict[str, Any]] = {
    "name": "m",
    "implementation": "mlserver_onnx.OnnxModel",
    "max_batch_size": 4,
    "parameters": {"uri": "./model.onnx", "version": "v1.2"},
    "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "Y", "datatype": "FP32", "shape": [-1, 2]}],
}


def configuration_targets() -> list[Target]:
    """The three forms of a model's configuration."""
    settings = [json.dumps(_SETTINGS).encode(), json.dumps({"implementation": "onnxruntime"}).encode()]
    return [
        Target("config-json", [json.dumps(_CONFIG).encode(), b"{}"], _configuration(parse_config_json), mutate_json),
        Target("config-text", [_TEXT, b""], _configuration(parse_config_text), mutate_bytes),
        Target("model-settings", settings, _configuration(parse_settings), mutate_json),
    ]


def _configuration(parse: Callable[..., ModelDescription]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        description = parse(data.decode(errors="replace"), "m", detected_backend="onnxruntime")
        config_to_json(complete_config(description, _SIGNATURE))

    return run


def shared_memory_target() -> Target:
    """Lists of calls; the object they are about is real, and is cut off and made longer again meanwhile."""
    key = f"fuzz-{os.getpid()}"
    memory = ClientMemory(offered=True, max_regions=64)

    def run(data: bytes) -> None:
        calls = parse_json(data)
        if not isinstance(calls, list):
            raise InvalidArgument("not a list of calls")
        path = FOLDER / key
        path.write_bytes(bytes(_SHM_BYTES))
        try:
            for call in calls[:16]:
                _shared_memory_call(memory, key, call)
        finally:
            memory.unregister()
            path.unlink()

    register = {"do": "register", "name": "r", "key": "/KEY", "offset": 0, "byte_size": _SHM_BYTES}
    slices = {"name": "r", "offset": 16, "byte_size": 64}
    seeds = [
        [register, {"do": "status", "name": "r"}, {"do": "read", **slices}, {"do": "write", **slices}],
        [register, {"do": "truncate", "size": 32}, {"do": "read", **slices}],
        [register, {"do": "truncate", "size": 32}, {"do": "write", **slices}],
        [register, {"do": "unregister", "name": "r"}, {"do": "status", "name": ""}, register],
        [{**register, "name": "s", "key": "KEY", "offset": 4000, "byte_size": 96}, {"do": "unregister", "name": ""}],
    ]
    return Target("shared-memory", [json.dumps(calls).encode() for calls in seeds], run, mutate_json)


def _shared_memory_call(memory: ClientMemory, key: str, call: Any) -> None:
    """One call, with arguments of the types that the transports have checked."""
    if not isinstance(call, dict):
        return

    def text(name: str) -> str:
        value = call.get(name)
        return value if isinstance(value, str) else ""

    def number(name: str) -> int:
        value = call.get(name)
        return value if type(value) is int else 0

    match call.get("do"):
        case "register":
            memory.register(text("name"), text("key").replace("KEY", key), number("offset"), number("byte_size"))
        case "status":
            memory.status(text("name"))
        case "unregister":
            memory.unregister(text("name"))
        case "truncate":
            os.truncate(FOLDER / key, number("size") % (2 * _SHM_BYTES))
        case "read" | "write":
            part = RegionSlice(text("name"), number("byte_size"), number("offset"))
            region = memory.region(part.region)
            region.check(part)
            if call["do"] == "read":
                region.read(part, memoryview(bytearray(part.byte_size)))
            else:
                region.write(part, bytes(part.byte_size))
