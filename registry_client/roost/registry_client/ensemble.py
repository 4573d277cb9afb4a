"""Ensembles: models that are made of others, as ``ensemble_scheduling`` of a configuration says.

Steps exchange *ensemble tensors*. Each of them comes from the request or from one step; a step can go once all that it
takes are there. What is wrong within a configuration is found here; what depends on the models of the steps is the
router's to find.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from roost.core.errors import InvalidArgument
from roost.core.names import check_name, shorten
from roost.proto import model_config_pb2 as mc

PLATFORM = "ensemble"

MAX_STEPS = 1000
"""Of an ensemble, those of the ensembles that it is made of included."""

_REQUEST = -1  # where the inputs of the ensemble come from


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an ensemble.

    Attributes:
        model: The model that is asked.
        version: Its version; empty for what its policy serves last.
        inputs: The ensemble tensor that each of the model's inputs gets.
        outputs: The ensemble tensor that each of the model's outputs becomes.
    """

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The steps of an ensemble, and how tensors tie them together.

    Attributes:
        steps: In the order of the configuration, which is not that in which they go.
        producers: The number of the step that each tensor comes from; inputs of the ensemble are not in it.
        before: The steps that each step has to wait for.
        behind: The steps that wait for each step.
    """

    steps: tuple[Step, ...]
    producers: Mapping[str, int] = field(init=False, repr=False)
    before: tuple[frozenset[int], ...] = field(init=False, repr=False)
    behind: tuple[frozenset[int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        producers = {tensor: number for number, step in enumerate(self.steps) for tensor in step.outputs.values()}
        before = tuple(
            frozenset(producers[tensor] for tensor in step.inputs.values() if tensor in producers)
            for step in self.steps
        )
        behind: list[set[int]] = [set() for _ in self.steps]
        for number, others in enumerate(before):
            for other in others:
                behind[other].add(number)
        object.__setattr__(self, "producers", producers)
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "behind", tuple(map(frozenset, behind)))

    @property
    def models(self) -> tuple[str, ...]:
        """The models of all steps, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))

    def needed_for(self, tensors: Iterable[str]) -> frozenset[int]:
        """The steps without which these tensors would not be there."""
        return _closure((self.producers[tensor] for tensor in tensors if tensor in self.producers), self.before)

    def depending_on(self, number: int) -> frozenset[int]:
        """The steps that a step's tensors reach, sooner or later."""
        return _closure(self.behind[number], self.behind)


def read_ensemble(config: mc.ModelConfig) -> Ensemble | None:
    """The steps of a configuration that was checked; None if its model is no ensemble."""
    if not config.HasField("ensemble_scheduling"):
        return None
    return Ensemble(tuple(map(_step_of, config.ensemble_scheduling.step)))


def check_ensemble(config: mc.ModelConfig) -> None:
    """Checks the configuration of an ensemble as far as that is possible without its models.

    The rules are Triton's, in its words where they name the step and the tensor. Steps count from 0.

    Raises:
        InvalidArgument: If it contradicts itself.
    """
    if not config.HasField("ensemble_scheduling"):
        raise InvalidArgument(f"ensemble_scheduling must be specified for a model whose platform is '{PLATFORM}'")
    if config.platform != PLATFORM:
        raise InvalidArgument(f"ensemble_scheduling can't be specified for a model whose platform is not '{PLATFORM}'")
    set_ = {field.name for field, _ in config.ListFields()}
    for name in ("instance_group", "optimization", "model_warmup", "default_model_filename"):
        if name in set_:
            raise InvalidArgument(f"{name} can't be specified for an ensemble, whose steps have their own")
    _check_interface(config)
    steps = config.ensemble_scheduling.step
    if not steps:
        raise InvalidArgument("ensemble_scheduling: must specify 'step'")
    if len(steps) > MAX_STEPS:
        raise InvalidArgument(f"ensemble_scheduling: {len(steps)} steps are over the limit of {MAX_STEPS}")
    for number, step in enumerate(steps):
        _check_step(number, step)
    _check_flow(config, [_step_of(step) for step in steps])


