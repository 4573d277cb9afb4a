"""Models in Python, each instance in processes of its own, which are started again when they have ended."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from roost.core.errors import Cancelled, FailedPrecondition, Internal, InvalidArgument, RoostError, Unavailable
from roost.core.tensors import Signature, Tensor
from roost.runtimes.failures import without_paths
from roost.runtimes.memory import family_memory_of
from roost.runtimes.protocol import Cancellation, LoadSpec, RunHandle
from roost.runtimes.python.opening import Order
from roost.runtimes.python.process import Ended, HostProcess

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

    def load(self, spec: LoadSpec) -> PythonModel:
        """Starts a process for the model and has it load.

        Raises:
            FailedPrecondition: If the server does not allow code.
            InvalidArgument: If the model is to blame.
            RoostError: As ``Runtime.load``.
        """
        if spec.options.get("roost.allow_code") != "true":
            raise FailedPrecondition("the model is a Python program: the server needs --allow-code for it")
        order = Order(spec.path, spec.root, spec.options, spec.threads)
        start = partial(HostProcess, order, python_of(order), self._starter, spec.calls, _grace_s(order))
        return PythonModel(order, start, spec.cancellation)


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
        self._lock = threading.Lock()
        self._places: list[_Place] = []
        try:
            self._places += [_Place(self._start()) for _ in range(_count(order))]
            self.signature = self._load([place.process for place in self._places], cancellation)
        except BaseException:
            for place in self._places:
                place.process.kill("was ended, as its load has failed", is_expected=True)
            raise

    def own_bytes(self) -> int:
        """See ``LoadedApart``."""
        return sum(_private_bytes(place.process.pid) for place in self._places)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Has the process run the model that has the least to do.

        Raises:
            RoostError: What the model says, or UNAVAILABLE if its process ends meanwhile.
        """
        with self._lock:
            place = min(self._places, key=lambda place: place.runs)
            place.runs += 1
        try:
            process = self._living(place, run)
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
            raise Unavailable(f"the model's process {end}") from None
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
            raise (Internal(reason) if end.is_killed else InvalidArgument(reason)) from None


class _Place:
    """One of the processes of an instance, which may be replaced.

    Attributes:
        process: The present one.
        restarts: How often it was replaced lately.
        runs: How many runs it has.
        lock: Held while it is replaced.
    """

    __slots__ = ("lock", "process", "restarts", "runs")

    def __init__(self, process: HostProcess) -> None:
        self.process = process
        self.restarts = Restarts()
        self.runs = 0
        self.lock = threading.Lock()


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
