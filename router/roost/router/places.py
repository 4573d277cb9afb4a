"""Step 7 of the data path: which tensors of a run travel inline and which lie in the worker's arena, and how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from roost.core.frames import FrameError, Region, Response, Run, WireTensor
from roost.core.tensors import DATATYPES, Buffer
from roost.router.admission import ByteBudget
from roost.router.arena import Arena

ARENA_FROM_BYTES = 64 << 10
"""Smaller tensors are inline: for them a slot costs more than the socket does (see the measurements in the docs)."""

MAX_KINDS = 64
"""Kinds of runs of one instance whose answers are remembered; clients choose the shapes."""

MAX_INSTANCES = 1024
"""Instances of which there may be any."""

_ITEM_BYTES = {name: datatype.itemsize for name, datatype in DATATYPES.items()}

# Runs that are alike: the shapes of their inputs, and the outputs that they ask for.
_Kind: TypeAlias = tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]


@dataclass(slots=True)
class _Held:
    """A run under way that has slots, or may teach what its like answer.

    Attributes:
        instance: What it runs on.
        kind: What it is like; None for a stream.
        inputs: Where those of its inputs are that were copied.
        staged: Those that were not.
        places: How many bytes each of its outputs has, by where it is, unless it was answered.
    """

    instance: int
    kind: _Kind | None
    inputs: list[int]
    staged: list[Buffer]
    places: dict[int, int]


class Places:
    """The slots of one worker's runs: taken when a run is sent, let go when it has ended.

    Those of answers stay until nobody refers to them any more. An output whose shape its signature leaves open gets a
    place of the size that the last run had whose inputs were of the same shapes: most models answer alike, and
    where one does not, its answer comes inline.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._held: dict[int, _Held] = {}
        self._small: dict[int, int] = {}  # the instances of all other runs
        self._learned: dict[int, dict[_Kind, list[WireTensor]]] = {}

    def lay_out(self, number: int, run: Run, outputs: Sequence[WireTensor]) -> Run:
        """Moves large inputs into the arena and finds places for large outputs; what has no room there is inline.

        Args:
            number: The run's.
            run: What is to be run; it is not changed.
            outputs: What it will answer, as far as that is known; their data count for nothing.
        """
        if run.instance in self._learned:
            return self._lay_out(number, run, outputs)
        for tensor in (*run.inputs, *outputs):
            if _size_bytes(tensor) >= ARENA_FROM_BYTES:
                return self._lay_out(number, run, outputs)
        self._small[number] = run.instance
        return run

    def _lay_out(self, number: int, run: Run, outputs: Sequence[WireTensor]) -> Run:
        kind = (tuple([tensor.shape for tensor in run.inputs]), tuple(run.outputs)) if run.credit is None else None
        held = self._held[number] = _Held(run.instance, kind, [], [], {})
        inputs = [
            tensor if _size_bytes(tensor) < ARENA_FROM_BYTES else self._move_in(tensor, held) for tensor in run.inputs
        ]
        places: list[WireTensor] = []
        if kind is not None:
            learned = self._learned.get(run.instance)
            if learned is not None and kind in learned:
                given = {output.name for output in outputs}
                outputs = (*outputs, *[output for output in learned[kind] if output.name not in given])
            for output in outputs:
                size_bytes = _size_bytes(output)
                offset = self._arena.take(size_bytes) if size_bytes >= ARENA_FROM_BYTES else None
                if offset is not None:
                    places.append(WireTensor(output.name, output.datatype, output.shape, Region(offset, size_bytes)))
                    held.places[offset] = size_bytes
        return Run(run.instance, run.deadline_ns, inputs, run.outputs, run.parameters, run.credit, places)

    def resolve(self, number: int, response: Response, answers: ByteBudget) -> None:
        """Turns the places in a response into views, and ends the run if the response is its last one.

        Raises:
            FrameError: If the response names what is not a place of this run.
            ResourceExhausted: If the budget of answers has no room for it.
        """
        unplaced = False
        for output in response.outputs:
            region = output.data
            if isinstance(region, Region):
                held = self._held.get(number)
                if held is None or held.places.get(region.offset) != region.length:
                    raise FrameError(f"an output in a place that is not its run's: {region}")
                del held.places[region.offset]
                output.data = self._arena.answer(region.offset, region.length, answers)
            elif len(cast(Buffer, region)) >= ARENA_FROM_BYTES:
                unplaced = True
        if unplaced:
            self._learn(number, response)
        if response.final:
            self.end(number)

    def end(self, number: int) -> None:
        """A run has ended: the worker does not look at its slots any more."""
        if self._small.pop(number, None) is not None:
            return
        held = self._held.pop(number, None)
        if held is not None:
            for offset in (*held.inputs, *held.places):
                self._arena.free(offset)

    def _learn(self, number: int, response: Response) -> None:
        """Remembers large outputs that came inline: the next run of this kind has places for them.

        The first one of an instance whose inputs are small has only shown that there are any.
        """
        held = self._held.get(number)
        instance = held.instance if held is not None else self._small.get(number)
        if instance is None or (held is not None and held.kind is None):
            return
        if len(self._learned) >= MAX_INSTANCES and instance not in self._learned:
            self._learned.clear()
        kinds = self._learned.setdefault(instance, {})
        if held is None or held.kind is None:
            return
        if len(kinds) >= MAX_KINDS:
            kinds.clear()
        kinds[held.kind] = [
            WireTensor(output.name, output.datatype, output.shape, b"")
            for output in response.outputs
            if _ITEM_BYTES[output.datatype] and _size_bytes(output) >= ARENA_FROM_BYTES
        ]

    def _move_in(self, tensor: WireTensor, held: _Held) -> WireTensor:
        """Copies a tensor's elements into a slot, unless they are in one; as it was if there is no room."""
        data = tensor.data
        assert not isinstance(data, Region)
        pieces = (_bytes_of(data),) if isinstance(data, bytes | bytearray | memoryview) else [*map(_bytes_of, data)]
        offset = self._arena.staged(pieces[0]) if len(pieces) == 1 else None
        if offset is not None:
            held.staged.append(pieces[0])
            return WireTensor(tensor.name, tensor.datatype, tensor.shape, Region(offset, len(pieces[0])))
        size_bytes = sum(map(len, pieces))
        offset = self._arena.take(size_bytes) if size_bytes else None
        if offset is None:
            return tensor
        held.inputs.append(offset)  # first, so that it is given back whatever happens
        self._arena.write(offset, pieces)
        return WireTensor(tensor.name, tensor.datatype, tensor.shape, Region(offset, size_bytes))


def _size_bytes(tensor: WireTensor) -> int:
    """How many bytes its elements take; 0 of an output whose elements vary."""
    item_bytes = _ITEM_BYTES[tensor.datatype]
    if item_bytes:
        return math.prod(tensor.shape) * item_bytes
    data = tensor.data
    if isinstance(data, Region):
        return data.length
    return len(data) if isinstance(data, bytes | bytearray | memoryview) else sum(map(len, data))


def _bytes_of(data: Buffer) -> Buffer:
    return data if type(data) is not memoryview or data.format == "B" else data.cast("B")
