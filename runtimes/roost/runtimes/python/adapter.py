"""Models in Python, each instance in processes of its own, which are started again when they have ended."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from roost.core.errors import (
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RoostError,
    Unavailable,
)
from roost.core.tensors import Parameters, Signature, Tensor
from roost.runtimes.failures import without_paths
from roost.runtimes.memory import family_memory_of
from roost.runtimes.protocol import Calls, Cancellation, LoadSpec, RunHandle
from roost.runtimes.python.opening import INSTANCE_KIND, Order
from roost.runtimes.python.process import Ended, HostProcess
from roost.runtimes.python.spawning import kill_all_left

GRACE_S: Final = 30.0
"""How long a run may go on that nobody waits for any more, unless the model's parameter ``cancel_grace_s`` says."""

ENDS_IN_A_ROW: Final = 3
"""After so many ends of its process without an answer a model is not started again at once."""

MOST_PAUSE_S: Final = 60.0

_ENVIRONMENT = "EXECUTION_ENV_PATH"  # Triton's word for it
_MODEL_FOLDER = "$$TRITON_MODEL_DIRECTORY"


class PythonRuntime:
    """Loads ``model.py`` files, if the server allows models to be programs.

    Attributes:
        loads_elsewhere: A load only waits for another process, and the threads that it makes are to have the priority
            of runs.
    """

    name = "python"
    loads_elsewhere = True

    def __init__(self) -> None:
        self._starter = ThreadPoolExecutor(1, "model-starter")
        self._lock = threading.Lock()
        self._processes: weakref.WeakSet[HostProcess] = weakref.WeakSet()
        self._kind: dict[str, str] = {}

    def use_gpu(self) -> None:
        """Tells models that they are on a GPU, as Triton does; what they do with it is up to them."""
        self._kind = {INSTANCE_KIND: "GPU"}

    def load(self, spec: LoadSpec) -> PythonModel:
        """Starts a process for the model and has it load.

        Raises:
            FailedPrecondition: If the server does not allow code.
            InvalidArgument: If the model is to blame.
            RoostError: As ``Runtime.load``.
        """
        if not spec.may_bring_code:
            raise FailedPrecondition("the model is a Python program: the server needs --allow-code for it")
        order = Order(spec.path, spec.root, {**spec.options, **self._kind}, spec.threads)
        start = partial(self._start, order, python_of(order), spec.calls, _grace_s(order))
        return PythonModel(order, start, spec.cancellation)

    def end_larger_than(self, limit_bytes: int) -> None:
        """See ``EndsProcesses``; also those that load."""
        for process in self._living():
            process.end_if_larger_than(limit_bytes)

    def end_all(self) -> None:
        """See ``EndsProcesses``."""
        for process in self._living():
            process.kill("was ended with its worker", is_expected=True)
        kill_all_left()

    def _living(self) -> list[HostProcess]:
        with self._lock:
            return [process for process in self._processes if not process.has_ended]

    def _start(self, order: Order, python: str, calls: Calls | None, grace_s: float) -> HostProcess:
        process = HostProcess(order, python, self._starter, calls, grace_s)
        with self._lock:
            self._processes.add(process)
        return process


