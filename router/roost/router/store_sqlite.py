"""The store of one node: a SQLite file in the state directory.

Its log is written ahead (WAL) and not synced at each write: what was written survives the end of the process, since
the kernel has it; a machine that loses power may lose the last writes, which are learned again, but not the file. One
process at a time writes; watches hear of the writes of their own.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roost.router.store import ABSENT, Changes, Entry, StoreError, Watch
from roost.router.store_schema import prepare
from roost.router.store_watches import Watches

log = logging.getLogger(__name__)

_BUSY_MS = 50
"""How long a write waits for another process that writes, such as somebody's ``sqlite3``. Loads wait for it, and what
is not written is learned again."""

_AFTER = b"\xff"
"""Sorts after every continuation of a prefix."""

_PUT = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
_GET = "SELECT value, version FROM entries WHERE key = ?"
_RANGE = "SELECT key, value, version FROM entries WHERE key >= ? AND key < ? ORDER BY key"


class SqliteStore:
    """See the module. Implements ``Store``."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._watches = Watches()
        self._connection = _open(path)

    def get(self, key: str) -> Entry | None:
        """See ``Store``."""
        try:  # not with _using: this is called for each file of each model, and a generator costs as much again
            with self._lock:
                row = self._connection.execute(_GET, (key.encode(),)).fetchone()
        except (sqlite3.Error, UnicodeError) as error:
            raise StoreError(str(error)) from error
        return Entry(*row) if row is not None else None

    def put(self, key: str, value: bytes) -> int:
        """See ``Store``."""
        with self._writing() as (db, changes):
            version = _put(db, key, value)
            changes[key] = Entry(value, version)
        return version

    def put_all(self, values: Mapping[str, bytes]) -> None:
        """See ``Store``."""
        with self._writing() as (db, changes):
            version = _next_version(db)
            db.executemany(_PUT, [(key.encode(), version, value) for key, value in values.items()])
            changes.update((key, Entry(value, version)) for key, value in values.items())

    def delete(self, key: str) -> bool:
        """See ``Store``."""
        with self._writing() as (db, changes):
            _next_version(db)
            there = _delete(db, key)
            if there:
                changes[key] = None
        return there

    def scan(self, prefix: str) -> dict[str, Entry]:
        """See ``Store``."""
        with self._using() as db:
            return _scan(db, prefix)

    def compare_and_set(self, key: str, expected: int, value: bytes | None) -> int | None:
        """See ``Store``."""
        with self._writing() as (db, changes):
            row = db.execute(_GET, (key.encode(),)).fetchone()
            if (row[1] if row is not None else ABSENT) != expected:
                return None
            if value is not None:
                version = _put(db, key, value)
                changes[key] = Entry(value, version)
                return version
            version = _next_version(db)
            if _delete(db, key):
                changes[key] = None
            return version

    def watch(self, prefix: str) -> Watch:
        """See ``Store``."""
        with self._using() as db:
            return self._watches.add(prefix, _scan(db, prefix))

    def close(self) -> None:
        """See ``Store``."""
        with self._lock:
            self._connection.close()
        self._watches.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        try:
            with self._lock:
                yield self._connection
        except (sqlite3.Error, UnicodeError) as error:
            raise StoreError(str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, Changes]]:
        """A transaction; watches hear of the changes that it collects, in the order in which they were made."""
        with self._using() as db:
            changes: Changes = {}
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db, changes
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some errors have ended it already
                    db.execute("ROLLBACK")
                raise
            self._watches.tell(changes)


def _put(db: sqlite3.Connection, key: str, value: bytes) -> int:
    version = _next_version(db)
    db.execute(_PUT, (key.encode(), version, value))
    return version


def _delete(db: sqlite3.Connection, key: str) -> bool:
    return db.execute("DELETE FROM entries WHERE key = ?", (key.encode(),)).rowcount > 0


def _next_version(db: sqlite3.Connection) -> int:
    db.execute("UPDATE last_write SET version = version + 1")
    (version,) = db.execute("SELECT version FROM last_write").fetchone()
    return int(version)


def _scan(db: sqlite3.Connection, prefix: str) -> dict[str, Entry]:
    start = prefix.encode()
    rows = db.execute(_RANGE, (start, start + _AFTER))
    return {key.decode(errors="replace"): Entry(value, version) for key, value, version in rows}


def _open(path: Path) -> sqlite3.Connection:
    """Opens the file; where the disk does not allow that, memory has to do."""
    try:
        return _open_file(path)
    except (OSError, sqlite3.DatabaseError) as error:
        log.error("the store can't be opened (%s): what is learned now will be forgotten at the end", error)
        return _connect(":memory:")


def _open_file(path: Path) -> sqlite3.Connection:
    """Opens the file; one that is damaged or of a newer version is set aside and a new one begun."""
    try:
        return _connect(path)
    except sqlite3.OperationalError:  # the disk's fault, not the file's
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_suffix(".damaged")
        log.warning("the store can't be used (%s): it is kept as %s and a new one is begun", error, aside.name)
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        _check(connection)
        prepare(connection)
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    """Looks at all pages, or reads of one that is damaged would fail at this start and after every other one.

    Raises:
        sqlite3.DatabaseError: If one is damaged.
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))
