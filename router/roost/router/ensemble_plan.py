"""What is known of an ensemble once its steps' models are: what goes where, and which steps a request needs; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from roost.core.errors import Code, RoostError, error_of
from roost.core.requests import RequestedOutput
from roost.registry_client.ensemble import Ensemble, Step
from roost.router.validation import Contract

if TYPE_CHECKING:
    from roost.router.models import Version
    from roost.router.revision import Revision

_MAX_ROUTES = 64  # clients choose which outputs they ask for


class StepModel(NamedTuple):
    """The model of a step as it was found: by which name and version, what it takes, and whether it streams.

    An ensemble comes to as many requests as its steps do, and so on.
    """

    target: tuple[str, str]
    revision: Revision
    contract: Contract
    decoupled: bool
    requests: int = 1


class Fit(NamedTuple):
    """Where a tensor goes, or comes from: its name there, the ensemble tensor, and the shape that is meant there."""

    name: str
    tensor: str
    shape: tuple[int, ...]
    batches: bool

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape here of a tensor that may be for a batch where this is not, or the other way round."""
        wanted = self.shape
        if len(shape) == len(wanted):
            return shape
        if self.batches and fits(shape, wanted[1:]):
            return (1, *shape)
        if not self.batches and shape[:1] == (1,) and fits(shape[1:], wanted):
            return shape[1:]
        return shape


@dataclass(frozen=True, slots=True)
class Route:
    """The steps that some tensors need.

    Attributes:
        steps: Their numbers.
        waits: How many of these steps each of them waits for.
        uses: How many of these steps take each tensor, and one more for those that are wanted in the end.
        outputs: What each step is asked for.
    """

    steps: frozenset[int]
    waits: Mapping[int, int]
    uses: Mapping[str, int]
    outputs: Mapping[int, list[RequestedOutput]]


@dataclass(frozen=True, slots=True)
class Ways:
    """How a request is answered: by one route, or by one before a step that streams and one for each of its responses.

    Attributes:
        names: The outputs that are answered, in order.
        head: What goes first, or all there is.
        streaming: The step that streams, if one is needed that does.
        asked: What it is asked for.
        tail: What goes for each of its responses.
    """

    names: tuple[str, ...]
    head: Route
    streaming: int | None = None
    asked: list[RequestedOutput] = field(default_factory=list)
    tail: Route | None = None


@dataclass(eq=False, slots=True)
class Plan:
    """See the module. It holds as long as the steps' models are the ones that it was made of.

    Attributes:
        name: The ensemble's.
        ensemble: Its steps.
        models: Theirs.
        inputs: Of each step.
        outputs: Those of the ensemble, by name.
        streaming: The step whose model is decoupled, if there is one.
    """

    name: str
    ensemble: Ensemble
    models: tuple[StepModel, ...]
    inputs: tuple[tuple[Fit, ...], ...]
    outputs: Mapping[str, Fit]
    streaming: int | None
    _inner: tuple[Plan | None, ...] = ()
    _ways: dict[tuple[str, ...], Ways] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inner = tuple(model.revision.plan for model in self.models)

    @property
    def requests(self) -> int:
        """How many requests a request comes to."""
        return sum(model.requests for model in self.models)

    def is_current(self, known: Callable[[str, str], Version | None]) -> bool:
        """Whether the models are still those that are asked, and ensembles among them made of the same ones."""
        for model, inner in zip(self.models, self._inner, strict=True):
            found = known(*model.target)
            if found is None or found.revision is not model.revision or model.revision.plan is not inner:
                return False
        return True

    def ways(self, names: tuple[str, ...]) -> Ways:
        """How a request is answered that asks for these outputs; for all if it names none."""
        ways = self._ways.get(names)
        if ways is None:
            if len(self._ways) >= _MAX_ROUTES:
                self._ways.clear()
            ways = self._ways[names] = self._find(names or tuple(self.outputs))
        return ways

    def _find(self, names: tuple[str, ...]) -> Ways:
        ensemble, streaming = self.ensemble, self.streaming
        steps = ensemble.needed_for(names)
        if streaming is None or streaming not in steps:
            return Ways(names, self._route(steps, names))
        behind = ensemble.depending_on(streaming) & steps
        head = steps - behind - {streaming}
        taken = [tensor for number in (streaming, *behind) for tensor in ensemble.steps[number].inputs.values()]
        tail = self._route(behind, names)
        asked = self._asked(streaming, {*tail.uses, *names})
        return Ways(names, self._route(head, {*taken, *names}), streaming, asked, tail)

    def _route(self, steps: frozenset[int], wanted: Iterable[str]) -> Route:
        uses = dict.fromkeys(wanted, 1)
        for number in steps:
            for tensor in set(self.ensemble.steps[number].inputs.values()):
                uses[tensor] = uses.get(tensor, 0) + 1
        waits = {number: len(self.ensemble.before[number] & steps) for number in sorted(steps)}
        return Route(steps, waits, uses, {number: self._asked(number, uses) for number in steps})

    def _asked(self, number: int, used: Iterable[str]) -> list[RequestedOutput]:
        used = set(used)
        outputs = self.ensemble.steps[number].outputs
        return [RequestedOutput(name) for name, tensor in outputs.items() if tensor in used]

    def error_at(self, number: int, error: RoostError) -> RoostError:
        """An error of a step as one of the ensemble."""
        return error_at(self.name, number, self.ensemble.steps[number], error)


def fits(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether there are tensors of both shapes."""
    return len(shape) == len(other) and all(a == b or a == -1 or b == -1 for a, b in zip(shape, other, strict=True))


def error_at(name: str, number: int, step: Step, error: RoostError) -> RoostError:
    """An error of a step as one of its ensemble: says where, and otherwise what it was.

    A step that is not found is nothing that the client has asked for: the ensemble is not available then.
    """
    code = Code.UNAVAILABLE if error.code is Code.NOT_FOUND else error.code
    text = f"in ensemble '{name}', step {number} (model '{step.model}'): {error.message}"
    again = error_of(code, text, retry_after_s=error.retry_after_s)
    again.limit = error.limit
    return again