def _check_interface(config: mc.ModelConfig) -> None:
    """An ensemble has no file that could tell what its configuration leaves out."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise InvalidArgument(f"an ensemble must specify its {kind}s")
        for tensor in tensors:
            if tensor.data_type == mc.TYPE_INVALID:
                raise InvalidArgument(f"{kind} '{tensor.name}' of the ensemble must specify 'data_type'")
            if not tensor.dims:
                raise InvalidArgument(f"{kind} '{tensor.name}' of the ensemble must specify 'dims'")


def _check_step(number: int, step: mc.ModelEnsembling.Step) -> None:
    where = f"step {number} of ensemble_scheduling"
    if not step.model_name:
        raise InvalidArgument(f"{where}: must specify 'model_name'")
    check_name(step.model_name, f"model_name in {where}:")
    where = f"step {number} (model '{step.model_name}') of ensemble_scheduling"
    if step.model_version < -1:
        raise InvalidArgument(
            f"{where}: model_version must be positive, or -1 for the latest, not {step.model_version}"
        )
    if step.model_namespace:
        raise InvalidArgument(f"{where}: model_namespace is not supported")
    for name, mapped in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not mapped:
            raise InvalidArgument(f"{where}: must specify '{name}'")
        for own in sorted(mapped):
            if not own or not mapped[own]:
                raise InvalidArgument(f"{where}: a key or value of '{name}' is empty")


def _check_flow(config: mc.ModelConfig, steps: Sequence[Step]) -> None:
    """Each tensor comes from one place and goes somewhere, and no step waits for itself."""
    producers = dict.fromkeys((tensor.name for tensor in config.input), _REQUEST)
    for number, step in enumerate(steps):
        for output, tensor in sorted(step.outputs.items()):
            other = producers.get(tensor)
            if other == _REQUEST:
                raise InvalidArgument(
                    f"{_named(number, step)} maps output '{output}' to '{shorten(tensor)}', which is an input of the "
                    "ensemble"
                )
            if other is not None:
                raise InvalidArgument(
                    f"ensemble tensor '{shorten(tensor)}' can appear in an output map only once: "
                    f"{_named(other, steps[other])} and {_named(number, step)} produce it"
                )
            producers[tensor] = number
    _check_uses(config, steps, producers)
    circle = _circle(Ensemble(tuple(steps)))
    if circle:
        names = " -> ".join(_named(number, steps[number]) for number in circle)
        raise InvalidArgument(f"steps of the ensemble wait for one another: {names}")


def _check_uses(config: mc.ModelConfig, steps: Sequence[Step], producers: Mapping[str, int]) -> None:
    used = {output.name for output in config.output}
    for number, step in enumerate(steps):
        for own, tensor in sorted(step.inputs.items()):
            if tensor not in producers:
                raise InvalidArgument(
                    f"{_named(number, step)} takes ensemble tensor '{shorten(tensor)}' as input '{shorten(own)}', but "
                    "it is no input of the ensemble and no step produces it"
                )
            used.add(tensor)
    for output in config.output:
        if producers.get(output.name, _REQUEST) == _REQUEST:
            raise InvalidArgument(f"ensemble output '{output.name}' is not produced by any step")
    for tensor, number in producers.items():
        if tensor not in used and number == _REQUEST:
            raise InvalidArgument(f"ensemble input '{shorten(tensor)}' is not used")
        if tensor not in used:
            raise InvalidArgument(
                f"ensemble tensor '{shorten(tensor)}' is unused: {_named(number, steps[number])} produces it"
            )


def _circle(ensemble: Ensemble) -> list[int]:
    """Steps that wait for one another, the first one again at the end; empty if there are none."""
    left = set(range(len(ensemble.steps))).difference(_in_order(ensemble))
    if not left:
        return []
    way = [min(left)]
    while way[-1] not in way[:-1]:  # each that is left waits for another one that is
        way.append(min(left & ensemble.before[way[-1]]))
    return way[way.index(way[-1]) :][::-1]


def _in_order(ensemble: Ensemble) -> list[int]:
    """The steps, each behind those that it waits for; without those of a circle and behind it."""
    waits = [len(before) for before in ensemble.before]
    free = [number for number, count in enumerate(waits) if not count]
    for number in free:  # which grows meanwhile
        for follower in ensemble.behind[number]:
            waits[follower] -= 1
            if not waits[follower]:
                free.append(follower)
    return free


def _closure(start: Iterable[int], edges: Sequence[Collection[int]]) -> frozenset[int]:
    found: set[int] = set()
    left = list(start)
    while left:
        number = left.pop()
        if number not in found:
            found.add(number)
            left.extend(edges[number])
    return frozenset(found)


def _step_of(step: mc.ModelEnsembling.Step) -> Step:
    # A version that is not set at all reads as 0, which there never is.
    version = str(step.model_version) if step.model_version > 0 else ""
    return Step(step.model_name, version, dict(sorted(step.input_map.items())), dict(sorted(step.output_map.items())))


def _named(number: int, step: Step) -> str:
    return f"step {number} (model '{step.model}')"
