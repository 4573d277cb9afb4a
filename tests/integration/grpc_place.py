"""What the tests of the gRPC transport share: a server around a data plane, messages, and statuses of failed calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_server import GrpcServer, build_grpc_server
from roost.server.transport_options import TransportOptions
from roost.server.values import GrpcTransport

from tests.unit.grpc_fakes import MODEL, FakeDataPlane

SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"
STREAM = SERVICE + "ModelStreamInfer"
MIB = 2**20
TRANSPORT: GrpcTransport = "auto"  # the fixture of that name sets it


def build(
    data_plane: FakeDataPlane, limits: GrpcLimits | None = None, options: TransportOptions | None = None
) -> GrpcServer:
    """Makes a server with the transport that is tested."""
    limits = replace(limits or GrpcLimits(health_poll_s=0.01), transport=TRANSPORT)
    return build_grpc_server(data_plane, limits, options)


@asynccontextmanager
async def serving(
    data_plane: FakeDataPlane, limits: GrpcLimits | None = None, options: TransportOptions | None = None
) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """Runs a server; gives its port and a channel to it."""
    server = build(data_plane, limits, options)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    arguments = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=arguments) as channel:
            yield port, channel
    finally:
        await server.stop(0)


def infer_bytes(data: bytes = b"ab", model: str = MODEL, request_id: str = "", **parameters: int) -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[data])
    message.inputs.add(name="IN", datatype="UINT8", shape=[len(data)])
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message.SerializeToString()


def output_of(raw: bytes) -> bytes:
    (content,) = pb.ModelInferResponse.FromString(raw).raw_output_contents
    return content


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value
