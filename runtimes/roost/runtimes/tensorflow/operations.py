"""Looks for operations of a SavedModel that would read or write files or run code: a model is data, not a program.

Every SavedModel has operations that read and write variables. Those are fine where only TensorFlow's own loader uses
them: behind the operation that restores variables, on the file that the loader names. The same goes for tables that are
read from a file in the folder ``assets``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from roost.core.names import shorten
from roost.runtimes.tensorflow.graph import NOWHERE, Graph, Node, Place, node_of, read_graph
from roost.runtimes.tensorflow.saved_model import MetaGraph, SignatureDef

_VERSION = re.compile(r"V\d+$")
_MAX_NAMES = 10

_UNSAFE = frozenset(
    {
        # Code: Python's, and graphs and calls that are only known when they run.
        "PyFunc",
        "PyFuncStateless",
        "EagerPyFunc",
        "DatasetFromGraph",
        "DeserializeIterator",
        "MlirPassthroughOp",
        "_XlaHostComputeMlir",
        "XlaCustomCall",
        # Files, by names that the model gives.
        "ReadFile",
        "WriteFile",
        "MatchingFiles",
        "MatchingFilesDataset",
        "ImmutableConst",
        "DumpTensor",
        "RecordInput",
        "Skipgram",
        "FixedUnigramCandidateSampler",
        "CalibrationStatisticsSaver",
        "LoadAndRemapMatrix",
        "GenerateVocabRemapping",
        "DTensorRestore",
        "DecodeProto",
        "EncodeProto",
        "InitializeTRTResource",
        # Readers and datasets.
        "TextLineReader",
        "TFRecordReader",
        "WholeFileReader",
        "FixedLengthRecordReader",
        "LMDBReader",
        "TextLineDataset",
        "TFRecordDataset",
        "FixedLengthRecordDataset",
        "CSVDataset",
        "SqlDataset",
        "LMDBDataset",
        "CacheDataset",
        "SnapshotDataset",
        "SnapshotDatasetReader",
        "SnapshotNestedDatasetReader",
        "SnapshotChunkDataset",
        "ListSnapshotChunksDataset",
        "SaveDataset",
        "LoadDataset",
        "DistributedSave",
        "DatasetToTFRecord",
        # Logs.
        "CreateSummaryFileWriter",
        "CreateSummaryDbWriter",
        "DebugIdentity",
        "DebugNanCount",
        "DebugNumericSummary",
        "Copy",
        "CopyHost",
        # Other machines.
        "DataServiceDataset",
        "RegisterDataset",
        "RpcCall",
        "RpcClient",
        "RpcServer",
        "RemoteCall",
        "BigQueryReader",
        "GenerateBigQueryReaderPartitions",
        "GcsConfigureBlockCache",
        "GcsConfigureCredentials",
        "FileSystemSetConfiguration",
    }
)
"""Names without their version, of TensorFlow 2.21 and before."""

_SAVING = frozenset({"Save", "SaveSlices", "SaveV2", "MergeV2Checkpoints"})
_RESTORING = {"Restore": 0, "RestoreSlice": 0, "RestoreV2": 0}
_TABLES = {"InitializeTableFromTextFile": 1, "InitializeTableFromTextFileV2": 1}
"""By operation, which of its inputs is the name of the file."""


def unsafe_operations(meta_graph: MetaGraph, signature: SignatureDef) -> list[str]:
    """Some of the operations for which a model is not safe to be loaded and run, by name; none if there are none.

    Args:
        meta_graph: The graph.
        signature: What of it is going to be served.

    Raises:
        InvalidArgument: If the graph can't be read.
    """
    graph = read_graph(meta_graph.graph)
    found = {node.op for nodes in graph.nodes.values() for node in nodes.values() if _is_unsafe(node)}
    if any(".." in PurePosixPath(name).parts for name in meta_graph.assets.values()):
        found.add("an asset outside of its folder")
    assets = {(NOWHERE, node_of(tensor)) for tensor in meta_graph.assets}
    file = {(NOWHERE, node_of(meta_graph.filename_tensor))}
    served = graph.reached(info.tensor for info in signature.outputs.values())
    begun = graph.reached(meta_graph.init_ops)
    restored = graph.reached([meta_graph.restore_op])
    # The loader names files while it restores and begins; what is there when the model is served is not known.
    found |= _outside(graph, served, {}, {})
    found |= _outside(graph, begun, {}, dict.fromkeys(_TABLES, assets))
    found |= _outside(graph, restored, dict.fromkeys(_RESTORING, file), dict.fromkeys(_TABLES, assets))
    return [shorten(name) for name in sorted(found)[:_MAX_NAMES]]


def _outside(
    graph: Graph,
    reached: Collection[Place],
    restoring: Mapping[str, Collection[Place]],
    tables: Mapping[str, Collection[Place]],
) -> set[str]:
    """Of the nodes that may run, those that use files other than they may, by operation."""
    allowed = {**restoring, **tables}
    found: set[str] = set()
    callers: dict[str, list[Place]] | None = None
    for place in reached:
        op = graph.nodes[place[0]][place[1]].op
        position = _RESTORING.get(op, _TABLES.get(op))
        if op in _SAVING:
            found.add(op)
        elif position is not None and op not in found:
            callers = graph.callers() if callers is None else callers
            if op not in allowed or not graph.sources(place, position, callers) <= {*allowed[op]}:
                found.add(op)
    return found


def _is_unsafe(node: Node) -> bool:
    """Whether it is, whoever uses it."""
    return node.prints_to.startswith("file") or _VERSION.sub("", node.op).removeprefix("Experimental") in _UNSAFE
