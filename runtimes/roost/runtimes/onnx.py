"""ONNX Runtime: sessions, loaded from paths, one per instance."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError, Unimplemented
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, to_array
from roost.runtimes.buffers import Buffers
from roost.runtimes.onnx_session import (
    CPU_PROVIDERS,
    FATAL,
    ORT_ERRORS,
    PREPARED_ENTRY,
    create_session,
    gpu_providers,
    is_no_memory,
    reason_of,
    session_options,
    set_up,
    to_be_prepared,
)
from roost.runtimes.protocol import LoadSpec, RunHandle

_BFLOAT16 = 16  # TensorProto.DataType
_BIND_BYTES = 1 << 20
_KNOWN_INTERFACES = 256

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}

_SHAPES = re.compile(
    r"broadcast|dimension|shape|rank|\baxis\b|out of (data )?bounds|cannot be reshaped|integer overflow", re.IGNORECASE
)


class OnnxRuntime:
    """Loads ONNX models into ONNX Runtime sessions."""

    name = "onnxruntime"

    def __init__(self) -> None:
        ort.set_default_logger_severity(FATAL)
        # Workers are forked: with the seed that all of them inherit, each would draw the same random numbers.
        ort.set_seed(int.from_bytes(os.urandom(7), "little"))
        set_up()
        self._buffers = Buffers()
        self._providers = CPU_PROVIDERS

    def use_gpu(self) -> None:
        """See ``GpuRuntime``.

        Raises:
            NoGpu: If ONNX Runtime has none.
        """
        self._providers = gpu_providers()

    def load(self, spec: LoadSpec) -> OnnxModel:
        """Creates a session from the model's path, which, unlike creating one from bytes, lets other threads run.

        Raises:
            InvalidArgument: If the model is broken, or its tensors are none that the protocol can carry.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
            Unimplemented: If it mixes BF16 with strings.
        """
        options = session_options(spec.threads, spec.options)
        if not spec.prepared:
            return OnnxModel(create_session(spec, options, self._providers), spec.root)
        # What there was to optimise is done. Weights are packed only to see that it would give what the copy has.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        with self._buffers.reused():
            session = create_session(spec, options)
        return OnnxModel(session, spec.root)

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        """Saves the optimised graph, and beside it the weights, packed as kernels want them, to be mapped into memory.

        Raises:
            RoostError: See ``load``.
        """
        options = session_options(spec.threads, spec.options)
        to_be_prepared(options, folder)
        create_session(spec, options)
        return PREPARED_ENTRY


@dataclass(frozen=True, slots=True)
class _Interface:
    """What follows from a signature."""

    signature: Signature
    input_names: frozenset[str]
    output_names: list[str]
    datatypes: Mapping[str, str]
    is_dynamic: bool
    has_bf16: bool


@functools.lru_cache(_KNOWN_INTERFACES)
def _interface_of(signature: Signature) -> _Interface:
    """Models with equal signatures share one: there may be thousands of them."""
    datatypes = {spec.datatype for spec in (*signature.inputs, *signature.outputs)}
    if {"BF16", "BYTES"} <= datatypes:
        raise Unimplemented("a model with both BF16 and string tensors can't be served")
    return _Interface(
        signature,
        frozenset(spec.name for spec in signature.inputs),
        [spec.name for spec in signature.outputs],
        {spec.name: spec.datatype for spec in signature.outputs},
        any(dim < 0 for spec in signature.inputs for dim in spec.shape),
        "BF16" in datatypes,
    )


class OnnxModel:
    """A session and what it takes and gives.

    Args:
        session: A session, used by several threads at once.
        root: The model's folder, which error texts must not show.

    Raises:
        InvalidArgument: If an input or output is no tensor or of a datatype that the protocol lacks.
        Unimplemented: If it mixes BF16 with strings.
    """

    __slots__ = (
        "_can_bind",
        "_datatypes",
        "_input_names",
        "_is_dynamic",
        "_output_names",
        "_root",
        "_run",
        "_session",
        "signature",
    )

    def __init__(self, session: ort.InferenceSession, root: str) -> None:
        interface = _interface_of(
            Signature(
                tuple(_spec_of(arg, "input") for arg in session.get_inputs()),
                tuple(_spec_of(arg, "output") for arg in session.get_outputs()),
            )
        )
        self.signature = interface.signature
        self._session: ort.InferenceSession | None = session
        # What the session wraps takes the same and, without checks of what is checked here, 2 µs less.
        self._run: Callable[..., list[npt.NDArray[Any]]] | None = getattr(session, "_sess", session).run
        self._root = root
        self._input_names = interface.input_names
        self._output_names = interface.output_names
        self._datatypes = interface.datatypes
        self._is_dynamic = interface.is_dynamic
        self._can_bind = not interface.has_bf16

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Runs the session on the inputs' own memory and computes the outputs asked for.

        Raises:
            InvalidArgument: If names, shapes or contents of the inputs are to blame.
            ResourceExhausted: If memory is short.
            Cancelled: If the run was cancelled.
            Internal: If the model fails for another reason.
        """
        names = list(outputs) if outputs else self._output_names
        feed = {tensor.name: to_array(tensor) if tensor.datatype != "BYTES" else _to_texts(tensor) for tensor in inputs}
        self._check_names(feed, outputs)
        options = ort.RunOptions()
        options.log_severity_level = FATAL
        run.on_cancel(lambda: setattr(options, "terminate", True))
        run.begin_infer()
        bound = self._run_in_place(names, feed, options, run) if run.places else None
        if bound is not None:
            return bound
        try:
            compute = self._compute_arrays if self._can_bind else self._compute_values
            results = compute(names, feed, options, inputs)
        except ORT_ERRORS as error:
            if run.cancelled:
                raise Cancelled("the run was cancelled") from None
            raise self._run_error(error) from error
        run.end_infer()
        datatypes = self._datatypes
        return [from_array(name, datatypes[name], array) for name, array in zip(names, results, strict=True)]

    def close(self) -> None:
        """Drops the session."""
        self._session = self._run = None

    def _run_in_place(
        self, names: list[str], feed: dict[str, npt.NDArray[Any]], options: ort.RunOptions, run: RunHandle
    ) -> list[Tensor] | None:
        """Has the model write large outputs where they are wanted; None if that is not worth it, or does not work.

        Binding costs as much as copying ``_BIND_BYTES``. It fails if an output is not as large as its place.
        """
        if not self._can_bind or sum(len(place.memory) for place in run.places.values()) < _BIND_BYTES:
            return None
        assert self._session is not None
        addresses = {}
        try:
            binding = self._session.io_binding()
            for name, array in feed.items():
                binding.bind_cpu_input(name, array)
            for name in names:
                place = run.places.get(name)
                if place is None or place.datatype != self._datatypes[name]:
                    binding.bind_output(name)
                    continue
                memory = np.frombuffer(place.memory, DATATYPES[place.datatype].dtype)
                addresses[name] = memory.ctypes.data
                binding.bind_output(name, "cpu", 0, memory.dtype.type, place.shape, addresses[name])
            self._session.run_with_iobinding(binding, options)
        except ORT_ERRORS:
            if run.cancelled:
                raise Cancelled("the run was cancelled") from None
            return None  # run without places, it fails for the right reason
        run.end_infer()
        return [
            Tensor(name, self._datatypes[name], run.places[name].shape, run.places[name].memory)
            if value.data_ptr() == addresses.get(name)
            else from_array(name, self._datatypes[name], value.numpy())
            for name, value in zip(names, binding.get_outputs(), strict=True)
        ]

    def _compute_arrays(
        self, names: list[str], feed: dict[str, npt.NDArray[Any]], options: ort.RunOptions, _: Sequence[Tensor]
    ) -> list[npt.NDArray[Any]]:
        assert self._run is not None
        return self._run(names, feed, options)

    def _compute_values(
        self, names: list[str], feed: dict[str, npt.NDArray[Any]], options: ort.RunOptions, inputs: Sequence[Tensor]
    ) -> list[npt.NDArray[Any]]:
        """Runs with OrtValues, which can say that two bytes are a BF16; numpy has no such type."""
        assert self._session is not None
        values = {
            tensor.name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(feed[tensor.name], _BFLOAT16)
            if tensor.datatype == "BF16"
            else ort.OrtValue.ortvalue_from_numpy(feed[tensor.name])
            for tensor in inputs
        }
        return [_array_of(value) for value in self._session.run_with_ort_values(names, values, options)]

    def _check_names(self, given: Mapping[str, object], outputs: Sequence[str]) -> None:
        if given.keys() != self._input_names:
            for name in sorted(self._input_names - given.keys()):
                raise InvalidArgument(f"input '{name}' is missing")
            raise InvalidArgument(f"unexpected input '{min(given.keys() - self._input_names)}'")
        for name in outputs:
            if name not in self._datatypes:
                raise InvalidArgument(f"unexpected output '{name}'")

    def _run_error(self, error: Exception) -> RoostError:
        reason = reason_of(error, self._root)
        if is_no_memory(reason):
            return ResourceExhausted("not enough memory to run the model")
        # A kernel that stumbles over shapes blames the request only where the request chooses shapes.
        is_input = isinstance(error, ort_errors.InvalidArgument) or (self._is_dynamic and bool(_SHAPES.search(reason)))
        return InvalidArgument(reason) if is_input else Internal(f"the model failed: {reason}")


def _spec_of(arg: ort.NodeArg, what: str) -> TensorSpec:
    try:
        name, dims = arg.name, arg.shape
    except UnicodeDecodeError:
        raise InvalidArgument(f"an {what} of the model has names that are not UTF-8") from None
    if arg.type not in _DATATYPES:
        hint = " (scikit-learn models: convert them with the option zipmap=False)" if "map(" in arg.type else ""
        raise InvalidArgument(f"{what} '{name}' is a {arg.type}, which can't be served{hint}")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in dims)
    return TensorSpec(name, _DATATYPES[arg.type], shape)


def _to_texts(tensor: Tensor) -> npt.NDArray[Any]:
    array = to_array(tensor)
    try:
        texts = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidArgument(f"input '{tensor.name}' has an element that is not UTF-8") from None
    decoded = np.empty(len(texts), dtype=object)
    decoded[:] = texts
    return decoded.reshape(array.shape)


def _array_of(value: ort.OrtValue) -> npt.NDArray[Any]:
    if value.element_type() != _BFLOAT16:
        array: npt.NDArray[Any] = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if 0 not in value.shape() else b""
    return np.frombuffer(data, dtype="<u2").reshape(value.shape())
