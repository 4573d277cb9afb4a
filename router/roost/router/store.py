"""What must survive a restart, as bytes under keys: the protocol that every implementation gives.

What the rest of the router remembers, and in which form, is ``roost.router.learned``; on one node the bytes are in
SQLite (``roost.router.store_sqlite``). All methods block and are called on an executor's thread; they may be called
from any number of threads at once.

What every implementation promises:

* A write that has returned survives the end of the process, however it ends (``kill -9``). One that was under way is
  there whole or not at all.
* Each write has a version that is larger than those of all writes before it, deletions and other keys included.
* Reads see all writes that have returned.
* A watch tells of every key's latest state at least once, and of the states of one key in their order. States
  in between may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias


class StoreError(Exception):
    """The store could not do it: its disk or its server fails, or it is closed. Nothing is said of what is stored."""


class Entry(NamedTuple):
    """What is stored under a key, and the version of the write that put it there (at least 1)."""

    value: bytes
    version: int


ABSENT = 0
"""The version of a key that is not there, for ``compare_and_set``."""

Changes: TypeAlias = dict[str, Entry | None]
"""States of keys by key; None for one that was deleted."""


class Watch(Protocol):
    """Tells of changes of the keys with a prefix. One thread at a time."""

    def next(self, timeout_s: float) -> Changes:
        """Waits until there is something to tell; the first call tells what is there already.

        Returns:
            What became of the keys that were written since the last call; nothing if the time is over.

        Raises:
            StoreError: If the watch or the store is closed, or the watch broke; whoever goes on watching begins anew.
        """

    def close(self) -> None:
        """Ends the watch, and a call of ``next`` that waits."""


class Store(Protocol):
    """See the module. Keys are text of Unicode scalar values, in which ``/`` separates levels by convention."""

    def get(self, key: str) -> Entry | None:
        """What is stored under a key.

        Raises:
            StoreError: If that can't be said.
        """

    def put(self, key: str, value: bytes) -> int:
        """Stores a value, whatever was there, and returns its version.

        Raises:
            StoreError: If it was not stored, or if that is not known.
        """

    def put_all(self, values: Mapping[str, bytes]) -> None:
        """Stores many values at the cost of a few; if that fails, some of them may be stored.

        Raises:
            StoreError: If not all were stored, or if that is not known.
        """

    def delete(self, key: str) -> bool:
        """Removes a key and returns whether it was there.

        Raises:
            StoreError: If that could not be done, or if that is not known.
        """

    def scan(self, prefix: str) -> dict[str, Entry]:
        """All entries whose key begins with ``prefix``, sorted by key, as they were at one moment.

        Raises:
            StoreError: If that can't be said.
        """

    def compare_and_set(self, key: str, expected: int, value: bytes | None) -> int | None:
        """Stores a value if nobody has written the key since it was read: of many who try, one succeeds.

        Args:
            key: The key.
            expected: The version that it must still have, ``ABSENT`` if it must not be there.
            value: What to store; None to delete the key.

        Returns:
            The version of the write; None if the key has another version, and nothing was done.

        Raises:
            StoreError: If it was not done, or if that is not known.
        """

    def watch(self, prefix: str) -> Watch:
        """Begins to watch the keys that begin with ``prefix``.

        Raises:
            StoreError: If that can't be done.
        """

    def close(self) -> None:
        """Ends the use of the store; every call after it raises ``StoreError``."""
