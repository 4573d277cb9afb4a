"""What there is to say of one version: of its files, of what is known of them, and of a load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from roost.core.errors import InvalidArgument
from roost.core.tensors import Signature, TensorSpec
from roost.core.units import format_bytes
from roost.registry_client.backends import BACKENDS
from roost.registry_client.digest import Stamp
from roost.registry_client.load_options import load_options
from roost.registry_client.model_config import ModelDescription, effective_signature, signature_from_config
from roost.registry_client.warmup import warmup_samples
from roost.router.proof import BatchingMode, Decision, decide
from roost.router.sizes import estimated_bytes
from roost.runtimes.adapters import installed_runtimes
from roost.runtimes.prepared.making import CopyOrder, NotNow
from roost.server.config import ServeConfig
from roost.server.doctor_checks import limits
from roost.server.inspection.artifacts import look_at
from roost.server.inspection.onnx_file import operators_that_mix_rows
from roost.server.inspection.report import Findings, MemoryReport, TensorReport, VersionReport
from roost.server.inspection.trial import try_batches, try_load
from roost.server.known_sizes import Known


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a version.

    Attributes:
        path: The model's file or folder.
        root: The folder of all of them.
        model_folder: The model's.
        stamp: What they are now.
    """

    path: str
    root: str
    model_folder: str
    stamp: Stamp

    @property
    def size_bytes(self) -> int:
        """All of them together."""
        return sum(file.size for file in self.stamp)


@dataclass(frozen=True, slots=True)
class VersionLook:
    """A look at a version, as a server with a configuration would take it.

    Attributes:
        config: That of the server.
        allow_code: Whether the model may bring code.
        may_load: Whether it is loaded to see what it says then.
        description: The model's configuration.
        files: The version's files.
        known: What the server has found out about them; None if nobody could.
        version: What is found is written here.
    """

    config: ServeConfig
    allow_code: bool
    may_load: bool
    description: ModelDescription
    files: Files
    known: Known | None
    version: VersionReport

    def take(self) -> None:
        """Looks at it."""
        version, files = self.version, self.files
        options = load_options(self.description, version.version, allow_code=self.allow_code)
        version.file = os.path.relpath(files.path, files.root)
        version.files, version.file_bytes = len(files.stamp), files.size_bytes
        found = look_at(self.description.backend, files.path, files.root, files.model_folder, options)
        version.what = found.what
        version.problems += found.problems
        version.notes += found.notes if self.may_load else [*found.notes, *found.until_loaded]
        version.memory = self._memory()
        signature = self._tensors(found)
        order = self._order(options)
        if self.may_load and not version.problems and self._can_be_loaded():
            signature = self._load(order) or signature
        decision = self._decision(signature, order)
        if decision is not None:
            version.batch_rows, version.batching = decision.rows, decision.text
            if version.load_s is not None:  # measured of one row
                version.memory.run_bytes *= max(1, decision.rows)
        self._check_room(version.memory.private_bytes)

    def _memory(self) -> MemoryReport:
        declared_bytes = self.description.policy.memory_bytes
        source = "estimated" if declared_bytes is None else "declared"
        if self.known is None:
            return MemoryReport(declared_bytes or estimated_bytes(self.files.size_bytes), 0, source)
        figures = self.known.figures
        source = "measured" if self.known.is_measured else source
        is_prepared = bool(self.known.copy)
        return MemoryReport(figures.private_bytes, figures.mapped_bytes, source, self.known.run_bytes, is_prepared)

    def _tensors(self, found: Findings) -> Signature | None:
        """What it takes and gives, as configuration and file say together."""
        declared = signature_from_config(self.description)
        try:
            if found.signature is not None:
                return say_tensors(self.version, effective_signature(self.description, found.signature), "file")
        except InvalidArgument as error:
            self.version.problems.append(error.message)
        return say_tensors(self.version, declared, "configuration") if declared is not None else None

    def _order(self, options: Mapping[str, str]) -> CopyOrder:
        return CopyOrder(
            path=self.files.path,
            root=self.files.root,
            digest="",
            files=[list(file) for file in self.files.stamp],
            backend=self.description.backend,
            memory_bytes=self.config.machine.memory_bytes,
            options=options,
            samples=warmup_samples(self.description.config),
            samples_root=self.files.model_folder,
        )

    def _can_be_loaded(self) -> bool:
        backend = self.description.backend
        return bool(installed_runtimes([backend])) and (self.allow_code or not BACKENDS[backend].is_code)

    def _load(self, order: CopyOrder) -> Signature | None:
        """Loads it in a process of its own."""
        version = self.version
        try:
            trial = try_load(order, self.description.policy.load_timeout_s or self.config.load_timeout_s)
            version.load_s = trial.load_s
            figures = trial.figures
            version.memory = MemoryReport(figures.private_bytes, figures.mapped_bytes, "measured", trial.run_bytes)
            return say_tensors(version, effective_signature(self.description, trial.signature), "load")
        except NotNow as error:
            version.problems.append(f"it can't be loaded: {error}")
        except InvalidArgument as error:
            version.problems.append(error.message)
        return None

    def _decision(self, signature: Signature | None, order: CopyOrder) -> Decision | None:
        """How many rows may be run together, and why; None if only a load can tell."""
        if signature is None:
            if not self.description.max_batch_size:
                self.version.batching = "not known before it is loaded"
                return None
            signature = Signature((), ())  # which counts for nothing then
        decision = decide(self.description, signature, BatchingMode(self.config.batching))
        if decision is not None:
            return decision
        if self.known is not None and self.known.proof is not None and self.known.proof.settled:
            return self.known.proof.decision
        if self.version.load_s is not None:
            return try_batches(order).decision
        obstacle = operators_that_mix_rows(order.path)
        if obstacle:
            return Decision(0, f"not proven: {obstacle}")
        self.version.batching = "not known yet: what its graph says is fine, and it is tried after its first load"
        return None

    def _check_room(self, taken_bytes: int) -> None:
        limit_bytes = limits(self.config).private_bytes
        if taken_bytes > limit_bytes:
            self.version.problems.append(
                f"it takes {format_bytes(taken_bytes)}, more than the {format_bytes(limit_bytes)} that there are for "
                "models"
            )


def say_tensors(version: VersionReport, signature: Signature, source: str) -> Signature:
    """Writes down what a version takes and gives, and who says so; returns that."""
    version.inputs = list(_tensors(signature.inputs))
    version.outputs = list(_tensors(signature.outputs))
    version.tensors_from = source
    return signature


def _tensors(specs: Iterable[TensorSpec]) -> Iterator[TensorReport]:
    for spec in specs:
        yield TensorReport(spec.name, spec.datatype, spec.shape, spec.optional)
