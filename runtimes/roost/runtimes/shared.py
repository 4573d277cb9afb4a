"""The memory that a worker shares with its router: it reads inputs there and leaves outputs where they are wanted."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

from roost.core.arena import RUNNING_BYTES, RUNNING_THREADS, RunningTable, running_table
from roost.core.errors import Internal, Unimplemented
from roost.core.frames import Region, WireTensor
from roost.core.tensors import Tensor
from roost.runtimes.protocol import Place


class Shared:
    """The worker's end of the arena.

    Args:
        arena: The arena's mapping; None if the router shares none, and every tensor comes and goes inline.
    """

    def __init__(self, arena: mmap.mmap | None) -> None:
        self._memory = memoryview(arena) if arena is not None else None
        self.running: RunningTable = running_table(arena) if arena is not None else [0] * RUNNING_THREADS

    def tensors(self, inputs: Sequence[WireTensor]) -> Sequence[Tensor]:
        """The inputs of a run, those in the arena become views on it."""
        for tensor in inputs:
            if type(tensor.data) is Region:
                tensor.data = self._view(tensor)
        views: Sequence[Any] = inputs  # as good as tensors: a copy of each would only cost time
        return views

    def places(self, wanted: Sequence[WireTensor]) -> dict[str, Place]:
        """What a model may see of the places that a run's outputs have."""
        return {place.name: Place(place.datatype, place.shape, self._view(place)) for place in wanted}

    def placed(
        self, outputs: Sequence[Tensor], wanted: Sequence[WireTensor], places: Mapping[str, Place]
    ) -> list[WireTensor | Tensor]:
        """The outputs as they are to be sent.

        One that its model has written to its place stays there; one that has a place of its own shape is copied to it,
        which is still less work than sending it.
        """
        regions = {place.name: place.data for place in wanted}
        sent: list[WireTensor | Tensor] = []
        for output in outputs:
            place = places.get(output.name)
            if place is None or (output.datatype, output.shape) != (place.datatype, place.shape):
                sent.append(output)
                continue
            if output.data is not place.memory:
                elements = memoryview(output.data).cast("B")
                if len(elements) != len(place.memory):
                    sent.append(output)
                    continue
                place.memory[:] = elements
            sent.append(WireTensor(output.name, output.datatype, output.shape, regions[output.name]))
        return sent

    def _view(self, tensor: WireTensor) -> memoryview:
        region = tensor.data
        assert isinstance(region, Region)
        if self._memory is None:
            raise Unimplemented("this worker takes no tensors in shared memory")
        end = region.offset + region.length
        if region.offset < RUNNING_BYTES or end > len(self._memory):
            raise Internal(f"'{tensor.name}' is not in the memory that is shared")
        return self._memory[region.offset : end]
