"""The tables of a SQLite store, and how files of former versions become what they are now.

A file is brought up to date in one transaction, so a server that ends in the midst of it finds the old file again.
"""

from __future__ import annotations

import json
import sqlite3

VERSION = 3
_OLDER = (0, 1, 2)  # 0: a new file; 1: without proofs; 2: a table for each kind of thing

# Keys are bytes: then a prefix is a range, whatever characters it ends with, since no UTF-8 has the byte 255.
_TABLES = (
    "CREATE TABLE entries (key BLOB NOT NULL PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE last_write (version INTEGER NOT NULL)",
    "INSERT INTO last_write VALUES (1)",
)


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables in a new file, and takes over what an older one holds.

    Raises:
        sqlite3.DatabaseError: If the file is damaged or of a newer version.
    """
    if _version_of(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version_of(connection) != VERSION:  # another process may have done it meanwhile
            for statement in _TABLES:
                connection.execute(statement)
            _take_over(connection)
            connection.execute(f"PRAGMA user_version={VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version_of(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found not in (*_OLDER, VERSION):
        raise sqlite3.DatabaseError(f"it has schema {found}, this server knows {VERSION}")
    return int(found)


def _take_over(connection: sqlite3.Connection) -> None:
    """Moves what tables of former versions hold to where ``roost.router.learned`` looks for it now."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    if "file_digests" in tables:
        connection.execute(
            "INSERT INTO entries SELECT CAST('files/' || path AS BLOB), 1, "
            "CAST(inode || ' ' || size || ' ' || mtime_ns || ' ' || digest AS BLOB) FROM file_digests"
        )
    if "signatures" in tables:  # by bytes, since a damaged one need not be text
        connection.execute(
            "INSERT INTO entries SELECT CAST('signatures/' || digest || '/' || backend AS BLOB), 1, "
            "CAST(signature AS BLOB) FROM signatures"
        )
    if "proofs" in tables:
        rows = connection.execute("SELECT digest, conditions, max_rows, reason, failures FROM proofs").fetchall()
        values = [
            (f"proofs/{digest}/{conditions}".encode(), json.dumps([max_rows, reason, failures]).encode())
            for digest, conditions, max_rows, reason, failures in rows
        ]
        connection.executemany("INSERT INTO entries VALUES (?, 1, ?)", values)
    for table in ("file_digests", "signatures", "proofs"):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