class PythonModel:
    """One instance, and the processes that it has at the moment: one, or as many as its instance groups say.

    Args:
        order: The model.
        start: Starts a process for it.
        cancellation: Set when its load is no longer wanted.
    """

    def __init__(self, order: Order, start: Callable[[], HostProcess], cancellation: Cancellation) -> None:
        self._start = start
        self._root = order.root
        self._decoupled = bool(order.config.get("model_transaction_policy", {}).get("decoupled", False))
        sequences = order.config.get("sequence_batching")
        self._remembers = sequences is not None and not sequences.get("state")
        self._lock = threading.Lock()
        self._places: list[_Place] = []
        try:
            self._places += [_Place(self._start()) for _ in range(1 if self._remembers else _count(order))]
            self.signature = self._load([place.process for place in self._places], cancellation)
        except BaseException:
            for place in self._places:
                place.process.kill("was ended, as its load has failed", is_expected=True)
            raise

    @property
    def processes(self) -> int:
        """See ``HasProcesses``."""
        return len(self._places)

    def give_up(self) -> None:
        """See ``HasProcesses``."""
        for place in self._places:
            place.process.kill("was ended, as its load was given up", is_expected=True)

    def own_bytes(self) -> int:
        """See ``LoadedApart``."""
        return sum(_private_bytes(place.process.pid) for place in self._places)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Has the process run the model that has the least to do; of several, the one that has waited longest.

        Raises:
            RoostError: What the model says, or UNAVAILABLE if its process ends meanwhile.
        """
        with self._lock:
            place = min(self._places, key=lambda place: (place.runs, place.turns))
            place.runs += 1
            place.turns += 1
        try:
            process = self._living(place, run)
            if self._remembers:
                with self._lock:
                    place.known.check(run.parameters)
            run.begin_infer()
            try:
                answer = process.run(inputs, outputs, run, decoupled=self._decoupled)
            finally:
                if not process.has_ended:
                    place.restarts.answered()
            run.end_infer()
            return answer
        except Ended as end:
            if run.cancelled:
                raise Cancelled("the run was cancelled") from None
            error = ResourceExhausted if end.is_too_large else Unavailable
            raise error(f"the model's process {end}") from None
        finally:
            with self._lock:
                place.runs -= 1

    def close(self) -> None:
        """Has the model end, and its processes."""
        for place in self._places:
            place.process.close()

    def _living(self, place: _Place, run: RunHandle) -> HostProcess:
        """The process of a place; a new one if it has ended, unless it does that all the time."""
        process = place.process
        if not process.has_ended:
            return process
        with place.lock:
            if place.process.has_ended:
                place.restarts.begin(time.monotonic())
                place.process = self._start()
                try:
                    signature = self._load([place.process], run)
                except RoostError as error:
                    place.process.kill("was ended, as its load has failed", is_expected=True)
                    raise Unavailable(
                        f"the model's process has ended, and no other could be started: {error}"
                    ) from None
                place.known = KnownSequences()
                if signature != self.signature:
                    place.process.kill("was ended, as the model's files have changed")
            return place.process

    def _load(self, processes: Sequence[HostProcess], cancellation: Cancellation) -> Signature:
        """Has processes load the model, all at the same time."""

        def give_up() -> None:
            for process in processes:
                process.kill("was ended, as its load was given up", is_expected=True)

        cancellation.on_cancel(give_up)
        try:
            loaded = [process.load() for process in processes]
            signatures = [wait() for wait in loaded]
            return signatures[0]
        except Ended as end:
            if cancellation.cancelled:
                raise Cancelled("the load was cancelled") from None
            reason = without_paths(f"its process {end} while it was loaded", self._root)
            if end.is_too_large:
                raise ResourceExhausted(reason) from None
            raise (Internal(reason) if end.is_killed else InvalidArgument(reason)) from None


class _Place:
    """One of the processes of an instance, which may be replaced.

    Attributes:
        process: The present one.
        restarts: How often it was replaced lately.
        runs: How many runs it has.
        turns: How many it has had in all.
        known: The sequences of requests that it was told of.
        lock: Held while it is replaced.
    """

    __slots__ = ("known", "lock", "process", "restarts", "runs", "turns")

    def __init__(self, process: HostProcess) -> None:
        self.process = process
        self.restarts = Restarts()
        self.known = KnownSequences()
        self.runs = self.turns = 0
        self.lock = threading.Lock()


class KnownSequences:
    """The sequences whose first request a process had: the next process of a model that remembers them has none."""

    MOST = 1 << 16
    """So many, as their last requests may never come."""

    def __init__(self) -> None:
        self._ids: dict[object, None] = {}

    def check(self, parameters: Parameters) -> None:
        """Refuses what would be answered as if there had been nothing before.

        Args:
            parameters: Of the next request.

        Raises:
            Unavailable: If the process that knew the sequence has ended.
        """
        id_ = parameters.get("sequence_id")
        if id_ is None:  # it is no client's
            return
        known = self._ids.pop(id_, self)
        if known is self and not parameters.get("sequence_start"):
            raise Unavailable("the model's process has ended, and with it what it knew of the sequence")
        if not parameters.get("sequence_end"):
            self._ids[id_] = None
            if len(self._ids) > self.MOST:
                del self._ids[next(iter(self._ids))]


@dataclass(slots=True)
class Restarts:
    """How often the process of a model may be started again.

    Attributes:
        in_a_row: How often it was since it last answered.
        not_before: When it may be the next time.
    """

    in_a_row: int = 0
    not_before: float = 0.0

    def begin(self, now: float) -> None:
        """A new process is wanted.

        Raises:
            Unavailable: If there were too many, for now.
        """
        if now < self.not_before:
            wait_s = self.not_before - now
            raise Unavailable(
                f"the model's process has ended {self.in_a_row} times in a row without an answer", retry_after_s=wait_s
            )
        self.in_a_row += 1
        if self.in_a_row >= ENDS_IN_A_ROW:
            self.not_before = now + min(MOST_PAUSE_S, 2.0 ** (self.in_a_row - ENDS_IN_A_ROW))

    def answered(self) -> None:
        """The model has answered."""
        if self.in_a_row:
            self.in_a_row, self.not_before = 0, 0.0


def python_of(order: Order) -> str:
    """The interpreter of a model: that of its own environment, if it has one, else the server's.

    Raises:
        InvalidArgument: If it names one that is not there.
    """
    named = order.parameters.get(_ENVIRONMENT, "").replace(_MODEL_FOLDER, order.model_folder)
    if named:
        python = os.path.join(named, "bin", "python")
        if not os.access(python, os.X_OK):
            hint = "; archives have to be unpacked" if named.endswith((".tar.gz", ".tgz", ".zip")) else ""
            raise InvalidArgument(f"{_ENVIRONMENT}: there is no bin/python in '{os.path.basename(named)}'{hint}")
        return python
    for folder in (order.root, order.model_folder):
        python = os.path.join(folder, "venv", "bin", "python")
        if os.access(python, os.X_OK):
            return python
    return sys.executable


def _count(order: Order) -> int:
    """How many processes an instance has: what Triton calls instances of a model."""
    return sum(int(group.get("count", 0)) or 1 for group in order.config.get("instance_group", ())) or 1


def _private_bytes(pid: int) -> int:
    try:
        return family_memory_of(pid).private_bytes
    except OSError:  # it has ended just now
        return 0


def _grace_s(order: Order) -> float:
    value = order.parameters.get("cancel_grace_s", "")
    try:
        return max(0.0, float(value)) if value else GRACE_S
    except ValueError:
        raise InvalidArgument(f"parameter 'cancel_grace_s': '{value[:40]}' is no number of seconds") from None
