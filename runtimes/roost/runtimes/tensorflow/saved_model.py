"""What a SavedModel says of itself: its graphs by tags, their signatures, and what is run when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.core.errors import InvalidArgument
from roost.core.names import shorten
from roost.runtimes.tensorflow.wire import entries, fields, joined, last_text, parts, signed, text

DEFAULT_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"

SAVED_MODEL_FILE = "saved_model.pb"

_MAX_BYTES = 2 << 30
_CHUNKED_FILE = "saved_model.cpb"
_TEXT_FILE = "saved_model.pbtxt"
_INIT_SIGNATURE = "__saved_model_init_op"
_NOT_TO_SERVE = frozenset({_INIT_SIGNATURE, "__saved_model_train_op"})
_INIT_COLLECTIONS = frozenset({"saved_model_main_op", "legacy_init_op"})
_ASSETS_COLLECTION = "saved_model_assets"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a signature.

    Attributes:
        tensor: The tensor of the graph, such as ``dense/BiasAdd:0``; empty if it is not a single one.
        datatype: TensorFlow's number of its datatype.
        shape: Its dimensions, -1 for any; None if their number is not known.
    """

    tensor: str
    datatype: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class SignatureDef:
    """What a function of the model takes and gives, by the names that clients use."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class MetaGraph:
    """One of the graphs of a SavedModel.

    Attributes:
        tags: What TensorFlow finds it by.
        signatures: Its signatures by name.
        graph: The message ``GraphDef``.
        restore_op: The operation that reads the variables; empty if there are none.
        filename_tensor: Where that is given the name of the file.
        init_ops: The operations that are run when it is loaded.
        assets: Tensors that are given the names of files in the folder ``assets``, and these names.
    """

    tags: frozenset[str]
    signatures: Mapping[str, SignatureDef]
    graph: memoryview
    restore_op: str
    filename_tensor: str
    init_ops: Sequence[str]
    assets: Mapping[str, str]

    def signature(self, wanted: str) -> SignatureDef:
        """The signature of this name; none given: ``serving_default``, else the only one that there is.

        Raises:
            InvalidArgument: If there is none, or it takes no tensors.
        """
        served = [name for name in self.signatures if name not in _NOT_TO_SERVE]
        name = wanted or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in served or len(served) != 1 else served[0])
        if name not in served:
            raise InvalidArgument(f"the SavedModel has no signature '{shorten(name)}'; {_listed('it has', served)}")
        return self.signatures[name]


def read_meta_graph(folder: str, tag: str) -> MetaGraph:
    """Reads the graph with a tag out of a SavedModel's folder.

    Args:
        folder: The folder with ``saved_model.pb``.
        tag: The tag; empty for ``serve``.

    Raises:
        InvalidArgument: If there is no such graph, or the file can't be read.
    """
    if (Path(folder) / _CHUNKED_FILE).exists():  # TensorFlow would load this one, whatever lies beside it
        raise InvalidArgument("the SavedModel is split into chunks, which can't be looked at: save it in one file")
    path = Path(folder) / SAVED_MODEL_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidArgument(f"{SAVED_MODEL_FILE} is larger than 2 GiB, which TensorFlow does not read")
        data = memoryview(path.read_bytes())
    except OSError as error:
        if (Path(folder) / _TEXT_FILE).exists():
            raise InvalidArgument(f"the SavedModel is in text form: save it as {SAVED_MODEL_FILE}") from None
        raise InvalidArgument(f"{SAVED_MODEL_FILE} can't be read: {error.strerror}") from None
    return find_meta_graph(data, tag or DEFAULT_TAG)


def find_meta_graph(saved_model: memoryview, tag: str) -> MetaGraph:
    """The graph of a message ``SavedModel`` that has no other tag, else the first one that also has this one.

    Raises:
        InvalidArgument: If there is none.
    """
    found = [(_tags(message), message) for message in parts(saved_model, 2)]
    for tags, message in sorted(found, key=lambda one: len(one[0])):
        if tag in tags:
            # TensorFlow takes the first one with just these tags, and so does this sort, which is stable.
            return _meta_graph(tags, message)
    known = sorted({name for tags, _ in found for name in tags})
    raise InvalidArgument(
        f"the SavedModel has no graph with the tag '{shorten(tag)}'; {_listed('its tags are', known)}"
    )


def _tags(meta_graph: memoryview) -> frozenset[str]:
    return frozenset(text(tag) for tag in parts(joined(meta_graph, 1), 4))


def _meta_graph(tags: frozenset[str], message: memoryview) -> MetaGraph:
    saver = joined(message, 3)
    collections = dict(entries(message, 4))
    signatures = {name: _signature(signature) for name, signature in entries(message, 5)}
    assets = list(parts(message, 6)) or _assets_of(collections.get(_ASSETS_COLLECTION))
    return MetaGraph(
        tags,
        signatures,
        joined(message, 2),
        last_text(saver, 3),
        last_text(saver, 1),
        _init_ops(signatures, collections),
        {_tensor_info(joined(asset, 1)).tensor: last_text(asset, 2) for asset in assets},
    )


def _init_ops(signatures: Mapping[str, SignatureDef], collections: Mapping[str, memoryview]) -> list[str]:
    """Which of them TensorFlow runs depends on its version, so these are all that it may."""
    found = [
        info.tensor for name, one in signatures.items() if name == _INIT_SIGNATURE for info in one.outputs.values()
    ]
    for name in _INIT_COLLECTIONS & collections.keys():
        found += [text(node) for node in parts(joined(collections[name], 1), 1)]
    return found


def _assets_of(collection: memoryview | None) -> list[memoryview]:
    """Assets as TensorFlow 1 keeps them: each in a message that may hold any other."""
    if collection is None:
        return []
    return [joined(one, 2) for one in parts(joined(collection, 5), 1)]


def _signature(message: memoryview) -> SignatureDef:
    return SignatureDef(
        {name: _tensor_info(info) for name, info in entries(message, 1)},
        {name: _tensor_info(info) for name, info in entries(message, 2)},
    )


def _tensor_info(message: memoryview) -> TensorInfo:
    tensor, datatype = last_text(message, 1), 0
    for number, _, value in fields(message):
        if number == 2:
            datatype = value
        elif number in (4, 5):  # several tensors that together are a sparse or ragged one
            tensor = ""
    return TensorInfo(tensor, datatype, _shape(message))


def _shape(info: memoryview) -> tuple[int, ...] | None:
    if not any(number == 3 for number, _, _ in fields(info)):
        return None
    shape = joined(info, 3)
    if any(number == 3 and value for number, _, value in fields(shape)):
        return None
    return tuple(_size(dim) for dim in parts(shape, 2))


def _size(dim: memoryview) -> int:
    size = 0
    for number, _, value in fields(dim):
        if number == 1:
            size = signed(value)
    return max(size, -1)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(map(shorten, sorted(names)[:20]))}" if names else "it has none"
