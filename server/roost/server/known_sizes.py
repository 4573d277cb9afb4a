"""What a server with the same folders has found out about models: its store and its prepared copies, only read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from roost.core.figures import Figures
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.router.learned import Learned
from roost.router.measured import measured_conditions
from roost.router.proof import conditions_of
from roost.router.sizes import copy_size, plain_size
from roost.router.store_sqlite import SqliteStore
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
    """

    figures: Figures
    copy: str = ""
    run_bytes: int = 0


class _NotRead(Exception):
    """The digest of a file is not known, and reading it would take too long."""


class KnownSizes:
    """See the module.

    Args:
        learned: A store; None if there is none.
        cache_dir: Where prepared copies are; None if none are used.
    """

    def __init__(self, learned: Learned | None = None, cache_dir: Path | None = None) -> None:
        self._learned = learned
        self._cache_dir = cache_dir

    def look_up(self, folder: ModelFolder, description: ModelDescription, version: str, file_bytes: int) -> Known:
        """What was found out about a version, else what follows from its files."""
        declared_bytes = description.policy.memory_bytes
        digest = self._digest(folder, description, version)
        if self._learned is None or not digest:
            return Known(plain_size(declared_bytes, file_bytes, None).loaded)
        plain = self._learned.get_measured(digest, measured_conditions(description))
        run_bytes = plain.run_bytes * self._batch_rows(digest, description) if plain is not None else 0
        key, manifest = self._copy(digest, description)
        if manifest is None:
            return Known(plain_size(declared_bytes, file_bytes, plain).loaded, "", run_bytes)
        more = self._learned.get_measured(digest, measured_conditions(description, prepared=True))
        return Known(copy_size(declared_bytes, file_bytes, manifest, more).loaded, key, run_bytes)

    def _batch_rows(self, digest: str, description: ModelDescription) -> int:
        """How many rows a batch may have, as far as that is known."""
        assert self._learned is not None
        if description.max_batch_size:
            return description.max_batch_size
        proof = self._learned.get_proof(digest, conditions_of(description))
        return max(1, proof.max_rows) if proof is not None else 1

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

    def _copy(self, digest: str, description: ModelDescription) -> tuple[str, Manifest | None]:
        if self._cache_dir is None or not can_prepare(description.backend):
            return "", None
        key = copy_key(digest, description.backend, dict(description.options))
        try:
            with (self._cache_dir / key / MANIFEST).open("rb") as file:
                manifest = parse_manifest(file.read(MAX_BYTES))
        except (OSError, ValueError):
            return "", None
        return (key, manifest) if not manifest.reason else ("", None)


@contextmanager
def known_sizes(state_dir: Path, cache_dir: Path | None) -> Iterator[KnownSizes]:
    """What is known now: a server may go on writing, so its store is copied first."""
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
            yield KnownSizes(learned, cache_dir)
        finally:
            learned.close()
