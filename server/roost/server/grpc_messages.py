"""Messages of the gRPC calls other than inference: bytes to plain values and back, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from roost.core.errors import InvalidArgument
from roost.core.metadata import IndexEntry, ModelMetadata, ServerMetadata
from roost.core.statistics import (
    BatchStatistics,
    InferStatistics,
    ModelStatistics,
    ResponseStatistics,
    StatisticDuration,
)
from roost.proto import grpc_service_pb2 as pb
from roost.proto import model_config_pb2 as mc
from roost.server.data_plane_protocol import LogSettings, RegionStatus, TraceSettings
from roost.server.grpc_codec import parse_message
from roost.server.grpc_wire import encode_varint

_RUN_STEPS: Final = ("compute_input", "compute_infer", "compute_output")
_INFER_STEPS: Final = ("success", "fail", "queue", *_RUN_STEPS, "cache_hit", "cache_miss")
_BATCH_STEPS: Final = _RUN_STEPS
_RESPONSE_STEPS: Final = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")


@dataclass(frozen=True, slots=True)
class RepositoryCall:
    """A load or unload call."""

    repository_name: str
    model_name: str
    parameters: dict[str, bool | int | str | bytes]


def encode_server_metadata(metadata: ServerMetadata) -> bytes:
    """Encodes a ServerMetadataResponse."""
    return pb.ServerMetadataResponse(
        name=metadata.name, version=metadata.version, extensions=metadata.extensions
    ).SerializeToString()


def encode_model_metadata(metadata: ModelMetadata) -> bytes:
    """Encodes a ModelMetadataResponse."""
    message = pb.ModelMetadataResponse(name=metadata.name, versions=metadata.versions, platform=metadata.platform)
    for spec in metadata.inputs:
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    for spec in metadata.outputs:
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return message.SerializeToString()


def encode_model_config(config: mc.ModelConfig) -> bytes:
    """Encodes a ModelConfigResponse."""
    return pb.ModelConfigResponse(config=config).SerializeToString()


def encode_index(entries: Iterable[IndexEntry]) -> bytes:
    """Encodes a RepositoryIndexResponse."""
    message = pb.RepositoryIndexResponse()
    for entry in entries:
        message.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return message.SerializeToString()


def decode_repository_call(
    cls: type[pb.RepositoryModelLoadRequest] | type[pb.RepositoryModelUnloadRequest], raw: bytes
) -> RepositoryCall:
    """Decodes a load or unload request.

    Raises:
        InvalidArgument: If it is not one, or a parameter has no value.
    """
    message: Any = parse_message(cls, raw)
    parameters = {}
    for name, value in message.parameters.items():
        chosen = value.WhichOneof("parameter_choice")
        if chosen is None:
            raise InvalidArgument(f"parameter '{name}' has no value")
        parameters[name] = getattr(value, chosen)
    return RepositoryCall(message.repository_name, message.model_name, parameters)


def encode_repository_answer(model_name: str) -> bytes:
    """Encodes the answer to a load or unload that worked.

    In Triton's contract the message is empty. KServe's has the model's name as field 1 and, as field 2, that the call
    did what it should; clients of Triton skip both.
    """
    name = model_name.encode(errors="replace")
    return b"".join((b"\x0a", encode_varint(len(name)), name, b"\x10\x01"))


def encode_statistics(statistics: Iterable[ModelStatistics]) -> bytes:
    """Encodes a ModelStatisticsResponse; every duration is there, also those that are zero."""
    message = pb.ModelStatisticsResponse()
    for item in statistics:
        message.model_stats.append(_model_statistics(item))
    return message.SerializeToString()


def encode_system_regions(regions: Iterable[RegionStatus]) -> bytes:
    """Encodes a SystemSharedMemoryStatusResponse."""
    message = pb.SystemSharedMemoryStatusResponse()
    for region in regions:
        entry = message.regions[region.name]
        entry.name, entry.key = region.name, region.key
        entry.offset, entry.byte_size = region.offset, region.byte_size
    return message.SerializeToString()


def encode_cuda_regions(regions: Iterable[RegionStatus]) -> bytes:
    """Encodes a CudaSharedMemoryStatusResponse."""
    message = pb.CudaSharedMemoryStatusResponse()
    for region in regions:
        entry = message.regions[region.name]
        entry.name, entry.byte_size = region.name, region.byte_size
    return message.SerializeToString()


def read_trace_updates(message: pb.TraceSettingRequest) -> dict[str, tuple[str, ...] | None]:
    """The settings that a request changes; None are those without a value, which go back to what they were."""
    return {name: tuple(setting.value) or None for name, setting in message.settings.items()}


def encode_trace_settings(settings: TraceSettings) -> bytes:
    """Encodes a TraceSettingResponse."""
    message = pb.TraceSettingResponse()
    for name, value in settings.items():
        message.settings[name].value.extend((value,) if isinstance(value, str) else value)
    return message.SerializeToString()


def read_log_updates(message: pb.LogSettingsRequest) -> dict[str, bool | int | str]:
    """The settings that a request changes.

    Raises:
        InvalidArgument: If one of them has no value.
    """
    updates: dict[str, bool | int | str] = {}
    for name, setting in message.settings.items():
        chosen = setting.WhichOneof("parameter_choice")
        if chosen is None:
            raise InvalidArgument(f"setting '{name}' has no value")
        updates[name] = getattr(setting, chosen)
    return updates


def encode_log_settings(settings: LogSettings) -> bytes:
    """Encodes a LogSettingsResponse."""
    message = pb.LogSettingsResponse()
    for name, value in settings.items():
        match value:
            case bool():
                message.settings[name].bool_param = value
            case int():
                message.settings[name].uint32_param = value
            case _:
                message.settings[name].string_param = value
    return message.SerializeToString()


def _model_statistics(item: ModelStatistics) -> pb.ModelStatistics:
    message = pb.ModelStatistics(
        name=item.name,
        version=item.version,
        last_inference=item.last_inference_ms,
        inference_count=item.inference_count,
        execution_count=item.execution_count,
        inference_stats=pb.InferStatistics(**_durations(item.inference_stats, _INFER_STEPS)),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=batch.batch_size, **_durations(batch, _BATCH_STEPS))
            for batch in item.batch_stats
        ],
        memory_usage=[pb.MemoryUsage(type=use.type, id=use.id, byte_size=use.byte_size) for use in item.memory_usage],
    )
    for position, response in item.response_stats.items():
        message.response_stats[position].CopyFrom(pb.InferResponseStatistics(**_durations(response, _RESPONSE_STEPS)))
    return message


def _durations(
    statistics: InferStatistics | BatchStatistics | ResponseStatistics, names: Sequence[str]
) -> Mapping[str, pb.StatisticDuration]:
    durations: dict[str, StatisticDuration] = {name: getattr(statistics, name) for name in names}
    return {name: pb.StatisticDuration(count=value.count, ns=value.ns) for name, value in durations.items()}
