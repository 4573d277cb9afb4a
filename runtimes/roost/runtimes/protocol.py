"""What the worker asks of a runtime, and what it hands to one.

An adapter implements ``Runtime`` and ``LoadedModel`` for its framework; the worker's executor calls them from
its own threads and knows nothing of the framework.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from roost.core.frames import FrameType, StepTimes
from roost.core.tensors import Buffer, Parameters, Signature, Tensor

NOT_LOADED: Final = "NOT_LOADED"
"""Message of the FAILED_PRECONDITION that answers a run of an instance that is not in the worker."""


class Cancellation:
    """Whether somebody still waits; set by the thread that reads the link, seen by the thread that works.

    Attributes:
        cancelled: Nobody waits any more.
    """

    __slots__ = ("_callback", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        self._callback: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Says that nobody waits any more."""
        self.cancelled = True
        if self._callback is not None:
            self._callback()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has ``callback`` called on cancellation, at once if that has happened.

        It is called from another thread, must return at once, and may be called twice: both sides write first
        and look second, so that no cancellation falls between them without a lock.
        """
        self._callback = callback
        if self.cancelled:
            callback()


class Calls(Protocol):
    """The way to other models, for those that ask some; for any thread."""

    def ask(self, payload: Buffer, began: Callable[[int], object]) -> tuple[FrameType, Buffer]:
        """Asks what the payload of a CALL frame says, and blocks until there is an answer.

        Args:
            payload: See ``roost.core.frames.call_frame``.
            began: Told the number under which the call can be dropped.

        Returns:
            RESPONSE or ERROR, and the payload of such a frame.
        """

    def drop(self, number: int) -> None:
        """Nobody waits for a call any more: it is answered at once, with an error."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One model to load.

    Attributes:
        path: The model file, or folder where the format is one.
        root: The folder that it and its external data live in.
        threads: Threads that one run of the model may use.
        options: Options of the runtime, from the model's configuration: see ``roost.registry_client.load_options``.
        cancellation: Set when the load is no longer wanted.
        prepared: Whether the file is a prepared copy that the runtime has made itself, on such a machine.
        calls: The way to other models; None where there is none.
    """

    path: str
    root: str
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    cancellation: Cancellation = field(default_factory=Cancellation)
    prepared: bool = False
    calls: Calls | None = None

    @property
    def may_bring_code(self) -> bool:
        """Whether the model may run code of its own."""
        return self.options.get("roost.allow_code") == "true"

    @property
    def makes_threads(self) -> bool:
        """Whether the model may be run by threads that its load starts."""
        return self.threads > 1 or any(key.endswith("thread_count") for key in self.options)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an output is wanted: memory that the router can read, so that nobody has to carry the output there.

    A runtime may let the model write there, if the output turns out to be as large, and returns ``memory`` as the
    output's data then. It may as well take no notice.

    Attributes:
        datatype: What the output is expected to be.
        shape: Its expected shape.
        memory: Bytes that may be written until the run ends, as many as that takes; at a multiple of 64 bytes.
    """

    datatype: str
    shape: tuple[int, ...]
    memory: memoryview


_NO_PLACES: Mapping[str, Place] = {}


class RunHandle(Cancellation):
    """One run as its model sees it: parameters, cancellation, timing, and intermediate responses.

    Attributes:
        parameters: Request parameters.
        deadline_ns: ``time.monotonic_ns`` after which the answer is of no use; 0 for none.
        places: Where outputs are wanted, by name.
        emitted: How many responses the model has given before the last one.
    """

    __slots__ = ("_emit", "_infer_end", "_infer_start", "_start", "deadline_ns", "emitted", "parameters", "places")

    def __init__(
        self,
        parameters: Parameters | None = None,
        deadline_ns: int = 0,
        emit: Callable[[Sequence[Tensor], int, StepTimes], None] | None = None,
    ) -> None:
        self.cancelled = False
        self._callback = None
        self.parameters: Parameters = parameters if parameters is not None else {}
        self.deadline_ns = deadline_ns
        self.places = _NO_PLACES
        self.emitted = 0
        self._emit = emit
        self._start = self._infer_start = self._infer_end = 0

    def emit(self, outputs: Sequence[Tensor]) -> None:
        """Sends a response ahead of the last one, which ``LoadedModel.run`` returns; for decoupled models alone.

        Blocks while it is written and, before, while the client has not taken enough of those sent already.

        Raises:
            Cancelled: If nobody waits for the run any more, also while this blocks.
            Internal: If the model is not decoupled; the run fails, whatever the model does then.
        """
        sequence = self.emitted
        self.emitted += 1
        if self._emit is not None:
            self._emit(outputs, sequence, self.times())
        self._infer_end = 0  # the computation goes on

    def begin(self) -> int:
        """Marks the start of the input step and says when that is, ``time.monotonic_ns``."""
        self._start = self._infer_start = now_ns = time.monotonic_ns()
        return now_ns

    def begin_infer(self) -> None:
        """Marks the end of the input step and the start of the model's computation."""
        self._infer_start = time.monotonic_ns()

    def end_infer(self) -> None:
        """Marks the end of the computation and the start of the output step."""
        self._infer_end = time.monotonic_ns()

    def times(self) -> StepTimes:
        """The steps up to now; a model that marks nothing spent all its time computing."""
        now = time.monotonic_ns()
        infer_end = self._infer_end or now
        return StepTimes(self._start, self._infer_start, self._infer_start, infer_end, infer_end, now)


