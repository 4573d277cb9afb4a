"""Tensors in and out of clients' shared memory, around the run of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from roost.core.errors import RegionTooSmall
from roost.core.requests import InferRequest, InferResponse, RegionSlice
from roost.server.client_memory import ClientMemory, Region
from roost.server.data_plane_protocol import Budget
from roost.server.offload import Offload

# Copies beyond this go to a thread: they take longer than getting there and back (measured: 170 us, 2 MiB).
THREAD_BYTES = 2 << 20


def uses_regions(request: InferRequest) -> bool:
    """Whether any tensor of a request is in shared memory."""
    return bool(request.regions) or any(output.region is not None for output in request.outputs)


class RegionIO:
    """The regions that one request reads and writes; they stay usable until it ends, unregistered or not.

    Args:
        memory: Where regions are found.
        budget: What copies of inputs are taken from, until ``close`` has been called and all copying has ended.
        threads: Where large copies are made.
        request: Names the regions.

    Raises:
        NotFound: If there is no such region.
        InvalidArgument: If a part is outside its region.
        ResourceExhausted: If the copies do not fit into the budget.
    """

    def __init__(self, memory: ClientMemory, budget: Budget, threads: Offload, request: InferRequest) -> None:
        self._threads = threads
        self._request = request
        self._inputs = {name: (_find(memory, part), part) for name, part in request.regions.items()}
        self._outputs = {
            output.name: (_find(memory, output.region), output.region)
            for output in request.outputs
            if output.region is not None
        }
        self._size_bytes = sum(part.byte_size for part in request.regions.values())
        self._budget = budget
        budget.acquire(self._size_bytes)
        self._holds = 1

    def hold(self) -> None:
        """Keeps what was taken from the budget until ``let_go``."""
        self._holds += 1

    def let_go(self) -> None:
        """Ends what ``hold`` began; the last one gives back what was taken."""
        self._holds -= 1
        if not self._holds:
            self._budget.release(self._size_bytes)

    def close(self) -> None:
        """Ends the request's use."""
        self.let_go()

    async def read(self) -> None:
        """Puts the inputs' bytes into the request.

        Raises:
            InvalidArgument: If a region was truncated.
        """
        if not self._inputs:
            return
        if self._size_bytes > THREAD_BYTES:
            found = await self._threads.run(self, _read, self._inputs)
        else:
            found = _read(self._inputs)
        self._request.inputs = [
            replace(tensor, data=found[tensor.name]) if tensor.name in found else tensor
            for tensor in self._request.inputs
        ]

    async def write(self, response: InferResponse) -> None:
        """Moves the outputs that belong into regions out of a response.

        Raises:
            InvalidArgument: If a region is too small or was truncated.
        """
        moved = [output for output in response.outputs if output.name in self._outputs]
        if not moved:
            return
        size_bytes = 0
        for output in moved:
            needed = memoryview(output.data).nbytes
            size_bytes += needed
            _, part = self._outputs[output.name]
            if needed > part.byte_size:
                raise RegionTooSmall(
                    f"shared memory size specified with the request for output '{output.name}' "
                    f"({part.byte_size} bytes) should be at least {needed} bytes to hold the results"
                )
        if size_bytes > THREAD_BYTES:
            await self._threads.run(self, _write, self._outputs, response)
        else:
            _write(self._outputs, response)
        response.outputs = [
            replace(output, data=b"") if output.name in self._outputs else output for output in response.outputs
        ]
        response.in_regions = frozenset(output.name for output in moved)


def _find(memory: ClientMemory, part: RegionSlice) -> Region:
    region = memory.region(part.region)
    region.check(part)
    return region


def _read(inputs: Mapping[str, tuple[Region, RegionSlice]]) -> dict[str, bytes]:
    return {name: region.read(part) for name, (region, part) in inputs.items()}


def _write(outputs: Mapping[str, tuple[Region, RegionSlice]], response: InferResponse) -> None:
    for output in response.outputs:
        if output.name in outputs:
            region, part = outputs[output.name]
            region.write(part, output.data)
