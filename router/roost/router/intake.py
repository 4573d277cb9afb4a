"""Step 3 of the data path, the quick way: most requests look like one before that was checked in full."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

from roost.core.frames import WireTensor
from roost.core.requests import InferRequest
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec
from roost.router.places import ARENA_FROM_BYTES
from roost.router.validation import SHARED_SIGNATURES

MAX_SHAPES = 1024
"""Shapes of one input that are remembered; clients choose them."""


Taken: TypeAlias = tuple[int, object, int]
"""What batching has to know of a request that was checked.

How many rows of a batch it is (1 if the model does not batch); a key, equal for requests that may share a batch; the
bytes of its inputs."""

Shape: TypeAlias = tuple[int, ...]


class Intake:
    """Checks requests and says what they are for a batch; models with equal signatures share one, see ``intake_of``.

    A request passes the quick way if it is exactly of a kind that passed the full check: inputs in the model's order,
    without optional ones, of fixed-size elements, each of a shape that was seen before, bytes of that size,
    no parameters, and no outputs that are only for those who ask. Everything else goes the long way, which knows what
    is wrong.

    Args:
        signature: The model's tensors as clients see them.
        max_batch_size: What the full check holds requests to.
        batches: Whether requests are batched over their first dimension.
    """

    __slots__ = (
        "_batches",
        "_datatypes",
        "_fixed",
        "_inputs",
        "_large",
        "_large_from_rows",
        "_outputs",
        "_places",
        "_rows_are_known",
        "_signature",
    )

    def __init__(self, signature: Signature, max_batch_size: int, *, batches: bool) -> None:
        self._signature = signature
        self._batches = batches
        self._rows_are_known = batches or max_batch_size > 0
        self._large: dict[int, tuple[WireTensor, ...]] = {}
        self._large_from_rows = min((self._large_from(spec) for spec in signature.outputs), default=math.inf)
        specs = signature.inputs
        self._inputs: list[tuple[str, str, dict[Shape, tuple[int, int, Shape]]]] = []
        self._outputs = {spec.name for spec in signature.outputs if not spec.optional}
        self._fixed = {spec.name for spec in specs if -1 not in spec.shape[1:]}
        self._places = {spec.name: place for place, spec in enumerate(specs)}
        self._datatypes = {spec.name: spec.datatype for spec in specs}
        if all(DATATYPES[spec.datatype].itemsize and spec.datatype != "BOOL" for spec in specs):
            self._inputs = [(spec.name, spec.datatype, {}) for spec in specs]

    def quick(self, request: InferRequest) -> Taken | None:
        """What the request is, if that can be said at once; None says nothing of it."""
        inputs, known = request.inputs, self._inputs
        if len(inputs) != len(known) or request.parameters or not inputs:
            return None
        nbytes, rows = 0, -1
        key: object = None
        for tensor, (name, datatype, shapes) in zip(inputs, known, strict=True):
            found = shapes.get(tensor.shape)
            if found is None or tensor.name != name or tensor.datatype != datatype:
                return None
            size_bytes, count, tail = found
            data = tensor.data
            if (data.nbytes if type(data) is memoryview else len(data)) != size_bytes:
                return None
            if rows != count:
                if rows >= 0:
                    return None
                rows = count
            if tail:
                key = (key, tail)
            nbytes += size_bytes
        for output in request.outputs:
            if output.name not in self._outputs:
                return None
        return rows, key, nbytes

    def places(self, rows: int, wanted: Sequence[str]) -> Sequence[WireTensor]:
        """The outputs of a batch whose shapes are known beforehand and that are large, of those wanted."""
        if rows < self._large_from_rows:
            return ()
        known = self._large.get(rows)
        if known is None:
            known = tuple(self._large_outputs(rows))
            if len(self._large) < MAX_SHAPES:
                self._large[rows] = known
        if not wanted or not known:
            return known if len(self._outputs) == len(self._signature.outputs) else self._by_default(known)
        return [output for output in known if output.name in wanted]

    def _by_default(self, outputs: Sequence[WireTensor]) -> Sequence[WireTensor]:
        return [output for output in outputs if output.name in self._outputs]

    def _large_from(self, spec: TensorSpec) -> float:
        """The fewest rows with which an output is large; infinity if that can't be said."""
        row = spec.own_shape[1:] if self._rows_are_known and spec.own_shape else spec.own_shape
        row_bytes = math.prod(row) * DATATYPES[spec.datatype].itemsize
        if -1 in row or not row_bytes:
            return math.inf
        return math.ceil(ARENA_FROM_BYTES / row_bytes) if self._rows_are_known else 0

    def _large_outputs(self, rows: int) -> Iterator[WireTensor]:
        for spec in self._signature.outputs:
            shape = (rows, *spec.own_shape[1:]) if self._rows_are_known and spec.own_shape else spec.own_shape
            if -1 not in shape and math.prod(shape) * DATATYPES[spec.datatype].itemsize >= ARENA_FROM_BYTES:
                yield WireTensor(spec.name, spec.datatype, shape, b"")

    def measure(self, request: InferRequest) -> Taken:
        """The same for a request that was checked in full; puts its inputs into the order of the model."""
        inputs = request.inputs
        nbytes = sum(memoryview(tensor.data).nbytes for tensor in inputs)
        if not self._batches:
            self._remember(inputs)
            return 1, None, nbytes
        inputs.sort(key=lambda tensor: self._places[tensor.name])
        rows = {tensor.shape[0] if tensor.shape else 0 for tensor in inputs}
        if len(rows) != 1 or 0 in rows:
            return 1, object(), nbytes  # nothing is like it: it runs alone
        self._remember(inputs)
        key: object = None
        for tensor in inputs:
            tail = self._tail(tensor)
            key = (key, tail) if tail else key
        names = tuple(tensor.name for tensor in inputs)
        # Others in a batch with one who asks for more, or sends other numbers, would get or be something else.
        more = tuple(output.name for output in request.outputs if output.name not in self._outputs)
        others = tuple(tensor.datatype for tensor in inputs if tensor.datatype != self._datatypes[tensor.name])
        key = (key, more, others) if more or others else key
        if len(names) != len(self._places) or request.parameters:
            key = (key, names, tuple((name, type(v), v) for name, v in sorted(request.parameters.items())))
        return rows.pop(), key, nbytes

    def _tail(self, tensor: Tensor) -> Shape:
        """What of a shape can differ between requests, but for the rows."""
        return () if tensor.name in self._fixed else tensor.shape[1:]

    def _remember(self, inputs: list[Tensor]) -> None:
        """Lets the next request that looks like this one pass quickly."""
        if len(inputs) != len(self._inputs):
            return
        for tensor, (name, datatype, shapes) in zip(inputs, self._inputs, strict=True):
            if tensor.name != name or tensor.datatype != datatype:
                return
            shape = tensor.shape
            if len(shapes) >= MAX_SHAPES:
                shapes.clear()
            size_bytes = math.prod(shape) * DATATYPES[datatype].itemsize
            shapes[shape] = (size_bytes, shape[0], self._tail(tensor)) if self._batches else (size_bytes, 1, ())


intake_of = lru_cache(maxsize=SHARED_SIGNATURES)(Intake)
"""The check for models with such a signature: what passed for one of them passes for all."""
