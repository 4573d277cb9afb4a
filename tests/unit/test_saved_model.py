"""What is read out of a SavedModel before TensorFlow sees it, and which models are refused for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.runtimes.tensorflow.operations import unsafe_operations
from roost.runtimes.tensorflow.saved_model import MetaGraph, TensorInfo, find_meta_graph, read_meta_graph
from roost.runtimes.tensorflow.wire import fields, joined, last_text, signed


def varint(value: int) -> bytes:
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def message(*items: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of fields: number, and integer, text or message."""
    parts = []
    for number, value in items:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value & 2**64 - 1))
            continue
        data = value.encode() if isinstance(value, str) else value
        parts.append(varint(number << 3 | 2) + varint(len(data)) + data)
    return b"".join(parts)


def entry(key: str, value: bytes) -> bytes:
    return message((1, key), (2, value))


def tensor_info(tensor: str, datatype: int = 1, dims: Sequence[int] | None = (-1, 4)) -> bytes:
    shape = [] if dims is None else [(3, message(*((2, message((1, dim))) for dim in dims)))]
    return message((1, tensor), (2, datatype), *shape)


def signature(inputs: dict[str, bytes], outputs: dict[str, bytes]) -> bytes:
    return message(
        *((1, entry(name, info)) for name, info in inputs.items()),
        *((2, entry(name, info)) for name, info in outputs.items()),
    )


def node(name: str, op: str, *inputs: str, calls: str = "", **texts: str) -> bytes:
    attributes = [(5, entry("f", message((10, message((1, calls))))))] if calls else []
    attributes += [(5, entry(key, message((2, value)))) for key, value in texts.items()]
    return message((1, name), (2, op), *((3, source) for source in inputs), *attributes)


def function(name: str, arguments: Sequence[str], *nodes: bytes) -> bytes:
    declared = message((1, name), *((2, message((1, argument))) for argument in arguments))
    return message((1, declared), *((3, one) for one in nodes))


def graph(*nodes: bytes, functions: Sequence[bytes] = ()) -> bytes:
    return message(*((1, one) for one in nodes), (2, message(*((1, one) for one in functions))))


SERVED = signature({"x": tensor_info("x:0")}, {"y": tensor_info("y:0")})
NODES = (node("x", "Placeholder"), node("y", "Identity", "x"))


def saved_model(graph_def: bytes, *more: tuple[int, int | str | bytes], tags: Sequence[str] = ("serve",)) -> bytes:
    meta_info = message(*((4, tag) for tag in tags))
    meta_graph = message((1, meta_info), (2, graph_def), (5, entry("serving_default", SERVED)), *more)
    return message((1, 1), (2, meta_graph))


def read(data: bytes, tag: str = "serve") -> MetaGraph:
    return find_meta_graph(memoryview(data), tag)


def unsafe(graph_def: bytes, *more: tuple[int, int | str | bytes]) -> list[str]:
    meta_graph = read(saved_model(graph_def, *more))
    return unsafe_operations(meta_graph, meta_graph.signature(""))


@given(st.integers(0, 2**64 - 1))
def test_integers(value: int) -> None:
    assert [(3, value)] == [(number, found) for number, _, found in fields(memoryview(message((3, value))))]


def test_a_message_written_in_pieces_is_one() -> None:
    data = memoryview(message((1, message((1, "a"))), (2, 7), (1, message((1, "b"), (2, -1)))))
    assert last_text(joined(data, 1), 1) == "b"
    assert [signed(value) for number, _, value in fields(joined(data, 1)) if number == 2] == [-1]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        meta_graph = read(message((2, message((1, message((4, "serve"))), (2, data), (3, data), (5, data)))))
        unsafe_operations(meta_graph, meta_graph.signature(""))
    except InvalidArgument:
        pass


def test_signatures() -> None:
    odd = signature({"s": message((1, "s:0"), (2, 1), (4, b""))}, {"r": tensor_info("r:0", 7, None)})
    data = saved_model(graph(*NODES), (5, entry("odd", odd)), (5, entry("__saved_model_init_op", b"")))
    meta_graph = read(data)
    assert meta_graph.signature("").inputs == {"x": TensorInfo("x:0", 1, (-1, 4))}
    assert meta_graph.signature("odd").inputs["s"].tensor == ""
    assert meta_graph.signature("odd").outputs == {"r": TensorInfo("r:0", 7, None)}
    for name in ("other", "__saved_model_init_op"):
        with pytest.raises(InvalidArgument, match="it has: odd, serving_default"):
            meta_graph.signature(name)


