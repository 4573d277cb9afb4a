"""The private descriptor pool that all messages of the wire contract live in.

tritonclient registers its own ``inference.*`` symbols in protobuf's default pool, and a second file with the same
symbols makes the later import fail, whichever it is. A pool of our own keeps both importable in one process. The pool
also holds the files of the health and reflection services, so that gRPC reflection can be given this one pool.
"""

from collections.abc import MutableMapping
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import EnumDescriptor, FileDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

GRPC_SERVICE_FILE: Final = "inference/grpc_service.proto"
MODEL_CONFIG_FILE: Final = "inference/model_config.proto"
SERVICE_NAME: Final = "inference.GRPCInferenceService"
DESCRIPTORS_NAME: Final = "descriptors.binpb"


def _load_pool() -> descriptor_pool.DescriptorPool:
    """Builds the pool from the committed descriptor set, whose files come after the files that they import."""
    serialized = files(__package__).joinpath(DESCRIPTORS_NAME).read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(serialized).file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    return pool


POOL: Final = _load_pool()


def publish_file(file_name: str, namespace: MutableMapping[str, Any]) -> None:
    """Fills a module's globals with what protoc's generated module for that file would define.

    Args:
        file_name: Name of a file in the pool, as in ``import`` statements of ``.proto`` files.
        namespace: The module's ``globals()``.
    """
    file: FileDescriptor = POOL.FindFileByName(file_name)  # type: ignore[no-untyped-call]
    namespace["DESCRIPTOR"] = file
    for name, message in file.message_types_by_name.items():
        namespace[name] = message_factory.GetMessageClass(message)
        namespace[name].__module__ = namespace["__name__"]
    for name, enum in file.enum_types_by_name.items():
        namespace[name] = EnumTypeWrapper(enum)
        namespace.update(_enum_values(enum))


def _enum_values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}
