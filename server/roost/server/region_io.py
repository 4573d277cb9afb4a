"""Tensors in and out of clients' shared memory, around the run of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from roost.core.errors import RegionTooSmall
from roost.core.requests import InferRequest, InferResponse, RegionSlice
from roost.server.client_memory import ClientMemory, Region
from roost.server.data_plane_protocol import Budget
from roost.server.offload import Offload

# Copies beyond this go to a thread. Those of smaller tensors take the event loop no longer than what it copies for
# requests without regions, and getting to a thread and back would add 0.2 ms to each (measured with 4.8 MB: 1.7 instead
# of 1.4 times what must be).
THREAD_BYTES = 8 << 20


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
        stage: Gives memory of so many bytes from which inputs need not be copied again, if there is any.

    Raises:
        NotFound: If there is no such region.
        InvalidArgument: If a part is outside its region.
        ResourceExhausted: If the copies do not fit into the budget.
    """

    def __init__(
        self,
        memory: ClientMemory,
        budget: Budget,
        threads: Offload,
        request: InferRequest,
        stage: Callable[[int], memoryview | None],
    ) -> None:
        self._threads = threads
        self._stage = stage
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
        found = {name: self._memory_of(part.byte_size) for name, (_, part) in self._inputs.items()}
        if self._size_bytes > THREAD_BYTES:
            await self._threads.run(self, _read, self._inputs, found)
        else:
            _read(self._inputs, found)
        self._request.inputs = [
            replace(tensor, data=found[tensor.name]) if tensor.name in found else tensor
            for tensor in self._request.inputs
        ]

    def _memory_of(self, size_bytes: int) -> memoryview:
        staged = self._stage(size_bytes)
        return np.empty(size_bytes, np.uint8).data if staged is None else staged

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


def _read(inputs: Mapping[str, tuple[Region, RegionSlice]], memory: Mapping[str, memoryview]) -> None:
    for name, (region, part) in inputs.items():
        region.read(part, memory[name])


def _write(outputs: Mapping[str, tuple[Region, RegionSlice]], response: InferResponse) -> None:
    for output in response.outputs:
        if output.name in outputs:
            region, part = outputs[output.name]
            region.write(part, output.data)