def test_the_graph_with_the_fewest_other_tags_is_served() -> None:
    data = (
        saved_model(graph(), tags=("serve", "tpu")) + saved_model(graph(*NODES)) + saved_model(graph(), tags=("train",))
    )
    assert read(data).tags == {"serve"}
    assert read(data, "tpu").tags == {"serve", "tpu"}
    with pytest.raises(InvalidArgument, match="tags are: serve, tpu, train"):
        read(data, "gpu")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "can't be read"),
        (("saved_model.pb", "saved_model.cpb"), "split into chunks"),
        (("saved_model.pbtxt",), "text form"),
    ],
)
def test_files_that_can_not_be_looked_at(tmp_path: Path, files: Sequence[str], reason: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(saved_model(graph(*NODES)))
    with pytest.raises(InvalidArgument, match=reason):
        read_meta_graph(str(tmp_path), "")


@pytest.mark.parametrize(
    ("graph_def", "found"),
    [
        (graph(*NODES), []),
        (graph(*NODES, node("r", "ReadFile", "x")), ["ReadFile"]),
        (graph(*NODES, functions=[function("f", ["a"], node("w", "WriteFile", "a", "a"))]), ["WriteFile"]),
        (graph(*NODES, node("p", "EagerPyFunc"), node("q", "PyFunc")), ["EagerPyFunc", "PyFunc"]),
        (
            graph(*NODES, node("d", "ExperimentalCSVDataset"), node("e", "TFRecordDatasetV2")),
            ["ExperimentalCSVDataset", "TFRecordDatasetV2"],
        ),
        (graph(*NODES, node("p", "PrintV2", "x", output_stream="stderr")), []),
        (graph(*NODES, node("p", "PrintV2", "x", output_stream="file:///tmp/x")), ["PrintV2"]),
        (graph(*NODES, node("s", "SaveV2", "x")), []),  # nobody asks for it
        (graph(NODES[0], node("y", "Identity", "x", "^s"), node("s", "SaveV2", "x")), ["SaveV2"]),
        (
            graph(
                NODES[0],
                node("y", "StatefulPartitionedCall", "x", calls="f"),
                functions=[
                    function("f", ["a"], node("g", "If", "a", calls="h")),
                    function("h", ["a"], node("r", "RestoreV2", "a")),
                ],
            ),
            ["RestoreV2"],
        ),
    ],
    ids=["safe", "reads", "in-function", "python", "datasets", "prints", "prints-file", "unused", "saves", "deep"],
)
def test_operations(graph_def: bytes, found: list[str]) -> None:
    assert unsafe(graph_def) == found


def test_names_are_used_once() -> None:
    with pytest.raises(InvalidArgument, match="two operations 'y'"):
        unsafe(graph(*NODES, NODES[1]))
    with pytest.raises(InvalidArgument, match="two functions 'f'"):
        unsafe(graph(*NODES, functions=[function("f", []), function("f", [])]))


RESTORE = function("restore", ["file"], node("i", "Identity", "file"), node("r", "RestoreV2", "i:output:0", "names"))
SAVER = (3, message((1, "file:0"), (3, "restored")))


@pytest.mark.parametrize(
    ("source", "found"),
    [("file", []), ("other", ["RestoreV2"])],
)
def test_variables_are_restored_from_the_file_that_the_loader_names(source: str, found: list[str]) -> None:
    nodes = (
        node("file", "Placeholder"),
        node("other", "Const"),
        node("restored", "StatefulPartitionedCall", source, calls="restore"),
    )
    assert unsafe(graph(*NODES, *nodes, functions=[RESTORE]), SAVER) == found


INITIALIZER = function("fill", ["table", "name"], node("t", "InitializeTableFromTextFileV2", "table", "name"))


TABLE = ["InitializeTableFromTextFileV2"]


@pytest.mark.parametrize(
    ("source", "more", "found"),
    [
        ("words", [], []),
        ("read", [], []),  # a variable that holds the name, as TensorFlow 2 writes it
        ("other", [], TABLE),
        ("read", [node("again", "AssignVariableOp", "variable", "other")], TABLE),
        ("read", [node("alias", "VarHandleOp", shared_name="v")], TABLE),
        ("read", [node("handed", "StatefulPartitionedCall", "variable", calls="fill")], TABLE),
    ],
)
def test_tables_are_read_from_assets(source: str, more: Sequence[bytes], found: list[str]) -> None:
    assert unsafe(*table_from(source, more)) == found


def test_assets_are_in_their_folder() -> None:
    assert unsafe(*table_from("words", asset="../../words.txt")) == ["an asset outside of its folder"]


def table_from(source: str, more: Sequence[bytes] = (), asset: str = "words.txt") -> list[Any]:
    """A graph that fills a table from a file when it is loaded, and the fields that belong to it."""
    nodes = (
        *(node("table", "HashTableV2"), node("words", "Placeholder"), node("other", "Const")),
        *(node("variable", "VarHandleOp", shared_name="v"), node("assign", "AssignVariableOp", "variable", "words")),
        *(node("read", "ReadVariableOp", "variable", "^assign"), node("begin", "NoOp", "^fill")),
        node("fill", "StatefulPartitionedCall", "table", source, calls="fill"),
    )
    begin = (5, entry("__saved_model_init_op", signature({}, {"__saved_model_init_op": tensor_info("begin")})))
    assets = (6, message((1, tensor_info("words:0", 7, ())), (2, asset)))
    return [graph(*NODES, *nodes, *more, functions=[INITIALIZER]), begin, assets]
