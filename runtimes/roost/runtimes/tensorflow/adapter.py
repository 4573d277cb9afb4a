"""TensorFlow: SavedModels, one session per instance, loaded and run through the C interface."""

from __future__ import annotations

import ctypes
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, RoostError, Unimplemented
from roost.core.names import shorten
from roost.core.tensors import Signature, Tensor, TensorSpec
from roost.runtimes.failures import shortened, without_paths
from roost.runtimes.prepared.forms import KERAS_SUFFIX
from roost.runtimes.protocol import LoadSpec, NoGpu, RunHandle
from roost.runtimes.tensorflow.keras_export import export_keras
from roost.runtimes.tensorflow.library import Library, Session, TfError, TfOutput
from roost.runtimes.tensorflow.operations import unsafe_operations
from roost.runtimes.tensorflow.saved_model import SAVED_MODEL_FILE, SignatureDef, TensorInfo, read_meta_graph
from roost.runtimes.tensorflow.values import DATATYPES, OTHER_DATATYPES, Values

SIGNATURE_OPTION = "TF_SIGNATURE_DEF"
TAG_OPTION = "TF_GRAPH_TAG"

_DECLARED = ("roost.inputs", "roost.outputs")
_NEEDS_CODE = "models that bring code are loaded only with --allow-code"
_MAX_FETCHES = 8
"""The library keeps what it has prepared for each set of outputs as long as the session lives."""

_RESOURCE_EXHAUSTED = 8
_ARTIFACT_CODES = frozenset({3, 5, 9, 11, 12, 15})
"""INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, DATA_LOSS."""

_INPUT_CODES = frozenset({3, 11})
_BINARY = re.compile(r" in binary running on .*", re.DOTALL)  # and the name of this machine
_FUNCTION_NODE = re.compile(r"\{\{function_node [^}]*\}\}\s*")
_NODE = re.compile(r"\{\{node ([^}]*)\}\}")


class TensorflowRuntime:
    """Loads SavedModels into sessions of TensorFlow's library, and ``.keras`` files by way of a SavedModel.

    Raises:
        ImportError: If the library is not installed.
    """

    name = "tensorflow"

    def __init__(self) -> None:
        self._library = Library()
        self._values = Values(self._library)
        self._on_gpu = False

    def use_gpu(self) -> None:
        """See ``GpuRuntime``.

        Raises:
            NoGpu: If TensorFlow has none.
        """
        try:
            devices = self._library.devices()
        except TfError as error:
            raise NoGpu(_reason(error, "")) from None
        if "GPU" not in devices:
            raise NoGpu("TensorFlow finds none: is this its build for GPUs, and are the libraries of CUDA there?")
        self._on_gpu = True

    def load(self, spec: LoadSpec) -> TensorflowModel:
        """Creates a session from the model's folder. It can't be interrupted; a ``.keras`` file's export can.

        Raises:
            InvalidArgument: If the model is broken, needs code that is not allowed, or has tensors that the protocol
                can't carry.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
            Internal: If it fails for another reason.
        """
        if not spec.path.endswith(KERAS_SUFFIX):
            return self._load(spec.path if os.path.isdir(spec.path) else os.path.dirname(spec.path), spec)
        with tempfile.TemporaryDirectory(prefix="roost-keras-") as folder:
            _export(spec, folder)
            return self._load(folder, spec)

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        """Exports a ``.keras`` file, as each of its loads does.

        Raises:
            Unimplemented: If it is a SavedModel, of which no form loads faster.
            InvalidArgument: If it can't be exported, or may not be, since that runs its code.
        """
        if not spec.path.endswith(KERAS_SUFFIX):
            raise Unimplemented("a SavedModel is loaded as it is")
        _export(spec, folder)
        return SAVED_MODEL_FILE

    def _load(self, folder: str, spec: LoadSpec) -> TensorflowModel:
        meta_graph = read_meta_graph(folder, spec.options.get(TAG_OPTION, ""))
        signature = meta_graph.signature(spec.options.get(SIGNATURE_OPTION, ""))
        interface = interface_of(signature, spec.options)
        if not spec.may_bring_code:
            unsafe = unsafe_operations(meta_graph, signature)
            if unsafe:
                raise InvalidArgument(
                    f"the model can read or write files or run code ({', '.join(unsafe)}): {_NEEDS_CODE}"
                )
        if spec.cancellation.cancelled:
            raise Cancelled("the load was cancelled")
        try:
            session = self._library.load(folder, sorted(meta_graph.tags), spec.threads, on_gpu=self._on_gpu)
        except TfError as error:
            raise _load_error(error, spec.root) from None
        try:
            return TensorflowModel(session, self._values, interface, signature, spec.root)
        except KeyError as error:
            session.close()
            raise InvalidArgument(f"the signature names a tensor that the graph does not have: {error}") from None


