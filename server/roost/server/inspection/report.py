"""What ``roost inspect`` has to say of a model, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from roost.core.tensors import Signature


@dataclass(slots=True)
class Findings:
    """What was found while looking.

    Attributes:
        what: What the file is, in words.
        signature: What it says that it takes and gives; None if only a load can tell.
        problems: What has to be put right before it is served.
        notes: What its owner should know besides.
        until_loaded: What only a load can tell.
    """

    what: str = ""
    signature: Signature | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    until_loaded: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Takes over what somebody else has found."""
        self.what = self.what or other.what
        self.signature = self.signature or other.signature
        self.problems += other.problems
        self.notes += other.notes
        self.until_loaded += other.until_loaded


@dataclass(slots=True)
class TensorReport:
    """An input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(slots=True)
class MemoryReport:
    """What an instance takes.

    Attributes:
        private_bytes: Of the memory budget.
        mapped_bytes: Of files that it maps.
        source: How that is known: ``declared``, ``measured`` or ``estimated``, which is more than it takes.
        run_bytes: What a full batch takes besides while it runs; 0 if that is not known.
        prepared: Whether it would be loaded from a prepared copy.
    """

    private_bytes: int
    mapped_bytes: int = 0
    source: str = "estimated"
    run_bytes: int = 0
    prepared: bool = False


@dataclass(slots=True)
class VersionReport:
    """One version.

    Attributes:
        version: Its name.
        file: The model's file or folder in that of the version; empty if there is none.
        files: How many files there are.
        file_bytes: How large they are together.
        what: What the file is.
        inputs: What it takes.
        outputs: What it gives.
        tensors_from: Who says that: ``configuration``, ``file``, ``load``; empty if nobody does before it is loaded.
        memory: What an instance takes.
        batch_rows: How many rows may be run together; 0 for none, None if that is not known.
        batching: Why that is so.
        load_s: How long a trial load took; None without one.
        problems: What has to be put right before it is served.
        notes: What its owner should know besides.
    """

    version: str
    file: str = ""
    files: int = 0
    file_bytes: int = 0
    what: str = ""
    inputs: list[TensorReport] = field(default_factory=list)
    outputs: list[TensorReport] = field(default_factory=list)
    tensors_from: str = ""
    memory: MemoryReport | None = None
    batch_rows: int | None = None
    batching: str = ""
    load_s: float | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All of it.

    Attributes:
        path: What was looked at.
        model: The model's name.
        config: The file of its configuration; empty if there is none.
        runtime: What would load it; empty if nobody would.
        reason: Why that one.
        framework: What that runtime needs, and its version if it is installed.
        versions: Those that would be served.
        unserved: Versions that are there, but would not be served.
        problems: What has to be put right before the model is served.
        notes: What its owner should know besides.
    """

    path: str
    model: str = ""
    config: str = ""
    runtime: str = ""
    reason: str = ""
    framework: str = ""
    versions: list[VersionReport] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems and not any(version.problems for version in self.versions)

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {**asdict(self), "ready": self.is_ready}
