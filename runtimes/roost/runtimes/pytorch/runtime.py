"""The adapter: loads PyTorch's programs and runs them on the memory that requests are in."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from roost.core.errors import Cancelled, FailedPrecondition, Internal, InvalidArgument
from roost.core.tensors import Tensor
from roost.runtimes.archive_limits import check_sizes
from roost.runtimes.protocol import LoadSpec, RunHandle
from roost.runtimes.pytorch.archives import Archive, Kind, kind_of, no_archive
from roost.runtimes.pytorch.compiled import load_compiled
from roost.runtimes.pytorch.devices import CPU, find_gpu, moved, wait_for
from roost.runtimes.pytorch.exported import check_samples, load_export, load_old_export
from roost.runtimes.pytorch.failures import TORCH_ERRORS, load_error, run_error
from roost.runtimes.pytorch.gate import check_export, check_script
from roost.runtimes.pytorch.naming import Declared, Interface, interface_of
from roost.runtimes.pytorch.program import Program
from roost.runtimes.pytorch.scripted import load_script
from roost.runtimes.pytorch.storages import check_tensors
from roost.runtimes.pytorch.values import leaves, to_output, to_value

_threads = threading.local()


class PytorchRuntime:
    """Loads TorchScript and exported programs.

    Args:
        device: Where they go.
    """

    name = "pytorch"

    def __init__(self, device: torch.device = CPU) -> None:
        # Workers are forked, and PyTorch begins with the same seed everywhere: each would draw the same numbers.
        torch.default_generator.seed()
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)
        # Inputs are in memory that nobody may write to, and programs that would get a copy.
        warnings.filterwarnings("ignore", message="The given (?:NumPy array|buffer) is not writable")
        self._device = device

    def use_gpu(self) -> None:
        """See ``GpuRuntime``.

        Raises:
            NoGpu: If PyTorch has none.
        """
        self._device = find_gpu()

    def load(self, spec: LoadSpec) -> PytorchModel:
        """Loads a program, after a look at what it is made of unless it may bring code.

        Raises:
            InvalidArgument: If the artifact is broken or no program, or does not fit its configuration.
            FailedPrecondition: If it would run code that is not allowed.
            ResourceExhausted: If memory is short.
            Cancelled: If the load was cancelled.
        """
        use_threads(spec.threads)
        declared = Declared.of(spec.options)
        try:
            program = _load(spec, self._device)
            return PytorchModel(
                program, interface_of(declared, program.arguments, program.results, program.has_keys), spec
            )
        except (MemoryError, *TORCH_ERRORS) as error:
            raise load_error(error, spec.root) from error


def use_threads(count: int) -> None:
    """Has PyTorch use so many threads for what the calling thread computes from now on, which it keeps for each."""
    if getattr(_threads, "count", 0) != count:
        torch.get_num_threads()  # a thread that asks for the first time gets what was set last in any
        torch.set_num_threads(count)
        _threads.count = count


def _load(spec: LoadSpec, device: torch.device) -> Program:
    archive = _archive(spec.path)
    kind = kind_of(archive)
    if not spec.may_bring_code:
        if kind in (Kind.COMPILED, Kind.OLD_EXPORT):
            raise FailedPrecondition(f"a model of {kind.value} may run any code: it needs --allow-code")
        if kind is Kind.SCRIPT:
            check_script(archive)
            check_tensors(archive)
        else:
            check_export(archive)
            check_samples(archive)
    if spec.cancellation.cancelled:
        raise Cancelled("the load was cancelled")
    match kind:
        case Kind.SCRIPT:
            return load_script(spec.path, device)
        case Kind.COMPILED:
            return load_compiled(spec.path)
        case Kind.OLD_EXPORT:
            return load_old_export(spec.path, device)
        case _:
            return load_export(spec.path, device)


def _archive(path: str) -> Archive:
    try:
        archive = torch._C.PyTorchFileReader(path)
    except RuntimeError:
        try:
            with open(path, "rb") as file:
                start = file.read(16)
        except OSError as error:
            raise InvalidArgument(f"the file can't be read: {error.strerror}") from None
        raise no_archive(start) from None
    check_sizes(map(archive.get_record_size, archive.get_all_records()), os.path.getsize(path))
    return archive


class PytorchModel:
    """A program in memory.

    Args:
        program: The program.
        interface: The names of its tensors.
        spec: The load that has made it.
    """

    def __init__(self, program: Program, interface: Interface, spec: LoadSpec) -> None:
        self.signature = interface.signature
        self._program: Program | None = program
        self._arguments = {name: (at, program.arguments[at]) for name, at in interface.arguments.items()}
        self._needed = [name for name, (_, argument) in self._arguments.items() if not argument.optional]
        self._results = interface.results
        self._datatypes = {spec.name: spec.datatype for spec in interface.signature.outputs}
        self._is_dynamic = any(dim < 0 for spec in interface.signature.inputs for dim in spec.shape)
        self._is_kept = program.keeps_state
        self._device = program.device if program.device != CPU else None
        self._root = spec.root
        self._threads = spec.threads
        self._turn = threading.Lock() if program.keeps_state else contextlib.nullcontext()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Runs the program on the inputs' own memory; runs of one that keeps state wait for each other.

        Raises:
            InvalidArgument: If names, shapes or contents of the inputs are to blame.
            ResourceExhausted: If memory is short.
            Cancelled: If the run was cancelled before it began.
            Internal: If the model fails for another reason, or gives something else than it says.
        """
        names = outputs or list(self._results)
        self._check_names(inputs, outputs)
        values = {}
        for tensor in inputs:
            position, argument = self._arguments[tensor.name]
            values[position] = to_value(tensor, argument)
            if self._device is not None:
                values[position] = moved(values[position], self._device)
        program = self._program
        assert program is not None
        with self._turn, torch.inference_mode():
            if run.cancelled:  # while it waited for its turn
                raise Cancelled("the run was cancelled")
            use_threads(self._threads)
            run.begin_infer()
            try:
                result = program.call(values)
                if self._device is not None:
                    wait_for(self._device)
            except TORCH_ERRORS as error:
                raise run_error(error, self._root, is_dynamic=self._is_dynamic) from error
            run.end_infer()
            return self._answer(result, names, run)

    def close(self) -> None:
        """Drops the program."""
        program, self._program = self._program, None
        if program is not None:
            program.release()

    def _check_names(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> None:
        given = {tensor.name for tensor in inputs}
        for name in self._needed:
            if name not in given:
                raise InvalidArgument(f"input '{name}' is missing")
        for name in given:
            if name not in self._arguments:
                raise InvalidArgument(f"unexpected input '{name}'")
        for name in outputs:
            if name not in self._results:
                raise InvalidArgument(f"unexpected output '{name}'")

    def _answer(self, result: Any, names: Sequence[str], run: RunHandle) -> list[Tensor]:
        found: Any = result if isinstance(result, dict) else list(leaves(result))
        answer = []
        for name in names:
            try:
                value = found[self._results[name]]
            except (LookupError, TypeError):
                has = ", ".join(map(str, found)) if isinstance(found, dict) else f"{len(found)} results"
                raise Internal(f"the model gave no output '{name}'; it gave {has}") from None
            place = run.places.get(name)
            answer.append(to_output(name, self._datatypes[name], value, place, is_kept=self._is_kept))
        return answer
