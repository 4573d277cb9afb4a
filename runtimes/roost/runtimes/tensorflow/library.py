"""TensorFlow's C interface: the library that the package ``tensorflow`` brings, without its Python part.

Importing that takes seconds and hundreds of megabytes; what serves a SavedModel is all in the library. Its functions
are those of ``tensorflow/c/c_api.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

_FILE = "libtensorflow_cc.so.2"
_ENVIRONMENT = {
    # What goes wrong is raised; the library would print it as well, with paths.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Operators run one after the other in the thread that runs the model: a second pool would only be started.
    "TF_NUM_INTEROP_THREADS": "1",
    # Else variables are in a pool that grows, in steps of powers of two, and gives nothing back when models go.
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
}

Deallocator = ctypes.CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)
_INDEX = re.compile(r"[0-9]{0,9}")
STRING_BYTES = 24
"""What a ``TF_TString`` takes."""


class TfOutput(ctypes.Structure):
    """``TF_Output``: an output of an operation."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


class TfError(Exception):
    """TensorFlow's word for what went wrong.

    Attributes:
        code: As gRPC has them.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# Functions that may take long let other threads run Python meanwhile; for the others that would be most of their time.
_LONG: dict[str, tuple[Any, Sequence[Any]]] = {
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        (c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p),
    ),
    "TF_SessionRun": (
        None,
        (
            *(c_void_p, c_void_p),
            *(POINTER(TfOutput), POINTER(c_void_p), c_int),
            *(POINTER(TfOutput), POINTER(c_void_p), c_int),
            *(c_void_p, c_int, c_void_p, c_void_p),
        ),
    ),
    "TF_NewSession": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "TF_CloseSession": (None, (c_void_p, c_void_p)),
    "TF_DeleteSession": (None, (c_void_p, c_void_p)),
    "TF_DeleteGraph": (None, (c_void_p,)),
}
_SHORT: dict[str, tuple[Any, Sequence[Any]]] = {
    "TF_Version": (c_char_p, ()),
    "TF_NewStatus": (c_void_p, ()),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_DeleteSessionOptions": (None, (c_void_p,)),
    "TF_SetConfig": (None, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_SessionListDevices": (c_void_p, (c_void_p, c_void_p)),
    "TF_DeviceListCount": (c_int, (c_void_p,)),
    "TF_DeviceListType": (c_char_p, (c_void_p, c_int, c_void_p)),
    "TF_DeleteDeviceList": (None, (c_void_p,)),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_NewTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_void_p, c_size_t, Deallocator, c_void_p)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorType": (c_int, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_TensorByteSize": (c_size_t, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_StringCopy": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringGetDataPointer": (c_void_p, (c_void_p,)),
    "TF_StringGetSize": (c_size_t, (c_void_p,)),
    "TF_StringDealloc": (None, (c_void_p,)),
}


class Library:
    """The library, loaded once in a process: it stays for good.

    Attributes:
        call: Has its functions as attributes.

    Raises:
        ImportError: If it is not there, or is not what it should be.
    """

    def __init__(self) -> None:
        path = _find()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.call = _Functions()
        try:
            with _silence():
                loaded = ctypes.CDLL(path), ctypes.PyDLL(path)
            for library, functions in zip(loaded, (_LONG, _SHORT), strict=True):
                for name, (result, arguments) in functions.items():
                    function = getattr(library, name)
                    function.restype, function.argtypes = result, arguments
                    setattr(self.call, name, function)
        except (OSError, AttributeError) as error:
            raise ImportError(f"TensorFlow's library can't be used: {error}") from None

    def load(self, folder: str, tags: Sequence[str], threads: int, *, on_gpu: bool = False) -> Session:
        """Loads a SavedModel.

        Args:
            folder: Its folder.
            tags: All tags of its graph.
            threads: How many threads an operator may use; the first call decides that for the process.
            on_gpu: Whether operators run on the GPU that can.

        Raises:
            TfError: If it can't be loaded.
        """
        call = self.call
        options, graph = self._options(session_config(threads, on_gpu=on_gpu)), call.TF_NewGraph()
        names = (c_char_p * len(tags))(*(tag.encode() for tag in tags))
        try:
            session = self.checked(
                call.TF_LoadSessionFromSavedModel, options, None, os.fsencode(folder), names, len(tags), graph, None
            )
        except BaseException:
            call.TF_DeleteGraph(graph)
            raise
        finally:
            call.TF_DeleteSessionOptions(options)
        return Session(self, session, graph)

    def devices(self) -> list[str]:
        """The types of the devices that sessions may use, such as ``CPU`` and ``GPU``; they are ready to be used then.

        Raises:
            TfError: If one of them can't be.
        """
        call = self.call
        options, graph = self._options(session_config(1, on_gpu=True)), call.TF_NewGraph()
        try:
            session = Session(self, self.checked(call.TF_NewSession, graph, options), graph)
        except BaseException:
            call.TF_DeleteGraph(graph)
            raise
        finally:
            call.TF_DeleteSessionOptions(options)
        try:
            return session.devices()
        finally:
            session.close()

    def _options(self, config: bytes) -> int:
        options: int = self.call.TF_NewSessionOptions()
        try:
            self.checked(self.call.TF_SetConfig, options, config, len(config))
        except BaseException:
            self.call.TF_DeleteSessionOptions(options)
            raise
        return options

    def checked(self, function: Any, *arguments: Any) -> Any:
        """Calls a function whose last argument is a status, and raises what that says."""
        call = self.call
        status = call.TF_NewStatus()
        try:
            result = function(*arguments, status)
            code = call.TF_GetCode(status)
            if code:
                raise TfError(code, (call.TF_Message(status) or b"").decode("utf-8", "replace"))
            return result
        finally:
            call.TF_DeleteStatus(status)


class _Functions:
    """The functions of the library, by name."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Session:
    """A loaded SavedModel; runs may go on in several threads at once.

    Args:
        library: The library.
        session: Its ``TF_Session``, which this owns.
        graph: Its ``TF_Graph``, likewise.
    """

    def __init__(self, library: Library, session: int, graph: int) -> None:
        self._library = library
        self._session = session
        self._graph = graph

    def output(self, tensor: str) -> TfOutput:
        """A tensor of the graph, such as ``dense/BiasAdd:0``.

        Raises:
            KeyError: If there is none.
        """
        name, _, index = tensor.partition(":")
        operation = self._library.call.TF_GraphOperationByName(self._graph, name.encode())
        if operation is None or not _INDEX.fullmatch(index):
            raise KeyError(tensor)
        return TfOutput(operation, int(index or 0))

    def run(self, inputs: Any, values: Any, outputs: Any) -> Any:
        """Runs the graph as far as the outputs need it.

        Args:
            inputs: An array of ``TfOutput``.
            values: An array of as many ``TF_Tensor``, which stay the caller's.
            outputs: An array of ``TfOutput``.

        Returns:
            An array of ``TF_Tensor``, one for each output, which are the caller's.

        Raises:
            TfError: If the run fails.
        """
        results = (c_void_p * len(outputs))()
        self._library.checked(
            self._library.call.TF_SessionRun,
            *(self._session, None, inputs, values, len(inputs)),
            *(outputs, results, len(outputs)),
            *(None, 0, None),
        )
        return results

    def devices(self) -> list[str]:
        """The types of its devices.

        Raises:
            TfError: If they can't be listed.
        """
        library, call = self._library, self._library.call
        devices = library.checked(call.TF_SessionListDevices, self._session)
        try:
            count = call.TF_DeviceListCount(devices)
            return [library.checked(call.TF_DeviceListType, devices, index).decode() for index in range(count)]
        finally:
            call.TF_DeleteDeviceList(devices)

    def close(self) -> None:
        """Lets go of variables, graph and what runs have left; nothing runs any more."""
        call = self._library.call
        status = call.TF_NewStatus()  # what it says would change nothing
        call.TF_CloseSession(self._session, status)
        call.TF_DeleteSession(self._session, status)
        call.TF_DeleteGraph(self._graph)
        call.TF_DeleteStatus(status)


def session_config(threads: int, *, on_gpu: bool = False) -> bytes:
    """A message ``ConfigProto``: so many threads for an operator, operators one after the other.

    There is no GPU, or one whose memory is taken as it is needed, not all of it at once. Nodes that were put on a
    device that is not there run where they can.
    """
    gpu = b"\x32\x02\x20\x01" if on_gpu else b"\x0a\x07\x0a\x03GPU\x10\x00"
    intra_op = b"\x10" + bytes([min(threads, 127)])
    in_calling_thread = b"\x28" + b"\xff" * 9 + b"\x01"
    soft_placement = b"\x38\x01"
    return gpu + intra_op + in_calling_thread + soft_placement


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what is not ours off standard error: when it is loaded the library says there how it is going to work.

    Nothing else of the process may want to write there meanwhile, which is why this is only for its start.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _find() -> str:
    spec = importlib.util.find_spec("tensorflow")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / _FILE
        if path.exists():
            return str(path)
    raise ImportError(f"there is no package 'tensorflow' with {_FILE}")
