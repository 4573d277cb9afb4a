"""Models that are made of others, ``ensemble_scheduling``: finds the models of the steps and asks them.

An ensemble is a revision like others, but it has no instances. Each step is a request of its own, which waits, is
batched, counted and refused as one of a client; all of them end with the request that they are for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

from roost.core.errors import InvalidArgument, RoostError, Unavailable
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.router.asking import Asking
from roost.router.catalog import Catalog
from roost.router.ensemble_answers import MAX_DEPTH, inputs_of, note_spent, response_of
from roost.router.ensemble_checks import make_plan
from roost.router.ensemble_plan import Plan, Route, StepModel, Ways, error_at
from roost.router.ensemble_run import Ended, RouteRun, depth_of, step_request
from roost.router.revision import Revision
from roost.router.states import Availability
from roost.router.streams import needs_stream
from roost.router.traffic import Traffic
from roost.router.validation import Contract


class Loading(Protocol):
    """What has models loaded: ``Inference``."""

    async def contract_of(self, revision: Revision, deadline: float) -> Contract:
        """See ``Inference``."""

    def expect(self, revision: Revision) -> None:
        """See ``Inference``."""


class Ensembles:
    """See the module.

    Args:
        catalog: Knows the models of steps.
        traffic: Routes, which steps follow as other requests do.
        asking: Asks them.
        loading: Has them loaded.
    """

    def __init__(self, catalog: Catalog, traffic: Traffic, asking: Asking, loading: Loading) -> None:
        self._catalog = catalog
        self._traffic = traffic
        self._asking = asking
        self._loading = loading

    async def infer(self, revision: Revision, request: InferRequest, rows: int) -> InferResponse:
        """Answers a request that was checked.

        Args:
            revision: The ensemble.
            request: The request.
            rows: How many rows of a batch it is.

        Raises:
            Unimplemented: If a step that it needs may answer more or less than once.
            RoostError: What a step failed with; the text names the step.
        """
        began = time.monotonic()
        plan, ways = await self._begin(revision, request)
        if ways.tail is not None:
            raise needs_stream(plan.name)
        ended = await self._run(plan, ways.head, request, inputs_of(revision, request))
        response = response_of(revision, plan, ways, request, ended.tensors)
        note_spent(revision, request, rows, began, ended.spent)
        return response

    async def infer_stream(
        self, revision: Revision, request: InferRequest, rows: int
    ) -> AsyncGenerator[InferResponse, None]:
        """The same for any ensemble: one whose step streams answers as often as that step does.

        A response goes through the steps behind before the next one is taken, so the model waits for them.
        """
        began = time.monotonic()
        plan, ways = await self._begin(revision, request)
        if ways.tail is None or ways.streaming is None:
            yield await self.infer(revision, request, rows)
            return
        ended = await self._run(plan, ways.head, request, inputs_of(revision, request))
        names = plan.ensemble.steps[ways.streaming].outputs
        asked = step_request(plan, ways.streaming, ways.asked, ended.tensors, request)
        async with aclosing(self._stream(plan, ways.streaming, asked)) as responses:
            async for part in responses:
                if part.final and not part.outputs:
                    yield InferResponse(request.model_name, revision.key.version, [], request.id)
                    break
                tensors = dict(ended.tensors)
                tensors.update((names[output.name], output) for output in part.outputs if output.name in names)
                tail = await self._run(plan, ways.tail, request, tensors)
                yield response_of(revision, plan, ways, request, tail.tensors, final=part.final)
        note_spent(revision, request, rows, began, ended.spent.plus(asked.context))

    async def verify(self, revision: Revision, deadline: float = math.inf) -> None:
        """Checks an ensemble as the load of another model would, which loads the models of its steps.

        Raises:
            Unavailable: If it can't be served, with the reason.
        """
        await self._plan_of(revision, deadline, ())

    async def ready(self, revision: Revision) -> bool:
        """Whether all models that an ensemble is made of may be asked for."""
        left, seen = [revision], {revision}
        while left:
            ensemble = left.pop().description.ensemble
            for step in ensemble.steps if ensemble is not None else ():
                try:
                    found = await self._catalog.version(*self._target(step.model, step.version))
                except RoostError:
                    return False
                if found.availability is not Availability.READY:
                    return False
                if found.revision not in seen:
                    seen.add(found.revision)
                    left.append(found.revision)
        return True

    def missing(self, revision: Revision) -> str:
        """Why an ensemble can't be asked for, as far as can be said without a look at the disk; empty if it can."""
        ensemble = revision.description.ensemble
        for step in ensemble.steps if ensemble is not None else ():
            name, version = self._target(step.model, step.version)
            found, model = self._catalog.known(name, version), self._catalog.present(name)
            if found is not None and found.availability is Availability.READY:
                continue
            if model is None and self._catalog.in_repository(name) and not self._catalog.explicit:
                continue
            return f"ensemble '{revision.key.name}' depends on '{step.model}' which has no loaded version"
        return ""

    async def _begin(self, revision: Revision, request: InferRequest) -> tuple[Plan, Ways]:
        context = request.context
        if depth_of(context) > MAX_DEPTH:
            raise Unavailable(f"ensembles are nested in one another more than {MAX_DEPTH} times")
        plan = revision.plan
        if plan is None or not plan.is_current(self._catalog.known):
            started = time.monotonic()
            plan = await self._plan_of(revision, context.deadline, ())
            context.load_wait_s = time.monotonic() - started
        return plan, plan.ways(tuple(output.name for output in request.outputs))

    async def _plan_of(self, revision: Revision, deadline: float, above: tuple[str, ...]) -> Plan:
        """The plan of an ensemble, made anew if the models of its steps are others by now.

        Raises:
            Unavailable: If they do not fit together, or one of them can't be asked; the text says which.
        """
        if revision.plan is not None and revision.plan.is_current(self._catalog.known):
            return revision.plan
        above = (*above, revision.key.name)
        try:
            revision.plan = make_plan(revision, await self._find(revision, deadline, above))
        except InvalidArgument as error:
            self._catalog.failed(revision, error.message)
            raise Unavailable(f"model '{revision.key.name}' can't be served: {error.message}") from None
        self._catalog.mended(revision)
        return revision.plan

    async def _find(self, revision: Revision, deadline: float, above: tuple[str, ...]) -> Sequence[StepModel]:
        """Finds the models of all steps, and loads at once those of which it is not known what they take."""
        ensemble = revision.description.ensemble
        assert ensemble is not None
        circle = set(above).intersection(ensemble.models)
        if circle:
            names = " -> ".join((*above, min(circle)))
            raise InvalidArgument(f"circular dependency between ensembles: {names}")
        looks = [self._find_model(step.model, step.version, deadline, above) for step in ensemble.steps]
        models: list[StepModel] = []
        found = await asyncio.gather(*looks, return_exceptions=True)
        for number, (step, model) in enumerate(zip(ensemble.steps, found, strict=True)):
            if isinstance(model, RoostError):
                raise error_at(revision.key.name, number, step, model)
            if isinstance(model, BaseException):
                raise model
            models.append(model)
        return models

    async def _find_model(self, name: str, version: str, deadline: float, above: tuple[str, ...]) -> StepModel:
        target = self._target(name, version)
        found = await self._catalog.version(*target)
        revision = found.revision
        if revision.description.ensemble is None:
            contract = await self._loading.contract_of(revision, deadline)
            return StepModel(target, revision, contract, revision.decoupled)
        plan = await self._plan_of(revision, deadline, above)
        assert revision.contract is not None
        return StepModel(target, revision, revision.contract, plan.streaming is not None, plan.requests)

    def _target(self, name: str, version: str) -> tuple[str, str]:
        return self._traffic.resolve_main(name, version)

    async def _run(self, plan: Plan, route: Route, request: InferRequest, tensors: dict[str, Tensor]) -> Ended:
        for number, waits in route.waits.items():
            revision = plan.models[number].revision
            if waits and not revision.instances and revision.description.ensemble is None:
                self._loading.expect(revision)  # while the steps before run
        async with asyncio.TaskGroup() as group:  # for steps that need more than their run
            outcome = await RouteRun(plan, route, request, tensors, partial(self._asking.ask, group)).ended()
        if isinstance(outcome, RoostError):
            try:
                raise outcome
            finally:
                del outcome  # which refers to this frame
        return outcome

    async def _stream(self, plan: Plan, number: int, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """The responses of the step that streams."""
        try:
            async with aclosing(self._asking.stream(request)) as responses:
                async for response in responses:
                    yield response
        except RoostError as error:
            raise plan.error_at(number, error) from None
