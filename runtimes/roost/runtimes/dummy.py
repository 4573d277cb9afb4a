"""A runtime for tests: its models sleep, echo, count, stream, leak, fail, hang or crash as their file says.

A ``model.dummy`` is a JSON object; all keys but ``inputs`` and ``outputs`` may be left out, and those of a run may
be overridden by request parameters of the same name:

======================  ===================================================================================
``inputs``, ``outputs``  rows of name, datatype, shape
``load_s``, ``run_s``    how long a load or run takes; cancellation ends it
``load_bytes``           memory that an instance holds
``fail_load``            message of the INVALID_ARGUMENT that loading ends with
``loads_in``             a file with process ids; in all other processes loading ends with INTERNAL
``load_after``           a file that loading waits for; cancellation ends it
``unload_after``         a file that unloading waits for
``load_begun``           a file that every load adds a line to once it has begun: process id and file
``echo``                 outputs repeat the inputs, by position, where datatypes agree (default); else zeros
``state``                an output ``count`` holds how many runs the instance has had, this one included
``stream``               number of responses to a run (default 1; 0 and more than 1 are for decoupled models);
                         an output ``sequence`` numbers them
``stream_from_input``    true: the first element of the first input is that number
``interval_s``           how long the model waits between two responses; cancellation ends it
``close_empty``          true: the stream ends behind the last response, not with it
``fail_after``           the run fails after so many responses, as ``fail`` and ``fail_code`` say
``begun``                a file that every run adds a byte to once it has begun; not in parameters
``leak_bytes``           memory that every run loses for good
``fail``, ``fail_code``  message and code (default INTERNAL) of the error that runs end with
``crash``                ``load`` or ``run``: the process aborts then; in parameters: true
``hang``                 ``load`` or ``run``: it never ends, cancelled or not; in parameters: true
======================  ===================================================================================

Besides, INT64 outputs ``pid`` and ``batch`` hold the worker's process id and the first input's first dimension.
"""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from roost.core.errors import Cancelled, Code, Internal, InvalidArgument, RoostError, error_of
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, to_array
from roost.runtimes.protocol import Cancellation, LoadSpec, RunHandle

_leaked: list[bytearray] = []


