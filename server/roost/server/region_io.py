"""Tensors in and out of clients' shared memory, around the run of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from roost.core.errors import RegionTooSmall, RoostError
from roost.core.requests import Done, InferRequest, InferResponse, RegionSlice, Ticket
from roost.core.tensors import Tensor
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

    @property
    def is_small(self) -> bool:
        """Whether all copying may be done on the event loop."""
        return max(self._size_bytes, sum(part.byte_size for _, part in self._outputs.values())) <= THREAD_BYTES

    async def read(self) -> None:
        """Puts the inputs' bytes into the request.

        Raises:
            InvalidArgument: If a region was truncated.
        """
        if self._size_bytes <= THREAD_BYTES:
            self.read_at_once()
            return
        found = self._memory()
        await self._threads.run(self, _read, self._inputs, found)
        self._fill(found)

    def read_at_once(self) -> None:
        """Does what ``read`` does, on the event loop.

        Raises:
            InvalidArgument: If a region was truncated.
        """
        if self._inputs:
            found = self._memory()
            _read(self._inputs, found)
            self._fill(found)

    def _memory(self) -> dict[str, memoryview]:
        return {name: self._memory_of(part.byte_size) for name, (_, part) in self._inputs.items()}

    def _fill(self, found: Mapping[str, memoryview]) -> None:
        self._request.inputs = [
            Tensor(tensor.name, tensor.datatype, tensor.shape, found[tensor.name], tensor.parameters)
            if tensor.name in found
            else tensor
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
        if self._check(response) <= THREAD_BYTES:
            _write(self._outputs, response)
        else:
            await self._threads.run(self, _write, self._outputs, response)
        self._take_out(response)

    def write_at_once(self, response: InferResponse) -> None:
        """Does what ``write`` does, on the event loop.

        Raises:
            InvalidArgument: If a region is too small or was truncated.
        """
        self._check(response)
        _write(self._outputs, response)
        self._take_out(response)

    def _check(self, response: InferResponse) -> int:
        """How many bytes belong into regions; checks that each has room for its own."""
        moved = [output for output in response.outputs if output.name in self._outputs]
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
        return size_bytes

    def _take_out(self, response: InferResponse) -> None:
        response.in_regions = frozenset(output.name for output in response.outputs if output.name in self._outputs)
        if response.in_regions:
            response.outputs = [
                replace(output, data=b"") if output.name in response.in_regions else output
                for output in response.outputs
            ]


class InRegions:
    """A request with small tensors in regions that costs no task. Implements ``roost.core.requests.Ticket``.

    Args:
        regions: Its regions, which are closed when it has ended.
        done: Gets its outcome, once the outputs are where they belong.
        count: Told of its error, or None, before that.
    """

    __slots__ = ("_count", "_done", "_regions", "ticket")

    def __init__(self, regions: RegionIO, done: Done, count: Callable[[BaseException | None], None]) -> None:
        self._regions = regions
        self._done: Done | None = done
        self._count = count
        self.ticket: Ticket | None = None

    def ended(self, outcome: InferResponse | RoostError) -> None:
        """Takes the outcome of the run."""
        done = self._close()
        if done is None:
            return
        self.ticket = None  # which refers to this: together they would keep the inputs' memory
        if isinstance(outcome, InferResponse):
            try:
                self._regions.write_at_once(outcome)
            except RoostError as error:
                outcome = error.with_traceback(None)
        self._count(outcome if isinstance(outcome, RoostError) else None)
        done(outcome)

    def cancel(self) -> None:
        """See ``Ticket``."""
        ticket, self.ticket = self.ticket, None
        if self._close() is not None:
            assert ticket is not None
            ticket.cancel()
            self._count(asyncio.CancelledError())

    def _close(self) -> Done | None:
        """Ends it; what to tell the outcome, the first time."""
        done, self._done = self._done, None
        if done is not None:
            self._regions.close()
        return done


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
