"""ONNX Runtime: sessions on the CPU, loaded from paths, one per instance."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError, Unimplemented
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, to_array
from roost.runtimes.failures import without_paths, without_source
from roost.runtimes.memory import trim_memory
from roost.runtimes.protocol import LoadSpec, RunHandle

_FATAL = 4  # ORT would print what it raises as well, and with paths
_BFLOAT16 = 16  # TensorProto.DataType
_BIND_BYTES = 1 << 20
_PROVIDERS = ["CPUExecutionProvider"]

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

# ORT's own exceptions share no base class but Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
    ort_errors.NoModel,
    RuntimeError,
    ValueError,
)
_ARTIFACT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
)
_GRAPH_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_COPY = "model.onnx"
_COPY_OPTIONS = {
    "session.optimized_model_external_initializers_file_name": "model.data",
    # Each external weight is a mapping of its own, and smaller ones are not worth the page that it begins.
    "session.optimized_model_external_initializers_min_size_in_bytes": "16384",
    "session.save_external_prepacked_constant_initializers": "1",
}
_CODE_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NO_MEMORY = re.compile(r"bad_alloc|failed to allocate|out of memory", re.IGNORECASE)
_SHAPES = re.compile(
    r"broadcast|dimension|shape|rank|\baxis\b|out of (data )?bounds|cannot be reshaped|integer overflow", re.IGNORECASE
)


class OnnxRuntime:
    """Loads ONNX models into ONNX Runtime sessions."""

    name = "onnxruntime"

    def __init__(self) -> None:
        ort.set_default_logger_severity(_FATAL)

    def load(self, spec: LoadSpec) -> OnnxModel:
        """Creates a session from the model's path, which, unlike creating one from bytes, lets other threads run.

        Raises:
            InvalidArgument: If the model is broken, or its tensors are none that the protocol can carry.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
            Unimplemented: If it mixes BF16 with strings.
        """
        options = _session_options(spec.threads, spec.options)
        if spec.prepared:  # what there was to optimise is done
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return OnnxModel(self._session(spec, options), spec.root)

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        """Saves the optimised graph, and beside it the weights, packed as kernels want them, to be mapped into memory.

        Raises:
            RoostError: See ``load``.
        """
        options = _session_options(spec.threads, spec.options)
        options.optimized_model_filepath = os.path.join(folder, _COPY)
        for key, value in _COPY_OPTIONS.items():
            options.add_session_config_entry(key, value)
        self._session(spec, options)
        return _COPY

    def _session(self, spec: LoadSpec, options: ort.SessionOptions) -> ort.InferenceSession:
        spec.cancellation.on_cancel(lambda: options.set_load_cancellation_flag(True))
        try:
            return ort.InferenceSession(spec.path, options, providers=_PROVIDERS, enable_fallback=0)
        except ort_errors.ModelLoadCanceled:
            raise Cancelled("the load was cancelled") from None
        except _ORT_ERRORS as error:
            raise _load_error(error, spec) from error
        finally:
            # Parsing and optimising leave several times the model's size behind.
            trim_memory()


class OnnxModel:
    """A session and what it takes and gives.

    Args:
        session: A session, used by several threads at once.
        root: The model's folder, which error texts must not show.

    Raises:
        InvalidArgument: If an input or output is no tensor or of a datatype that the protocol lacks.
        Unimplemented: If it mixes BF16 with strings.
    """

    def __init__(self, session: ort.InferenceSession, root: str) -> None:
        self.signature = Signature(
            tuple(_spec_of(arg, "input") for arg in session.get_inputs()),
            tuple(_spec_of(arg, "output") for arg in session.get_outputs()),
        )
        self._session: ort.InferenceSession | None = session
        # What the session wraps takes the same and, without checks of what is checked here, 2 µs less.
        self._run: Callable[..., list[npt.NDArray[Any]]] | None = getattr(session, "_sess", session).run
        self._root = root
        self._input_names = frozenset(spec.name for spec in self.signature.inputs)
        self._output_names = [spec.name for spec in self.signature.outputs]
        self._datatypes = {spec.name: spec.datatype for spec in self.signature.outputs}
        self._is_dynamic = any(dim < 0 for spec in self.signature.inputs for dim in spec.shape)
        datatypes = {spec.datatype for spec in (*self.signature.inputs, *self.signature.outputs)}
        if {"BF16", "BYTES"} <= datatypes:
            raise Unimplemented("a model with both BF16 and string tensors can't be served")
        self._compute = self._compute_values if "BF16" in datatypes else self._compute_arrays
        self._can_bind = "BF16" not in datatypes

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
        options.log_severity_level = _FATAL
        run.on_cancel(lambda: setattr(options, "terminate", True))
        run.begin_infer()
        bound = self._run_in_place(names, feed, options, run) if run.places else None
        if bound is not None:
            return bound
        try:
            results = self._compute(names, feed, options, inputs)
        except _ORT_ERRORS as error:
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
        except _ORT_ERRORS:
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
        reason = _reason(error, self._root)
        if _NO_MEMORY.search(reason):
            return ResourceExhausted("not enough memory to run the model")
        # A kernel that stumbles over shapes blames the request only where the request chooses shapes.
        is_input = isinstance(error, ort_errors.InvalidArgument) or (self._is_dynamic and bool(_SHAPES.search(reason)))
        return InvalidArgument(reason) if is_input else Internal(f"the model failed: {reason}")


def _session_options(threads: int, asked: Mapping[str, str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # 0 is ONNX Runtime's word for a default, and ours is one share of the CPUs for each worker.
    limit = max(threads, os.cpu_count() or 1)
    options.intra_op_num_threads = min(int(asked.get("intra_op_thread_count", 0)), limit) or threads
    options.inter_op_num_threads = min(int(asked.get("inter_op_thread_count", 0)), limit) or 1
    if asked.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    if "graph_level" in asked:
        options.graph_optimization_level = _GRAPH_LEVELS[asked["graph_level"]]
    options.log_severity_level = _FATAL
    # An arena keeps the largest batch's memory for ever, in every session.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _spec_of(arg: ort.NodeArg, what: str) -> TensorSpec:
    if arg.type not in _DATATYPES:
        hint = " (scikit-learn models: convert them with the option zipmap=False)" if "map(" in arg.type else ""
        raise InvalidArgument(f"{what} '{arg.name}' is a {arg.type}, which can't be served{hint}")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in arg.shape)
    return TensorSpec(arg.name, _DATATYPES[arg.type], shape)


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


def _load_error(error: Exception, spec: LoadSpec) -> RoostError:
    reason = _reason(error, spec.root)
    if _NO_MEMORY.search(reason):
        return ResourceExhausted("not enough memory to load the model")
    if isinstance(error, _ARTIFACT_ERRORS):
        return InvalidArgument(reason)
    return Internal(f"the model can't be loaded: {reason}")


def _reason(error: Exception, root: str) -> str:
    return without_paths(_CODE_PREFIX.sub("", without_source(str(error))), root)