class DummyRuntime:
    """Loads ``model.dummy`` files."""

    name = "dummy"

    def use_gpu(self) -> None:
        """Computes nothing, so it can do that anywhere."""

    def load(self, spec: LoadSpec) -> DummyModel:
        """Does what the file says of loading.

        Raises:
            InvalidArgument: If the file is not as it should be, or says so.
            Cancelled: If the load was cancelled.
        """
        try:
            behaviour = json.loads(Path(spec.path).read_bytes())
            signature = Signature(_specs(behaviour["inputs"]), _specs(behaviour["outputs"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidArgument(f"not a dummy model: {type(error).__name__}") from None
        if "load_begun" in behaviour:
            with Path(behaviour["load_begun"]).open("a") as begun:
                begun.write(f"{os.getpid()} {spec.path}\n")
        if "load_after" in behaviour:
            _wait_for(Path(behaviour["load_after"]), spec.cancellation, "load")
        if behaviour.get("hang") == "load":
            threading.Event().wait()
        _sleep(float(behaviour.get("load_s", 0)), spec.cancellation, "load")
        if behaviour.get("crash") == "load":
            _crash()
        if "fail_load" in behaviour:
            raise InvalidArgument(str(behaviour["fail_load"]))
        if "loads_in" in behaviour and str(os.getpid()) not in Path(behaviour["loads_in"]).read_text().split():
            raise Internal("this worker can't load it")
        return DummyModel(signature, behaviour)


class DummyModel:
    """An instance of a dummy model."""

    def __init__(self, signature: Signature, behaviour: Mapping[str, Any]) -> None:
        self.signature = signature
        self._behaviour = behaviour
        self._ballast = _touched(int(behaviour.get("load_bytes", 0)))
        self._count = 0
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Does what file and parameters say of runs.

        Raises:
            RoostError: If they say so, or CANCELLED.
        """
        with self._lock:
            self._count += 1
            count = self._count
        behaviour = {**self._behaviour, **run.parameters}
        run.begin_infer()
        if "begun" in self._behaviour:
            with Path(self._behaviour["begun"]).open("ab") as begun:
                begun.write(b".")
        if behaviour.get("crash") in ("run", True):
            _crash()
        if behaviour.get("hang") in ("run", True):
            threading.Event().wait()
        _sleep(float(behaviour.get("run_s", 0)), run, "run")
        if behaviour.get("leak_bytes"):
            _leaked.append(_touched(int(behaviour["leak_bytes"])))
        if "fail" in behaviour and "fail_after" not in behaviour:
            raise _failure(behaviour)
        run.end_infer()
        responses = _responses(inputs, behaviour)
        emitted = _emitted(responses, behaviour)
        for sequence in range(responses):
            if sequence:
                _sleep(float(behaviour.get("interval_s", 0)), run, "run")
            answer = self._outputs(inputs, outputs, behaviour, {"count": count, "sequence": sequence})
            if sequence == emitted:
                return answer
            run.emit(answer)
        if "fail_after" in behaviour:
            raise _failure(behaviour)
        return []

    def close(self) -> None:
        """Drops the ballast, once that is wanted."""
        if "unload_after" in self._behaviour:
            _wait_for(Path(self._behaviour["unload_after"]), Cancellation(), "unload")
        self._ballast = bytearray()

    def _outputs(
        self, inputs: Sequence[Tensor], wanted: Sequence[str], behaviour: Mapping[str, Any], numbers: dict[str, int]
    ) -> list[Tensor]:
        numbers["pid"] = os.getpid()
        numbers["batch"] = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        if not behaviour.get("state"):
            del numbers["count"]
        result = []
        for index, spec in enumerate(self.signature.outputs):
            if wanted and spec.name not in wanted:
                continue
            source = inputs[index] if index < len(inputs) else None
            if spec.name in numbers and spec.datatype == "INT64":
                result.append(_filled(spec, inputs, numbers[spec.name]))
            elif behaviour.get("echo", True) and source is not None and source.datatype == spec.datatype:
                result.append(Tensor(spec.name, source.datatype, source.shape, source.data))
            else:
                result.append(_filled(spec, inputs, 0))
        return result


def _specs(rows: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    specs = tuple(TensorSpec(str(row[0]), str(row[1]), tuple(int(dim) for dim in row[2])) for row in rows)
    for spec in specs:
        DATATYPES[spec.datatype]
    return specs


def _responses(inputs: Sequence[Tensor], behaviour: Mapping[str, Any]) -> int:
    wanted = to_array(inputs[0]).flat[0] if behaviour.get("stream_from_input") else behaviour.get("stream", 1)
    return min(int(wanted), int(behaviour["fail_after"])) if "fail_after" in behaviour else int(wanted)


def _emitted(responses: int, behaviour: Mapping[str, Any]) -> int:
    """How many of the responses go ahead of the end of the run; the last one may go with it."""
    return responses if behaviour.get("close_empty") or "fail_after" in behaviour else responses - 1


def _failure(behaviour: Mapping[str, Any]) -> RoostError:
    return error_of(Code(behaviour.get("fail_code", "INTERNAL")), str(behaviour.get("fail", "the model failed")))


def _filled(spec: TensorSpec, inputs: Sequence[Tensor], value: int) -> Tensor:
    """A tensor full of one value; an open dimension is the first input's, or 1."""
    known = inputs[0].shape if inputs else ()
    shape = tuple(dim if dim >= 0 else known[i] if i < len(known) else 1 for i, dim in enumerate(spec.shape))
    dtype = DATATYPES[spec.datatype].dtype
    array = np.full(shape, str(value) if dtype is None else value, dtype=dtype or object)
    return from_array(spec.name, spec.datatype, array)


def _sleep(duration_s: float, cancellation: Cancellation, what: str) -> None:
    if duration_s <= 0:
        return
    woken = threading.Event()
    cancellation.on_cancel(woken.set)
    if woken.wait(duration_s):
        raise Cancelled(f"the {what} was cancelled")


def _wait_for(file: Path, cancellation: Cancellation, what: str) -> None:
    while not file.exists():
        _sleep(0.005, cancellation, what)


def _touched(size: int) -> bytearray:
    """Memory that is really there: cleared pages need not be."""
    return bytearray(b"\x01") * size


def _crash() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()
