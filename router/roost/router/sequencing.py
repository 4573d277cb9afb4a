"""Which sequences a request is to be looked for in: those of its revision, or of one that was replaced meanwhile."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from random import Random
from weakref import WeakValueDictionary

from roost.core.requests import InferRequest
from roost.registry_client.sequences import SEQUENCE_ID, SEQUENCE_START
from roost.router.mesh import Mesh
from roost.router.models import Version
from roost.router.revision import Revision
from roost.router.sequences import Sequences, Surroundings, correlation_id


class Sequencing:
    """The sequences of all models.

    Args:
        mesh: Runs their requests.
        disk: Where files with initial states are read.
    """

    def __init__(self, mesh: Mesh, disk: Executor) -> None:
        self._around = Surroundings(mesh.submit, mesh.loader, mesh.leases, mesh.sequence_budget, disk, {})
        self._locks: WeakValueDictionary[tuple[str, object], asyncio.Lock] = WeakValueDictionary()

    def is_behind(self, request: InferRequest) -> bool:
        """Whether a model is looked for on behalf of a request that came before in the same sequence."""
        return bool(self._locks) and _key_of(request) in self._locks

    async def in_order(self, request: InferRequest, look: Callable[[], Awaitable[Version]]) -> Version:
        """Looks for the model of a request; those of one sequence come out in the order in which they came.

        Raises:
            RoostError: What looking raises.
        """
        if SEQUENCE_ID not in request.parameters:
            return await look()
        async with self._locks.setdefault(_key_of(request), asyncio.Lock()):
            return await look()

    def of(self, revision: Revision, request: InferRequest) -> Sequences:
        """Where a request to a revision finds its sequence, or begins one.

        One that has begun goes on with the version that it has begun with, unless the request names another one.
        """
        own = revision.sequences
        if own is None:
            policy = revision.description.sequences
            assert policy is not None
            own = revision.sequences = Sequences(revision, policy, self._around)
        id_ = correlation_id(request)
        if id_ in own.table or request.parameters.get(SEQUENCE_START) is True:
            return own
        for other in self._around.live.get(revision.key.name, ()):
            if id_ in other.table and request.model_version in ("", other.revision.key.version):
                return other
        return own


def _key_of(request: InferRequest) -> tuple[str, object]:
    return request.model_name, request.parameters.get(SEQUENCE_ID)


def draw_of(request: InferRequest, random: Random) -> float:
    """A number from [0, 1) that picks the branch of a route: the same one for all requests of a sequence."""
    id_ = request.parameters.get(SEQUENCE_ID)
    return random.random() if id_ is None else zlib.crc32(f"{request.model_name}/{id_}".encode()) / 2**32
