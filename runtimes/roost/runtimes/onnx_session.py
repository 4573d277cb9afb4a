"""ONNX Runtime's sessions: how they are configured, created from a path, and why that failed."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError
from roost.runtimes.failures import without_paths, without_source
from roost.runtimes.protocol import LoadSpec, NoGpu

FATAL = 4
"""The severity from which ONNX Runtime logs: it would print what it raises as well, and with paths."""

PREPARED_ENTRY = "model.onnx"
"""The file of a prepared copy that is loaded."""

# ORT's own exceptions share no base class but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
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
_PREPARED_OPTIONS = {
    "session.optimized_model_external_initializers_file_name": "model.data",
    # Each external weight is a mapping of its own, and smaller ones are not worth the page that it begins.
    "session.optimized_model_external_initializers_min_size_in_bytes": "16384",
    "session.save_external_prepacked_constant_initializers": "1",
}
Provider: TypeAlias = str | tuple[str, dict[str, str]]

CPU_PROVIDERS: Sequence[Provider] = ("CPUExecutionProvider",)
_CUDA = "CUDAExecutionProvider"
_GPU_PROVIDERS: Sequence[Provider] = (
    # An arena that grows in powers of two would take up to twice what its session needs.
    (_CUDA, {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}),
    *CPU_PROVIDERS,
)
# y = Identity(x), FP32 [1].
_SMALLEST_MODEL = (
    b'\x08\x08:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05first'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x02\x10\r"
)
_CODE_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NO_MEMORY = re.compile(
    r"bad_alloc|failed to allocate|out of memory|cannot allocate memory|system error number 12\b", re.IGNORECASE
)
_NO_DESCRIPTORS = re.compile(r"too many open files|system error number 2[34]\b", re.IGNORECASE)


def session_options(threads: int, asked: Mapping[str, str]) -> ort.SessionOptions:
    """Options for one of very many sessions in a process.

    Args:
        threads: How many threads a run may use.
        asked: Options of the model's configuration.
    """
    options = ort.SessionOptions()
    # 0 is ONNX Runtime's word for a default, and ours is one share of the CPUs for each worker.
    limit = max(threads, os.cpu_count() or 1)
    options.intra_op_num_threads = min(int(asked.get("intra_op_thread_count", 0)), limit) or threads
    options.inter_op_num_threads = min(int(asked.get("inter_op_thread_count", 0)), limit) or 1
    if asked.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    if "graph_level" in asked:
        options.graph_optimization_level = _GRAPH_LEVELS[asked["graph_level"]]
    options.log_severity_level = FATAL
    # An arena keeps the largest batch's memory for ever, in every session.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def set_up() -> None:
    """Creates a session and drops it: the first one of a process sets up what all of them share, which takes 4 ms."""
    ort.InferenceSession(_SMALLEST_MODEL, session_options(1, {}), providers=list(CPU_PROVIDERS), enable_fallback=0)


def gpu_providers() -> Sequence[Provider]:
    """The providers of sessions on the only GPU that the process sees; what all of these share is set up then.

    Raises:
        NoGpu: If ONNX Runtime can't use it: it would make sessions on the CPU instead, and say so only in its log.
    """
    if _CUDA not in ort.get_available_providers():
        raise NoGpu("this ONNX Runtime was built without CUDA: install onnxruntime-gpu instead")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    try:
        options = session_options(1, {})
        session = ort.InferenceSession(_SMALLEST_MODEL, options, providers=list(_GPU_PROVIDERS), enable_fallback=0)
    except ORT_ERRORS as error:
        raise NoGpu(reason_of(error, "")) from None
    if session.get_providers()[0] != _CUDA:
        raise NoGpu("ONNX Runtime can't load its CUDA provider: are the libraries of CUDA and cuDNN there?")
    return _GPU_PROVIDERS


def to_be_prepared(options: ort.SessionOptions, folder: str) -> None:
    """Has the session's creation save a copy of the model: the optimised graph, and its packed weights to be mapped."""
    options.optimized_model_filepath = os.path.join(folder, PREPARED_ENTRY)
    for key, value in _PREPARED_OPTIONS.items():
        options.add_session_config_entry(key, value)


def create_session(
    spec: LoadSpec, options: ort.SessionOptions, providers: Sequence[Provider] = CPU_PROVIDERS
) -> ort.InferenceSession:
    """Creates a session from the model's path, which, unlike creating one from bytes, lets other threads run.

    Parsing and optimising leave several times the model's size behind; whoever calls this gives that back.

    Raises:
        RoostError: See ``Runtime.load``.
    """
    spec.cancellation.on_cancel(lambda: options.set_load_cancellation_flag(True))
    try:
        return ort.InferenceSession(spec.path, options, providers=list(providers), enable_fallback=0)
    except ort_errors.ModelLoadCanceled:
        raise Cancelled("the load was cancelled") from None
    except ORT_ERRORS as error:
        raise _load_error(error, spec) from error


def is_no_memory(reason: str) -> bool:
    """Whether a failure's text says that memory is short."""
    return bool(_NO_MEMORY.search(reason))


def reason_of(error: Exception, root: str) -> str:
    """What ONNX Runtime says of a failure, without its own code and source, and without paths."""
    return without_paths(_CODE_PREFIX.sub("", without_source(str(error))), root)


def _load_error(error: Exception, spec: LoadSpec) -> RoostError:
    reason = reason_of(error, spec.root)
    if is_no_memory(reason):
        return ResourceExhausted("not enough memory to load the model")
    if _NO_DESCRIPTORS.search(reason):
        return ResourceExhausted("not enough file descriptors to load the model")
    if isinstance(error, _ARTIFACT_ERRORS):
        return InvalidArgument(reason)
    return Internal(f"the model can't be loaded: {reason}")