class LoadedModel(Protocol):
    """One instance: a model in memory. ``run`` may be called from several threads at once."""

    signature: Signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Runs a batch.

        Args:
            inputs: Tensors whose data stays valid and unchanged until the call returns.
            outputs: Names of the outputs wanted; empty: all.
            run: Parameters, cancellation, timing, and places for outputs.

        Returns:
            The outputs. Their data may be views; whoever holds them keeps them alive. A decoupled model whose
            stream ends without another response returns none.

        Raises:
            RoostError: INVALID_ARGUMENT if the inputs are to blame, CANCELLED if the run was cancelled.
        """

    def close(self) -> None:
        """Lets go of the model's memory; no run is in progress and none follows.

        The worker trims malloc's free memory afterwards. It does not collect garbage, which with thousands of
        instances stops every thread for a long time: a model that leaves cycles behind has to do that here.
        """


@runtime_checkable
class LoadedApart(Protocol):
    """An instance in processes of its own, of which so can be said what it takes."""

    def own_bytes(self) -> int:
        """The private memory of its processes."""


@runtime_checkable
class HasProcesses(Protocol):
    """An instance that has several processes, which runs that follow each other take turns in."""

    @property
    def processes(self) -> int:
        """How many."""

    def give_up(self) -> None:
        """Ends them at once, in the middle of whatever they do: nobody wants the instance any more."""


class Runtime(Protocol):
    """An adapter to one framework."""

    name: str

    def load(self, spec: LoadSpec) -> LoadedModel:
        """Loads a model; may be called from several threads at once, while others run.

        Raises:
            RoostError: INVALID_ARGUMENT if the artifact is to blame, RESOURCE_EXHAUSTED if memory is short,
                CANCELLED if the load was cancelled. Messages name no paths.
        """


class NoGpu(Exception):
    """The process has no GPU that a framework can use; the text is the end of a sentence that says why."""


@runtime_checkable
class GpuRuntime(Protocol):
    """A runtime that can load models on a GPU: on the only one that its process sees."""

    def use_gpu(self) -> None:
        """From now on models are loaded there. Whatever the framework sets up on a GPU it does now.

        Raises:
            NoGpu: If it can't; then models are loaded on the CPU as before.
        """


class PreparingRuntime(Runtime, Protocol):
    """An adapter to a framework that can save a model in a form that loads faster; see ``roost.runtimes.prepared``."""

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        """Writes a copy of a model into an empty folder and returns the name of the file to be loaded from there.

        The copy answers as the model does wherever runtime and machine are the same, and needs no file of the model.

        Raises:
            RoostError: As ``load``, and also if the model can't be saved.
        """


@runtime_checkable
class EndsProcesses(Protocol):
    """A runtime whose models are in processes of their own, each of which can be ended without the others."""

    def end_larger_than(self, limit_bytes: int) -> None:
        """Ends those that take more private memory, with what they have started; their requests are told why."""

    def end_all(self) -> None:
        """Ends all of them, and what they have started, as their worker ends."""


@runtime_checkable
class ImportsLate(Protocol):
    """A runtime that imports libraries with the first load that needs them; what they take would seem that model's."""

    def import_for(self, spec: LoadSpec) -> None:
        """Imports what such a load needs."""
