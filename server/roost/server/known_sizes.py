"""What a server with the same folders has found out about models: its store and its prepared copies, only read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from roost.core.figures import Figures
from roost.registry_client.load_options import load_options
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.router.learned import Learned
from roost.router.measured import measured_conditions
from roost.router.proof import Proof, conditions_of
from roost.router.sizes import copy_size, plain_size
from roost.router.store_sqlite import SqliteStore
from roost.runtimes.prepared.forms import has_copies
from roost.runtimes.prepared.identity import can_prepare, copy_key
from roost.runtimes.prepared.manifest import MANIFEST, MAX_BYTES, Manifest, parse_manifest

STORE_FILE = "roost.sqlite"
_LOG_SUFFIX = "-wal"


class Known(NamedTuple):
    """What is known of a version.

    Attributes:
        figures: What an instance is accounted with.
        copy: The key of the prepared copy that it is loaded from; empty if there is none.
        run_bytes: What a run of as many rows as a batch may have takes while it lasts; 0 if that is not known.
        is_measured: Whether the figures were measured; else they are declared or an estimate.
        proof: What came of trying whether its rows may be run together; None if it was not tried.
    """

    figures: Figures
    copy: str = ""
    run_bytes: int = 0
    is_measured: bool = False
    proof: Proof | None = None


class _NotRead(Exception):
    """The digest of a file is not known, and reading it would take too long."""


class KnownSizes:
    """See the module.

    Args:
        learned: A store; None if there is none.
        cache_dir: Where prepared copies are; None if none are used.
        code_from: The repositories whose models may be code.
    """

    def __init__(
        self, learned: Learned | None = None, cache_dir: Path | None = None, code_from: Collection[Path] = ()
    ) -> None:
        self._learned = learned
        self._cache_dir = cache_dir
        self._code_from = code_from

    def look_up(self, folder: ModelFolder, description: ModelDescription, version: str, file_bytes: int) -> Known:
        """What was found out about a version, else what follows from its files."""
        declared_bytes = description.policy.memory_bytes
        digest = self._digest(folder, description, version)
        if self._learned is None or not digest:
            return Known(plain_size(declared_bytes, file_bytes, None).loaded)
        plain = self._learned.get_measured(digest, measured_conditions(description))
        proof = self._learned.get_proof(digest, conditions_of(description))
        run_bytes = plain.run_bytes * _batch_rows(description, proof) if plain is not None else 0
        key, manifest = self._copy(digest, folder, description, version)
        if manifest is None:
            figures = plain_size(declared_bytes, file_bytes, plain).loaded
            return Known(figures, "", run_bytes, plain is not None, proof)
        more = self._learned.get_measured(digest, measured_conditions(description, prepared=True))
        figures = copy_size(declared_bytes, file_bytes, manifest, more).loaded
        return Known(figures, key, run_bytes, True, proof)

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """See ``DigestCache``: what is not known is not found out here."""
        digest = None
        if self._learned is not None:
            digest = self._learned.get_file_digest(path, inode, size, mtime_ns)
        if digest is None:
            raise _NotRead
        return digest

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """See ``DigestCache``: nothing is kept."""

    def _digest(self, folder: ModelFolder, description: ModelDescription, version: str) -> str:
        if self._learned is None:
            return ""
        try:
            return folder.artifact(version, description, self).digest
        except _NotRead:
            return ""

    def _copy(
        self, digest: str, folder: ModelFolder, description: ModelDescription, version: str
    ) -> tuple[str, Manifest | None]:
        if self._cache_dir is None or not can_prepare(description.backend):
            return "", None
        path, _ = folder.find(version, description)
        if not has_copies(description.backend, path, description.options):
            return "", None
        options = load_options(description, version, allow_code=folder.path.parent in self._code_from)
        key = copy_key(digest, description.backend, options)
        try:
            with (self._cache_dir / key / MANIFEST).open("rb") as file:
                manifest = parse_manifest(file.read(MAX_BYTES))
        except (OSError, ValueError):
            return "", None
        return (key, manifest) if not manifest.reason else ("", None)


def _batch_rows(description: ModelDescription, proof: Proof | None) -> int:
    """How many rows a batch may have, as far as that is known."""
    if description.max_batch_size:
        return description.max_batch_size
    return max(1, proof.max_rows) if proof is not None else 1


@contextmanager
def known_sizes(state_dir: Path, cache_dir: Path | None, code_from: Collection[Path] = ()) -> Iterator[KnownSizes]:
    """What is known now: a server may go on writing, so its store is copied first.

    Args:
        state_dir: The server's.
        cache_dir: Where its prepared copies are; None if it uses none.
        code_from: The repositories whose models may be code.
    """
    store = state_dir / STORE_FILE
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder, STORE_FILE)
        try:
            for suffix in ("", _LOG_SUFFIX):
                source = store.with_name(store.name + suffix)
                if not suffix or source.exists():
                    shutil.copyfile(source, copied.with_name(copied.name + suffix))
        except OSError:
            yield KnownSizes()
            return
        learned = Learned(SqliteStore(copied))
        try:
            yield KnownSizes(learned, cache_dir, code_from)
        finally:
            learned.close()