def _export(spec: LoadSpec, folder: str) -> None:
    if not spec.may_bring_code:
        raise InvalidArgument(f"a .keras file is made to run code when it is read: {_NEEDS_CODE}")
    export_keras(spec.path, folder, spec.cancellation)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A set of outputs: their names, and where in the graph they are."""

    names: tuple[str, ...]
    outputs: Any


class TensorflowModel:
    """A session and what the signature says of it.

    Args:
        session: The session, which this owns.
        values: Makes and reads tensors.
        interface: What clients see.
        signature: Where in the graph that is.
        root: The model's folder, which error texts must not show.

    Raises:
        KeyError: If a tensor is not in the graph.
    """

    def __init__(
        self, session: Session, values: Values, interface: Signature, signature: SignatureDef, root: str
    ) -> None:
        self.signature = interface
        self._session: Session | None = session
        self._values = values
        self._root = root
        self._inputs = _outputs_of(session, [signature.inputs[spec.name] for spec in interface.inputs])
        self._input_datatypes = {spec.name: spec.datatype for spec in interface.inputs}
        self._output_datatypes = {spec.name: spec.datatype for spec in interface.outputs}
        self._outputs = {spec.name: session.output(signature.outputs[spec.name].tensor) for spec in interface.outputs}
        self._all = _Fetch(tuple(self._outputs), (TfOutput * len(self._outputs))(*self._outputs.values()))
        self._fetches = {self._all.names: self._all}

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Runs the graph as far as the outputs need it; it can't be interrupted.

        Raises:
            InvalidArgument: If names, datatypes, shapes or contents of the inputs are to blame.
            ResourceExhausted: If memory is short.
            Internal: If the model fails for another reason.
        """
        given = {tensor.name: tensor for tensor in inputs}
        self._check(given, outputs)
        fetch = self._fetch(outputs)
        made = (ctypes.c_void_p * len(self._inputs))()
        assert self._session is not None
        try:
            for position, name in enumerate(self._input_datatypes):
                made[position] = self._values.make(given[name])
            run.begin_infer()
            results = self._session.run(self._inputs, made, fetch.outputs)
            run.end_infer()
        except TfError as error:
            raise self._run_error(error) from None
        finally:
            self._values.free(made)
        try:
            return [
                self._values.read(name, self._output_datatypes[name], value, run.places.get(name))
                for name, value in zip(fetch.names, results, strict=True)
                if not outputs or name in outputs
            ]
        finally:
            self._values.free(results)

    def close(self) -> None:
        """Closes the session."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _check(self, given: Mapping[str, Tensor], outputs: Sequence[str]) -> None:
        datatypes = self._input_datatypes
        if given.keys() != datatypes.keys():
            for name in datatypes.keys() - given.keys():
                raise InvalidArgument(f"input '{name}' is missing")
            raise InvalidArgument(f"unexpected input '{min(given.keys() - datatypes.keys())}'")
        for name, tensor in given.items():
            if tensor.datatype != datatypes[name]:
                raise InvalidArgument(f"input '{name}' is {tensor.datatype}, the model takes {datatypes[name]}")
        for name in outputs:
            if name not in self._output_datatypes:
                raise InvalidArgument(f"unexpected output '{name}'")

    def _fetch(self, wanted: Sequence[str]) -> _Fetch:
        """What to ask the session for: the outputs wanted, or all of them if that would be one set too many."""
        if not wanted:
            return self._all
        names = tuple(name for name in self._outputs if name in wanted)
        known = self._fetches.get(names)
        if known is None and len(self._fetches) < _MAX_FETCHES:
            known = _Fetch(names, (TfOutput * len(names))(*(self._outputs[name] for name in names)))
            self._fetches[names] = known
        return known or self._all

    def _run_error(self, error: TfError) -> RoostError:
        if error.code == _RESOURCE_EXHAUSTED:
            return ResourceExhausted("not enough memory to run the model")
        reason = _reason(error, self._root)
        return InvalidArgument(reason) if error.code in _INPUT_CODES else Internal(f"the model failed: {reason}")


def _outputs_of(session: Session, infos: Sequence[TensorInfo]) -> Any:
    return (TfOutput * len(infos))(*(session.output(info.tensor) for info in infos))


def interface_of(signature: SignatureDef, options: Mapping[str, str]) -> Signature:
    """What clients see of a signature, by name: their order in the file is by chance.

    Raises:
        InvalidArgument: If the protocol can't carry one of its tensors.
    """
    sides = []
    for what, infos, option in zip(("input", "output"), (signature.inputs, signature.outputs), _DECLARED, strict=True):
        declared = {str(row[0]): tuple(int(dim) for dim in row[2]) for row in json.loads(options.get(option, "[]"))}
        sides.append(tuple(_spec(what, name, infos[name], declared.get(name)) for name in sorted(infos)))
    if not sides[1]:
        raise InvalidArgument("the signature has no outputs")
    return Signature(*sides)


def _spec(what: str, name: str, info: TensorInfo, declared: tuple[int, ...] | None) -> TensorSpec:
    shown = shorten(name)
    if not info.tensor:
        raise InvalidArgument(f"{what} '{shown}' is a sparse or ragged tensor, which can't be served")
    if info.datatype not in DATATYPES:
        other = OTHER_DATATYPES.get(info.datatype, f"of TensorFlow's datatype {info.datatype}")
        raise InvalidArgument(f"{what} '{shown}' is {other}, which the protocol does not have")
    shape = info.shape if info.shape is not None else declared
    if shape is None and what == "input":
        raise InvalidArgument(
            f"the model does not say how many dimensions input '{shown}' has: declare it in config.pbtxt"
        )
    return TensorSpec(name, DATATYPES[info.datatype], shape or ())


def _load_error(error: TfError, root: str) -> RoostError:
    if error.code == _RESOURCE_EXHAUSTED:
        return ResourceExhausted("not enough memory to load the model")
    reason = _reason(error, root)
    return (
        InvalidArgument(reason) if error.code in _ARTIFACT_CODES else Internal(f"the model can't be loaded: {reason}")
    )


def _reason(error: TfError, root: str) -> str:
    """What TensorFlow says, without the names of functions that it has made up itself, and without paths."""
    text = _NODE.sub(r"\1", _FUNCTION_NODE.sub("", _BINARY.sub("", shortened(str(error)))))
    return without_paths(text, root) or f"TensorFlow gives no reason (code {error.code})"
