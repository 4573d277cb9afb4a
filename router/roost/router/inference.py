"""Steps 2 and 3 of the data path, and what is done with the answers: requests on their way to the mesh and back."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from roost.core.errors import DeadlineExceeded, RoostError, Unavailable
from roost.core.requests import Done, InferRequest, InferResponse, Ticket
from roost.core.tasks import by_deadline
from roost.router.asking import Asking
from roost.router.catalog import Catalog
from roost.router.classification import Classes, wanted_counts
from roost.router.ensemble_answers import label_file_of
from roost.router.ensembles import Ensembles
from roost.router.intake import Taken
from roost.router.loads import LoadPriority
from roost.router.mesh import Mesh
from roost.router.response_cache import ResponseCache
from roost.router.revision import Revision
from roost.router.sequencing import Sequencing, draw_of
from roost.router.states import Availability, InstanceState
from roost.router.streams import ResponseStream, needs_stream
from roost.router.traffic import Traffic
from roost.router.validation import Contract

log = logging.getLogger(__name__)

_AVAILABLE = Availability.READY
_MUCH_TO_CHECK_BYTES = 1 << 16
"""Strings of more bytes are checked in steps, between which others get their turn."""


class Inference:
    """Answers requests.

    Args:
        catalog: Knows the models.
        mesh: Runs them.
        traffic: The routes.
        classifying: Where label files are read and large answers are classified.
        renew: Looks whether the repository has something else than a revision that can't be loaded, and whether it was
            replaced by that.
        responses: Answers that are kept; None for none.
    """

    def __init__(
        self,
        catalog: Catalog,
        mesh: Mesh,
        traffic: Traffic,
        classifying: Executor,
        renew: Callable[[Revision], Awaitable[bool]] | None = None,
        responses: ResponseCache | None = None,
    ) -> None:
        self._catalog = catalog
        self._mesh = mesh
        self._submit = mesh.submit
        self._traffic = traffic
        self._classifying = classifying
        self._renew = renew
        self._sequencing = Sequencing(mesh, classifying)
        self._responses = responses or ResponseCache(0)
        self._random = random.Random()
        asking = Asking(self, mesh.stats)
        self.ensembles = Ensembles(catalog, traffic, asking, self)
        mesh.when_unloadable = self._elsewhere
        mesh.calls.infer = asking.infer

    def begin(self, request: InferRequest, done: Done, *, in_regions: bool = False) -> Ticket | None:
        """Takes a request that needs nothing but its run; see ``DataPlane``.

        Args:
            request: The request.
            done: See ``DataPlane``.
            in_regions: Whether the caller reads and writes its tensors in shared memory, has read them, and counts how
                it ends.

        Raises:
            RoostError: What ``infer`` would raise at once; counted nowhere.
        """
        name, version = request.model_name, request.model_version
        context = request.context
        if self._traffic.routes:
            # What was drawn stays: requests that are handed on to ``infer`` are not to be spread once more.
            draw = draw_of(request, self._random)
            name, version = context.branch = context.branch or self._traffic.resolve(name, version, draw)
        found = self._catalog.known(name, version)
        if found is None or found.availability is not _AVAILABLE or (request.regions and not in_regions):
            return None
        revision = found.revision
        context.served_by = revision.served_by  # whatever becomes of it, and be it cancelled before it goes on
        intake = revision.intake
        if intake is None or revision.failure is not None or revision.special or not revision.resident():
            return None
        for output in request.outputs:
            if output.classification or (output.region is not None and not in_regions):
                return None
        if not revision.used:
            self._mesh.begin_use(revision)
        taken = intake.quick(request)
        if taken is None:
            if sum(len(tensor.data) for tensor in request.inputs) > _MUCH_TO_CHECK_BYTES:
                return None
            assert revision.contract is not None
            revision.contract.check(request)
            taken = intake.measure(request)
        return self._submit(revision, request, done, taken, recorded=not in_regions)

    def stage(self, name: str, version: str, size_bytes: int) -> memoryview | None:
        """See ``Router``: the worker that will run it is guessed; with another one it is copied, and that is all."""
        found = self._catalog.known(name, version)
        for instance in found.revision.instances if found is not None else ():
            if instance.state is InstanceState.READY and instance.worker.link is not None:
                return instance.worker.link.stage(size_bytes)
        return None

    async def infer(self, request: InferRequest) -> InferResponse:
        """See ``Router``."""
        revision = await self._resolve(request)
        if revision.description.ensemble is not None:
            classes, taken = await self._check_quickly(revision, request)
            response = await self.ensembles.infer(revision, request, taken[0])
            return response if classes is None else await self._classify(response, classes)
        if revision.decoupled:
            raise needs_stream(revision.key.name)
        return await self._run(revision, request)

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """See ``Router``."""
        revision = await self._resolve(request)
        if revision.description.ensemble is not None:
            classes, taken = await self._check_quickly(revision, request)
            async with aclosing(self.ensembles.infer_stream(revision, request, taken[0])) as responses:
                async for response in responses:
                    yield response if classes is None else await self._classify(response, classes)
            return
        if not revision.decoupled:
            yield await self._run(revision, request)
            return
        if revision.description.sequences is not None:
            async with aclosing(self._stream_in_sequence(revision, request)) as responses:
                async for response in responses:
                    yield response
            return
        stream = ResponseStream()
        with self._mesh.loader.claimed(revision):
            classes, taken = await self._check(revision, request)
            ticket = self._mesh.submit(revision, request, stream.end, taken, stream=stream)
        try:
            final = False
            while not final:
                response = await stream.take()
                final = response.final
                yield response if classes is None else await self._classify(response, classes)
        finally:
            ticket.cancel()
            stream.close()

    async def recall(self, revision: Revision) -> None:
        """Takes the signature from the store, if it is there for these files.

        Whatever is wrong with them the load that follows meets again: it remembers it and makes it known.
        """
        with contextlib.suppress(RoostError):
            await self._catalog.prepare(revision)

    async def _resolve(self, request: InferRequest) -> Revision:
        name, version = request.model_name, request.model_version
        if self._traffic.routes:
            draw = draw_of(request, self._random)
            name, version = request.context.branch or self._traffic.resolve(name, version, draw)
            request.context.branch = None
        found = self._catalog.known(name, version)
        sequencing = self._sequencing
        if found is None or found.availability is not Availability.READY or sequencing.is_behind(request):
            found = await sequencing.in_order(request, partial(self._catalog.version, name, version))
        revision = found.revision
        request.context.served_by = revision.served_by
        if not revision.used:
            self._mesh.begin_use(revision)
        return revision

    async def _check(self, revision: Revision, request: InferRequest) -> tuple[Classes | None, Taken]:
        """Refuses what the model can't answer.

        Returns:
            What its outputs are to be classified by, if so asked, and what batching has to know of it.
        """
        if revision.failure is not None:
            await self._mesh.loader.check(revision)
        contract = revision.contract
        if contract is None:
            context = request.context
            context.queued = time.monotonic()
            contract = await self._contract(revision, context.deadline)
            context.load_wait_s = time.monotonic() - context.queued
        for _ in contract.checking(request):
            await asyncio.sleep(0)  # others get their turn
        classes = None
        if any(output.classification for output in request.outputs):
            classes = await self._classes(revision, contract, request)
        intake = revision.intake or revision.intake_by(contract)
        return classes, intake.measure(request)

    async def _check_quickly(self, revision: Revision, request: InferRequest) -> tuple[Classes | None, Taken]:
        """The same for what may look like a request before."""
        if revision.intake is not None and not any(output.classification for output in request.outputs):
            taken = revision.intake.quick(request)
            if taken is not None:
                return None, taken
        return await self._check(revision, request)

    def expect(self, revision: Revision) -> None:
        """Somebody will ask for a revision soon: it is loaded if there is memory that nobody has."""
        if not (revision.instances or revision.load is not None or revision.failure is not None):
            loader = self._mesh.loader
            loader.ensure(revision, priority=LoadPriority.BACKGROUND, older_than=-math.inf, kept=True)

    async def contract_of(self, revision: Revision, deadline: float) -> Contract:
        """What a revision takes and gives, as far as that is known; else it is loaded.

        Raises:
            RoostError: If it can't be, or not before the deadline.
        """
        if revision.failure is not None:
            await self._mesh.loader.check(revision)
        return revision.contract or revision.former or await self._contract(revision, deadline)

    async def _contract(self, revision: Revision, deadline: float) -> Contract:
        """The contract of a revision that was not used since the start: from the store, else by loading it."""
        try:
            async with by_deadline(deadline):
                await self.recall(revision)
                if revision.contract is None:
                    await self._mesh.loader.bring(revision, deadline=deadline)
        except TimeoutError:
            raise DeadlineExceeded("Request timeout expired while its model was loading") from None
        contract = revision.contract or revision.former  # it may have gone again already
        assert contract is not None
        return contract

    async def _run(self, revision: Revision, request: InferRequest, *, again: bool = True) -> InferResponse:
        """Answers a request to a model that is not decoupled."""
        if revision.description.sequences is not None:
            return await self._run_in_sequence(revision, request)
        try:
            with self._mesh.loader.claimed(revision):  # what is loaded to check the request stays until it is run
                classes, taken = await self._check(revision, request)
                run = partial(self._outcome, revision, request, taken)
                response = await (self._responses.answer(revision, request, run) if revision.caches else run())
            return response if classes is None else await self._classify(response, classes)
        except Unavailable:
            if not again or not await self.replaced(revision, request.context.deadline):
                raise
        return await self._run(await self._resolve(request), request, again=False)

    async def _outcome(self, revision: Revision, request: InferRequest, taken: Taken) -> InferResponse:
        """Has a request run that was checked."""
        response = await outcome_of(lambda done: self._mesh.submit(revision, request, done, taken))
        assert response is not None
        return response

    async def _run_in_sequence(self, revision: Revision, request: InferRequest) -> InferResponse:
        sequences = self._sequencing.of(revision, request)
        async with sequences.turn(request) as turn:
            classes, taken = await self._check(sequences.revision, turn.request)
            response = await turn.run(taken)
        return response if classes is None else await self._classify(response, classes)

    async def _stream_in_sequence(
        self, revision: Revision, request: InferRequest
    ) -> AsyncGenerator[InferResponse, None]:
        sequences = self._sequencing.of(revision, request)
        async with sequences.turn(request) as turn:
            classes, taken = await self._check(sequences.revision, turn.request)
            async with aclosing(turn.stream(taken)) as responses:
                async for response in responses:
                    yield response if classes is None else await self._classify(response, classes)

    async def replaced(self, revision: Revision, deadline: float = math.inf) -> bool:
        """Whether a revision that could not be loaded has a successor by now; its requests have not run anywhere."""
        if revision.failure is None or revision.retired or self._renew is None:
            return revision.failure is not None and revision.retired
        try:
            async with by_deadline(deadline):
                return await self._renew(revision)
        except TimeoutError:
            return False

    async def _elsewhere(
        self, revision: Revision, request: InferRequest, error: RoostError
    ) -> InferResponse | RoostError:
        """The outcome of a request that ``begin`` took when its model could not be loaded again."""
        try:
            if isinstance(error, Unavailable) and await self.replaced(revision, request.context.deadline):
                return await self._run(await self._resolve(request), request, again=False)
        except RoostError as other:
            return other
        except Exception:
            log.exception("a request to %s could not be sent to its successor", revision.key)
        return copy.copy(error).with_traceback(None)

    async def _classes(self, revision: Revision, contract: Contract, request: InferRequest) -> Classes:
        counts = wanted_counts(request, contract.signature)
        loop = asyncio.get_running_loop()
        if revision.description.ensemble is not None:
            await self.ensembles.verify(revision, request.context.deadline)
        labels: dict[str, tuple[str, ...]] = {}
        for output in counts:
            source, name, file_name = label_file_of(revision, output)
            if file_name and name not in source.labels:
                read = partial(source.folder.read_labels, file_name)
                source.labels[name] = await loop.run_in_executor(self._classifying, read)
            labels[output] = source.labels.get(name, ())
        return Classes(counts, labels, revision.description.max_batch_size > 0)

    async def _classify(self, response: InferResponse, classes: Classes) -> InferResponse:
        if classes.is_quick(response.outputs):
            return replace(response, outputs=classes.classify_all(response.outputs))
        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(self._classifying, classes.classify_all, response.outputs)
        return replace(response, outputs=outputs)


async def outcome_of(begin: Callable[[Done], Ticket | None]) -> InferResponse | None:
    """Begins a request and waits for its response; None if it was not taken. Whoever stops waiting cancels it.

    Raises:
        RoostError: How the request failed.
    """
    outcome: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
    ticket = begin(partial(settle, outcome))
    if ticket is None:
        return None
    try:
        return await outcome
    except asyncio.CancelledError:
        ticket.cancel()
        raise


def settle(future: asyncio.Future[InferResponse], outcome: InferResponse | RoostError) -> None:
    """A ``Done`` that settles a future, unless whoever waits for it has gone."""
    if future.done():
        return
    if isinstance(outcome, RoostError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
