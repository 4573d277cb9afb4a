"""The gRPC calls of Triton's extensions: statistics, shared memory, trace and log settings."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from roost.proto import grpc_service_pb2 as pb
from roost.server import grpc_messages as messages
from roost.server.data_plane_protocol import DataPlane
from roost.server.grpc_calls import Call, Calls, Handlers
from roost.server.grpc_codec import parse_message
from roost.server.grpc_receive import ReceiveGate

# Writing so many takes a few milliseconds.
_SLICE_MODELS: Final = 128


class ExtensionCalls:
    """Statistics, shared memory, trace and log settings.

    Args:
        data_plane: What answers.
        calls: Makes the handlers.
        gate: Receives the messages, which are small.
    """

    def __init__(self, data_plane: DataPlane, calls: Calls, gate: ReceiveGate) -> None:
        self._data_plane = data_plane
        self._calls = calls
        self._gate = gate

    def handlers(self) -> Handlers:
        """The methods by name."""
        methods: dict[str, tuple[str, Call]] = {
            "ModelStatistics": ("statistics", self._statistics),
            "SystemSharedMemoryStatus": ("shared-memory", self._system_status),
            "SystemSharedMemoryRegister": ("shared-memory", self._system_register),
            "SystemSharedMemoryUnregister": ("shared-memory", self._system_unregister),
            "CudaSharedMemoryStatus": ("shared-memory", self._cuda_status),
            "CudaSharedMemoryRegister": ("shared-memory", self._cuda_register),
            "CudaSharedMemoryUnregister": ("shared-memory", self._cuda_unregister),
            "TraceSetting": ("trace", self._trace),
            "LogSettings": ("logging", self._log),
        }
        return {name: self._calls.received(name, group, call, self._gate) for name, (group, call) in methods.items()}

    async def _statistics(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.ModelStatisticsRequest, raw)
        statistics = await self._data_plane.model_statistics(request.name, request.version)
        pieces: list[bytes] = []
        for start in range(0, len(statistics), _SLICE_MODELS):  # of very many models, other calls go on in between
            if start:
                await asyncio.sleep(0)
            pieces.append(messages.encode_statistics(statistics[start : start + _SLICE_MODELS]))
        return b"".join(pieces)  # messages one after the other are one message with all of their elements

    async def _system_status(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.SystemSharedMemoryStatusRequest, raw)
        return messages.encode_system_regions(self._data_plane.shared_memory.status(request.name))

    async def _system_register(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.SystemSharedMemoryRegisterRequest, raw)
        self._data_plane.shared_memory.register(request.name, request.key, request.offset, request.byte_size)
        return b""

    async def _system_unregister(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.SystemSharedMemoryUnregisterRequest, raw)
        self._data_plane.shared_memory.unregister(request.name)
        return b""

    async def _cuda_status(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.CudaSharedMemoryStatusRequest, raw)
        return messages.encode_cuda_regions(self._data_plane.cuda_shared_memory.status(request.name))

    async def _cuda_register(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.CudaSharedMemoryRegisterRequest, raw)
        self._data_plane.cuda_shared_memory.register(
            request.name, request.raw_handle, request.device_id, request.byte_size
        )
        return b""

    async def _cuda_unregister(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.CudaSharedMemoryUnregisterRequest, raw)
        self._data_plane.cuda_shared_memory.unregister(request.name)
        return b""

    async def _trace(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        request = parse_message(pb.TraceSettingRequest, raw)
        updates = messages.read_trace_updates(request)
        if updates:
            settings = await self._data_plane.update_trace_settings(updates, request.model_name)
        else:
            settings = await self._data_plane.trace_settings(request.model_name)
        return messages.encode_trace_settings(settings)

    async def _log(self, raw: bytes, _context: Any, _arrived: float) -> bytes:
        updates = messages.read_log_updates(parse_message(pb.LogSettingsRequest, raw))
        settings = self._data_plane.update_log_settings(updates) if updates else self._data_plane.log_settings()
        return messages.encode_log_settings(settings)
