"""Runs that a fresh instance does before it takes requests, so that no request waits for what the first ones take."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from roost.core.errors import Cancelled, InvalidArgument, RoostError, error_of
from roost.core.frames import StepTimes
from roost.core.tensors import DATATYPES, Buffer, Tensor, TensorSpec, element_count, unpack_bytes
from roost.runtimes.protocol import Cancellation, HasProcesses, LoadedModel, RunHandle

if TYPE_CHECKING:
    from roost.runtimes.proof.samples import Array

FOLDER = "warmup"
"""Where in a model's folder the files of samples are."""
MAX_FILE_BYTES = 1 << 28

_INTEGERS_BELOW = 2
"""Integers are often indices into a table of unknown length."""
_SEED = 20


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a load is told to run.

    Attributes:
        samples: See ``roost.registry_client.warmup.warmup_runs``.
        folder: The model's folder.
    """

    samples: Sequence[Mapping[str, Any]] = ()
    folder: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> WarmUp:
        """Reads what a LOAD frame says."""
        return cls([dict(sample) for sample in fields.get("warmup", ())], str(fields.get("warmup_folder", "")))

    def run(self, model: LoadedModel, cancellation: Cancellation) -> None:
        """Runs all samples, each as often as it says, in every process that the instance has.

        Raises:
            Cancelled: If the load is not wanted any more.
            RoostError: What the model says, or that a sample does not fit it. The text names the sample.
        """
        for sample in self.samples:
            try:
                self._run(sample, model, cancellation)
            except Cancelled:
                raise
            except RoostError as error:
                name = str(sample["name"])
                raise error_of(error.code, f"warmup sample '{name}' failed: {error.message}") from error

    def _run(self, sample: Mapping[str, Any], model: LoadedModel, cancellation: Cancellation) -> None:
        tensors = self._tensors(sample["inputs"], model)
        processes = model.processes if isinstance(model, HasProcesses) else 1
        for _ in range(int(sample["times"]) * processes):
            if cancellation.cancelled:
                raise Cancelled("the load was cancelled")
            handle = RunHandle(emit=_drop)
            cancellation.on_cancel(partial(_give_up, model, handle))
            handle.begin()
            model.run(tensors, (), handle)

    def _tensors(self, inputs: Mapping[str, Mapping[str, Any]], model: LoadedModel) -> list[Tensor]:
        """The inputs of a sample in the order of the model."""
        specs = {spec.name: spec for spec in model.signature.inputs}
        if len(specs) == len(inputs) == 1 and next(iter(specs.values())).lenient:
            inputs = dict(zip(specs, inputs.values(), strict=True))  # it goes by any name
        for name, given in inputs.items():
            if name not in specs and not given.get("may_miss"):
                raise InvalidArgument(f"the model has no input '{name}'")
        for name, spec in specs.items():
            if name not in inputs and not spec.optional:
                raise InvalidArgument(f"input '{name}' is missing")
        return [self._tensor(spec, inputs[name]) for name, spec in specs.items() if name in inputs]

    def _tensor(self, spec: TensorSpec, given: Mapping[str, Any]) -> Tensor:
        shape, datatype = tuple(int(dim) for dim in given["shape"]), str(given["datatype"]) or spec.datatype
        if datatype != spec.datatype and not spec.lenient:
            raise InvalidArgument(f"input '{spec.name}' is {datatype}, but the model expects {spec.datatype}")
        if len(shape) != len(spec.own_shape) or any(
            want not in (-1, dim) for want, dim in zip(spec.own_shape, shape, strict=True)
        ):
            raise InvalidArgument(
                f"input '{spec.name}' has shape {list(shape)}, but the model expects {list(spec.own_shape)}"
            )
        rows = int(given["rows"])
        if "file" in given:
            row = self._file(str(given["file"]), spec.name, datatype, element_count(shape) // rows)
            return Tensor(spec.name, datatype, shape, row if rows == 1 else row * rows)
        return Tensor(spec.name, datatype, shape, _made_up(datatype, shape, is_random="random" in given))

    def _file(self, name: str, input_name: str, datatype: str, count: int) -> bytes:
        """The elements of one row, as they are in a file.

        Raises:
            InvalidArgument: If it can't be read or has too few.
        """
        itemsize = DATATYPES[datatype].itemsize
        data = _read(
            os.path.join(self.folder, FOLDER, name), input_name, count * itemsize if itemsize else MAX_FILE_BYTES
        )
        if not itemsize:
            if len(unpack_bytes(data, count)) != count:
                raise InvalidArgument(f"the file of input '{input_name}' has not the {count} strings of its shape")
        elif len(data) < count * itemsize:
            raise InvalidArgument(
                f"warmup setting expects {count * itemsize} bytes for input '{input_name}', "
                f"but its file only has {len(data)} bytes"
            )
        return data


def _read(path: str, input_name: str, limit_bytes: int) -> bytes:
    try:
        # What is no file, such as a pipe, must not keep the load waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArgument(f"the file of input '{input_name}' is no file")
            return file.read(limit_bytes)
    except OSError as error:
        raise InvalidArgument(f"the file of input '{input_name}' can't be read: {error.strerror}") from None


def _made_up(datatype: str, shape: tuple[int, ...], *, is_random: bool) -> Buffer:
    dtype = DATATYPES[datatype].dtype
    if dtype is None:
        return bytes(4 * element_count(shape))  # each string is empty, whatever is asked for, as with Triton
    if not is_random:
        array: Array = np.zeros(shape, dtype)
    else:
        from roost.runtimes.proof.samples import random_array  # numpy.random takes 3 MB in each worker

        array = random_array(np.random.default_rng(_SEED), datatype, shape, _INTEGERS_BELOW)
    return array.reshape(-1).view(np.uint8).data


def _give_up(model: LoadedModel, run: RunHandle) -> None:
    run.cancel()
    if isinstance(model, HasProcesses):  # a load that takes too long costs no other model anything
        model.give_up()


def _drop(outputs: Sequence[Tensor], sequence: int, times: StepTimes) -> None:
    """Takes a response of a decoupled model that nobody has asked for."""
