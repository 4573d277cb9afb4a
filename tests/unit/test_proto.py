"""The wire contract: generated files, field numbers, and the private descriptor pool."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from roost.proto import generate
from roost.proto import grpc_service_pb2 as pb
from roost.proto import model_config_pb2 as mc
from roost.proto.pool import GRPC_SERVICE_FILE, MODEL_CONFIG_FILE, POOL, SERVICE_NAME
from tritonclient.grpc import model_config_pb2 as triton_mc
from tritonclient.grpc import service_pb2 as triton_pb


def describe_enum(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def describe_fields(message: Descriptor) -> dict[str, tuple[Any, ...]]:
    fields = {}
    for field in message.fields:
        kind = (
            (field.message_type or field.enum_type).full_name if field.message_type or field.enum_type else field.type
        )
        oneof = field.containing_oneof.name if field.containing_oneof else None
        fields[field.name] = (field.number, kind, field.is_repeated, field.has_presence, oneof)
    return fields


def walk_messages(messages: Any) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from walk_messages(message.nested_types)


def describe_file(file: FileDescriptor) -> dict[str, Any]:
    """Everything in a file that decides how bytes on the wire are read."""
    described: dict[str, Any] = {enum.full_name: describe_enum(enum) for enum in file.enum_types_by_name.values()}
    for message in walk_messages(file.message_types_by_name.values()):
        described[message.full_name] = describe_fields(message)
        described |= {enum.full_name: describe_enum(enum) for enum in message.enum_types}
    for service in file.services_by_name.values():
        described[service.full_name] = {
            method.name: (
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }
    return described


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(pb.DESCRIPTOR, triton_pb.DESCRIPTOR, id="grpc_service"),
        pytest.param(mc.DESCRIPTOR, triton_mc.DESCRIPTOR, id="model_config"),
    ],
)
def test_every_field_number_is_tritons(ours: FileDescriptor, theirs: FileDescriptor) -> None:
    assert describe_file(ours) == describe_file(theirs)


def test_service_has_all_methods() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE_NAME
    assert len(service.methods) == 20


def test_committed_files_are_what_the_sources_generate() -> None:
    generated = generate.generate()
    assert set(generated) == {"descriptors.binpb", "grpc_service_pb2.pyi", "model_config_pb2.pyi"}
    assert generate.find_stale(generated) == []
    assert generate.main(["--check"]) == 0


def test_check_names_a_stale_file(tmp_path: Path) -> None:
    generated = {"same": b"1", "changed": b"1", "missing": b"1"}
    (tmp_path / "same").write_bytes(b"1")
    (tmp_path / "changed").write_bytes(b"2")
    assert generate.find_stale(generated, tmp_path) == ["changed", "missing"]


def test_generate_outside_a_checkout_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source checkout"):
        generate.generate(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("roost.proto.grpc_service_pb2", "tritonclient.grpc"), ("tritonclient.grpc", "roost.proto.grpc_service_pb2")],
)
def test_lives_beside_tritonclient_in_one_process(first: str, second: str) -> None:
    script = f"""
import importlib
importlib.import_module({first!r})
importlib.import_module({second!r})
from roost.proto import grpc_service_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
request = ours.ModelInferRequest(model_name="m", raw_input_contents=[b"12"])
copy = theirs.ModelInferRequest.FromString(request.SerializeToString())
assert copy.model_name == "m" and list(copy.raw_input_contents) == [b"12"]
assert ours.ModelInferRequest is not theirs.ModelInferRequest
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr


def test_importing_the_contract_imports_no_grpc() -> None:
    script = (
        "import sys, roost.proto.grpc_service_pb2; assert not {'grpc', 'grpc_tools', 'tritonclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_enums_are_module_attributes() -> None:
    assert mc.TYPE_FP32 == 11
    assert mc.TYPE_STRING == 13
    assert mc.DataType.Name(mc.TYPE_BF16) == "TYPE_BF16"
    assert mc.DataType.Value("TYPE_INT32") == mc.TYPE_INT32
    assert mc.ModelInstanceGroup.KIND_CPU == 2
    assert mc.ModelQueuePolicy.DELAY == 1
    assert all(hasattr(mc, name) for name in mc.DataType.keys())  # noqa: SIM118 - an enum wrapper is no dict


def test_messages_of_both_files_fit_together() -> None:
    config = mc.ModelConfig(name="m", max_batch_size=8)
    response = pb.ModelConfigResponse(config=config)
    assert response.config == config
    assert type(response.config) is mc.ModelConfig
    assert mc.ModelConfig.__module__ == "roost.proto.model_config_pb2"


def test_field_named_like_a_keyword_can_be_set() -> None:
    resource = mc.ModelRateLimiter.Resource(name="R", **{"global": True})
    assert getattr(resource, "global") is True


def test_pool_is_private() -> None:
    assert POOL.FindFileByName(GRPC_SERVICE_FILE) is pb.DESCRIPTOR  # type: ignore[no-untyped-call]
    assert POOL.FindFileByName(MODEL_CONFIG_FILE) is mc.DESCRIPTOR  # type: ignore[no-untyped-call]
    assert pb.DESCRIPTOR.pool is POOL
    assert triton_pb.DESCRIPTOR.pool is not POOL


@pytest.mark.parametrize("theirs", [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR], ids=["health", "reflection"])
def test_pool_describes_the_services_beside_ours(theirs: FileDescriptor) -> None:
    for service in theirs.services_by_name.values():
        ours = POOL.FindServiceByName(service.full_name)  # type: ignore[no-untyped-call]
        assert describe_file(ours.file) == describe_file(theirs)
