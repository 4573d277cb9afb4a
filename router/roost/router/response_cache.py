"""Between steps 3 and 4 of the data path: answers that are kept for requests that are the same, of models that ask so.

The key is a digest of all that an answer can depend on: the files of the model, each input's name, datatype, shape and
elements, the outputs that are asked for, and the parameters. Requests that come while one like them runs wait
for its answer. Answers are copied out of the memory that workers write to; those used longest ago go first.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias

from cachetools import LRUCache
from roost.core.errors import DeadlineExceeded, RoostError
from roost.core.requests import InferRequest, InferResponse
from roost.core.tasks import by_deadline
from roost.core.tensors import Buffer, Parameters, Tensor
from roost.router.cache_counts import CacheStats, CacheTotals
from roost.router.revision import Revision

LARGEST_SHARE = 4
"""One answer takes no more than one in so many bytes, or it would drive out nearly all others."""

_STEP_BYTES = 1 << 20  # less than a millisecond of hashing with instructions for it, after which others get their turn
_ENTRY_BYTES = 1024
_TENSOR_BYTES = 512


class Kept(NamedTuple):
    """An answer without what is its request's alone; its elements are nobody else's memory, and nobody writes to it."""

    version: str
    outputs: Sequence[Tensor]
    parameters: Parameters
    size_bytes: int

    def answer(self, request: InferRequest) -> InferResponse:
        """The answer to another request."""
        outputs = [Tensor(t.name, t.datatype, t.shape, t.data, t.parameters) for t in self.outputs]
        return InferResponse(request.model_name, self.version, outputs, request.id, self.parameters)


_Key: TypeAlias = tuple[Revision, bytes]


class _Answers(LRUCache[_Key, Kept]):
    """Answers within a limit of bytes; knows which of them are a revision's."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes, getsizeof=lambda kept: kept.size_bytes)
        self._of: dict[Revision, set[bytes]] = {}

    def __setitem__(self, key: _Key, kept: Kept) -> None:
        super().__setitem__(key, kept)
        revision, digest = key
        self._of.setdefault(revision, set()).add(digest)

    def __delitem__(self, key: _Key) -> None:
        super().__delitem__(key)  # also those that go because others come
        revision, digest = key
        digests = self._of[revision]
        digests.remove(digest)
        if not digests:
            del self._of[revision]

    def forget(self, revision: Revision) -> None:
        """Removes all answers of a revision."""
        for digest in [*self._of.get(revision, ())]:
            del self[revision, digest]


