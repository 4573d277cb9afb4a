"""A gRPC server in its own process, whose memory a test watches.

Arguments are the transport, slots, largest message and budget.
"""

from __future__ import annotations

import asyncio
import sys
from typing import get_args

import uvloop
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_server import build_grpc_server
from roost.server.values import GrpcTransport

from tests.unit.grpc_fakes import FakeDataPlane


class SlowDataPlane(FakeDataPlane):
    """Keeps each request for a while, so that many pile up, and none for longer."""

    async def infer(self, request: InferRequest) -> InferResponse:
        await asyncio.sleep(0.1)
        return InferResponse(request.model_name, "1", [Tensor("OUT", "UINT8", (1,), b"x")])


async def main(transport: GrpcTransport, slots: int, max_message_bytes: int, budget_bytes: int) -> None:
    limits = GrpcLimits(max_concurrent_receives=slots, max_message_bytes=max_message_bytes, transport=transport)
    server = build_grpc_server(SlowDataPlane(budget_bytes=budget_bytes), limits)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    (chosen,) = (name for name in get_args(GrpcTransport) if name == sys.argv[1])
    uvloop.run(main(chosen, *map(int, sys.argv[2:])))
