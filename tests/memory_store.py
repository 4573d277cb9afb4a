"""A store in a dictionary, for tests of what is kept in one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from roost.router.store import ABSENT, Changes, Entry, StoreError, Watch
from roost.router.store_watches import Watches


class MemoryStore:
    """See the module. Implements ``Store``, but that nothing survives the process.

    Attributes:
        failing: Whether every call raises.
    """

    def __init__(self) -> None:
        self.failing = False
        self._lock = threading.Lock()
        self._watches = Watches()
        self._entries: dict[str, Entry] = {}
        self._last_write = 1

    def get(self, key: str) -> Entry | None:
        with self._using():
            return self._entries.get(key)

    def put(self, key: str, value: bytes) -> int:
        with self._using() as changes:
            changes[key] = self._entries[key] = Entry(value, self._next())
            return self._last_write

    def put_all(self, values: Mapping[str, bytes]) -> None:
        for key, value in values.items():
            self.put(key, value)

    def delete(self, key: str) -> bool:
        with self._using() as changes:
            self._next()
            if self._entries.pop(key, None) is None:
                return False
            changes[key] = None
            return True

    def scan(self, prefix: str) -> dict[str, Entry]:
        with self._using():
            return self._scan(prefix)

    def compare_and_set(self, key: str, expected: int, value: bytes | None) -> int | None:
        with self._using() as changes:
            entry = self._entries.get(key)
            if (entry.version if entry is not None else ABSENT) != expected:
                return None
            version = self._next()
            if value is not None:
                changes[key] = self._entries[key] = Entry(value, version)
            elif self._entries.pop(key, None) is not None:
                changes[key] = None
            return version

    def watch(self, prefix: str) -> Watch:
        with self._using():
            return self._watches.add(prefix, self._scan(prefix))

    def close(self) -> None:
        self._watches.close()
        self.failing = True

    def _next(self) -> int:
        self._last_write += 1
        return self._last_write

    def _scan(self, prefix: str) -> dict[str, Entry]:
        return {key: self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)}

    @contextmanager
    def _using(self) -> Iterator[Changes]:
        with self._lock:
            if self.failing:
                raise StoreError("told to fail")
            changes: Changes = {}
            yield changes
            self._watches.tell(changes)