class ResponseCache:
    """See the module.

    Args:
        limit_bytes: What all answers together may take; 0 for none.
        totals: Gets what they take.
        look: Looks at the files of a revision that is not loaded: the next run would be of what is there now.
    """

    def __init__(
        self,
        limit_bytes: int,
        totals: CacheTotals | None = None,
        look: Callable[[Revision], Awaitable[None]] | None = None,
    ) -> None:
        self._look = look
        self._totals = totals if totals is not None else CacheTotals()
        self._totals.limit_bytes = limit_bytes
        self._kept = _Answers(limit_bytes)
        self._flights: dict[_Key, asyncio.Future[Kept | None]] = {}

    async def answer(
        self, revision: Revision, request: InferRequest, run: Callable[[], Awaitable[InferResponse]]
    ) -> InferResponse:
        """Answers a request that was checked, with what one like it got if that is known, else by running it.

        A request that waits for another one is run itself if that fails; it never gets another one's error.

        Args:
            revision: What it is for.
            request: The request.
            run: Runs it.

        Raises:
            DeadlineExceeded: If its time is over before one like it is answered.
            RoostError: How its run failed.
        """
        if not self._totals.limit_bytes or not await self._knows_files(revision):
            return await run()
        artifact = revision.artifact
        assert artifact is not None
        counts, began_ns = _counts_of(revision), time.monotonic_ns()
        key = revision, await _digest(artifact.digest, request)
        flight = self._flights.get(key)
        kept = self._kept.get(key) if flight is None else await _wait(flight, request.context.deadline)
        looked_ns = time.monotonic_ns() - began_ns
        if kept is not None:
            counts.hits += 1
            counts.hit_ns += looked_ns
            return kept.answer(request)
        counts.misses += 1
        counts.miss_ns += looked_ns
        if key in self._flights:  # after one that failed all who have waited run at once
            return await run()
        return await self._run(key, artifact.digest, run, counts)

    async def _knows_files(self, revision: Revision) -> bool:
        """Whether it is certain which files would answer."""
        if self._look is not None and not revision.resident():
            try:
                await self._look(revision)
            except RoostError:  # which the run meets as well
                return False
        return revision.artifact is not None

    async def _run(
        self,
        key: _Key,
        files: str,
        run: Callable[[], Awaitable[InferResponse]],
        counts: CacheStats,
    ) -> InferResponse:
        flight: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        kept: Kept | None = None
        try:
            response = await run()
            began_ns = time.monotonic_ns()
            artifact = key[0].artifact
            if artifact is not None and artifact.digest == files:  # else other files have answered
                kept = await self._keep(key, response)
            counts.miss_ns += time.monotonic_ns() - began_ns
            return response
        finally:
            del self._flights[key]
            flight.set_result(kept)

    async def _keep(self, key: _Key, response: InferResponse) -> Kept | None:
        """Keeps a copy of an answer, unless it is too large."""
        size_bytes = _ENTRY_BYTES + sum(_TENSOR_BYTES + memoryview(t.data).nbytes for t in response.outputs)
        if size_bytes * LARGEST_SHARE > self._totals.limit_bytes:
            return None
        outputs = [
            Tensor(t.name, t.datatype, t.shape, await _copy(t.data), dict(t.parameters)) for t in response.outputs
        ]
        kept = Kept(response.model_version, outputs, dict(response.parameters), size_bytes)
        if not key[0].retired:
            self._kept[key] = kept
            self._count()
        return kept

    def forget(self, revision: Revision) -> None:
        """A revision is of no use to anybody any more: its answers go."""
        if revision.caches:
            self._kept.forget(revision)
            self._count()

    def _count(self) -> None:
        self._totals.bytes, self._totals.entries = int(self._kept.currsize), len(self._kept)


def _counts_of(revision: Revision) -> CacheStats:
    counters = revision.counters
    assert counters is not None  # it is used
    if counters.cache is None:
        counters.cache = CacheStats()
    return counters.cache


async def _wait(flight: asyncio.Future[Kept | None], deadline: float) -> Kept | None:
    """What came of a request that was the same; None if nothing that another one could have as well."""
    try:
        async with by_deadline(deadline):
            return await asyncio.shield(flight)
    except TimeoutError:
        raise DeadlineExceeded("Request timeout expired while one that is the same was running") from None


async def _digest(files: str, request: InferRequest) -> bytes:
    """A digest of all that the answer to a request can depend on."""
    inputs = sorted(request.inputs, key=lambda tensor: tensor.name)
    views = [memoryview(tensor.data).cast("B") for tensor in inputs]
    # With all lengths in it, no two requests can be the same bytes; and the form of a value here says its type.
    head = (
        files,
        [(t.name, t.datatype, t.shape, len(view)) for t, view in zip(inputs, views, strict=True)],
        [(output.name, sorted(output.parameters.items())) for output in request.outputs],
        sorted(request.parameters.items()),
    )
    digest = hashlib.sha256(repr(head).encode("utf-8", "surrogatepass"))
    since_turn = 0
    for view in views:
        for start in range(0, len(view), _STEP_BYTES):
            part = view[start : start + _STEP_BYTES]
            digest.update(part)
            since_turn += len(part)
            if since_turn >= _STEP_BYTES:
                since_turn = 0
                await asyncio.sleep(0)
    return digest.digest()


async def _copy(data: Buffer) -> Buffer:
    view = memoryview(data).cast("B")
    if len(view) <= _STEP_BYTES:
        return bytes(view)
    copy = bytearray(len(view))
    for start in range(0, len(view), _STEP_BYTES):
        copy[start : start + _STEP_BYTES] = view[start : start + _STEP_BYTES]
        await asyncio.sleep(0)
    return copy
