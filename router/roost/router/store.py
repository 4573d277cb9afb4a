"""What must survive a restart, behind one protocol, and its form on one node: SQLite in the state directory.

All methods block and are called on an executor's thread. Losing the store never stops traffic: a failing call is
logged once and answered as if nothing were stored.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cachetools import LRUCache
from roost.core.tensors import Signature
from roost.router.proof import Proof

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPLAIN_EVERY_S = 60.0
RECENT_FILES = 4096
RECENT_SIGNATURES = 1024
RECENT_PROOFS = 1024

_SCHEMA_VERSION = 2
_OLDER_VERSIONS = (0, 1)  # 0: a new file; a table was added after 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS file_digests (
    path TEXT NOT NULL PRIMARY KEY,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    digest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signatures (
    digest TEXT NOT NULL,
    backend TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (digest, backend)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS proofs (
    digest TEXT NOT NULL,
    conditions TEXT NOT NULL,
    max_rows INTEGER NOT NULL,
    reason TEXT NOT NULL,
    failures INTEGER NOT NULL,
    PRIMARY KEY (digest, conditions)
) WITHOUT ROWID;
"""


class Store(Protocol):
    """Digests of files by identity; signatures by digest and backend; proofs by digest and what they hold under."""

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """The digest of a file that has not changed since it was put, else None."""

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """Remembers a file's digest."""

    def get_signature(self, digest: str, backend: str) -> Signature | None:
        """What a backend said of an artifact, else None."""

    def put_signature(self, digest: str, backend: str, signature: Signature) -> None:
        """Remembers what a backend says of an artifact."""

    def get_proof(self, digest: str, conditions: str) -> Proof | None:
        """What was found out about batches of an artifact, else None."""

    def put_proof(self, digest: str, conditions: str, proof: Proof) -> None:
        """Remembers what was found out about batches of an artifact."""

    def close(self) -> None:
        """Ends the use of the store."""


class SqliteStore:
    """A store in one SQLite file. Safe to share between threads.

    What was put lately is also kept in memory, so that a disk that fails does not have every file hashed at every load.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._digests: LRUCache[str, tuple[int, int, int, str]] = LRUCache(RECENT_FILES)
        self._signatures: LRUCache[tuple[str, str], Signature] = LRUCache(RECENT_SIGNATURES)
        self._proofs: LRUCache[tuple[str, str], Proof] = LRUCache(RECENT_PROOFS)
        self._silent_until = 0.0
        self._connection = self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        """Opens the file; where the disk does not allow that, memory has to do."""
        try:
            return self._open_file(path)
        except (OSError, sqlite3.DatabaseError) as error:
            log.error("the store can't be opened (%s): what is learned now will be forgotten at the end", error)
            return self._connect(":memory:")

    def _open_file(self, path: Path) -> sqlite3.Connection:
        """Opens the file; one that is damaged or of a newer version is set aside and a new one begun."""
        try:
            return self._connect(path)
        except sqlite3.OperationalError:  # the disk's fault, not the file's
            raise
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            log.warning("the store can't be used (%s): it is kept as %s and a new one is begun", error, aside.name)
            path.replace(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return self._connect(path)

    def _connect(self, path: Path | str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found not in (*_OLDER_VERSIONS, _SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it has schema {found}, this server knows {_SCHEMA_VERSION}")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """See ``Store``."""
        with self._lock:
            recent = self._digests.get(path)
        if recent is not None and recent[:3] == (inode, size, mtime_ns):
            return recent[3]
        row = self._guard(
            lambda db: db.execute(
                "SELECT digest FROM file_digests WHERE path=? AND inode=? AND size=? AND mtime_ns=?",
                (path, inode, size, mtime_ns),
            ).fetchone()
        )
        return str(row[0]) if row else None

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """See ``Store``."""
        with self._lock:
            self._digests[path] = (inode, size, mtime_ns, digest)
        self._guard(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO file_digests VALUES (?,?,?,?,?)", (path, inode, size, mtime_ns, digest)
            )
        )

    def get_signature(self, digest: str, backend: str) -> Signature | None:
        """See ``Store``."""
        with self._lock:
            recent = self._signatures.get((digest, backend))
        if recent is not None:
            return recent
        row = self._guard(
            lambda db: db.execute(
                "SELECT signature FROM signatures WHERE digest=? AND backend=?", (digest, backend)
            ).fetchone()
        )
        try:
            return Signature.from_json(json.loads(row[0])) if row else None
        except (ValueError, TypeError, LookupError, AttributeError):  # damaged: it is learned again
            return None

    def put_signature(self, digest: str, backend: str, signature: Signature) -> None:
        """See ``Store``."""
        with self._lock:
            self._signatures[digest, backend] = signature
        text = json.dumps(signature.to_json(), separators=(",", ":"))
        self._guard(lambda db: db.execute("INSERT OR REPLACE INTO signatures VALUES (?,?,?)", (digest, backend, text)))

    def get_proof(self, digest: str, conditions: str) -> Proof | None:
        """See ``Store``."""
        with self._lock:
            recent = self._proofs.get((digest, conditions))
        if recent is not None:
            return recent
        row = self._guard(
            lambda db: db.execute(
                "SELECT max_rows, reason, failures FROM proofs WHERE digest=? AND conditions=?", (digest, conditions)
            ).fetchone()
        )
        try:
            return Proof(int(row[0]), str(row[1]), int(row[2])) if row else None
        except (ValueError, TypeError):  # damaged: it is found out again
            return None

    def put_proof(self, digest: str, conditions: str, proof: Proof) -> None:
        """See ``Store``."""
        with self._lock:
            self._proofs[digest, conditions] = proof
        values = (digest, conditions, proof.max_rows, proof.reason, proof.failures)
        self._guard(lambda db: db.execute("INSERT OR REPLACE INTO proofs VALUES (?,?,?,?,?)", values))

    def close(self) -> None:
        """See ``Store``."""
        with self._lock:
            self._digests.clear()
            self._signatures.clear()
            self._proofs.clear()
            self._connection.close()

    def _guard(self, call: Callable[[sqlite3.Connection], T]) -> T | None:
        try:
            with self._lock:
                result = call(self._connection)
        except sqlite3.Error as error:
            now = time.monotonic()
            if now >= self._silent_until:
                log.error("the store fails (%s): serving goes on without it", error)
                self._silent_until = now + COMPLAIN_EVERY_S
            return None
        return result
