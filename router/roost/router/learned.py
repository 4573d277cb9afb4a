"""What the router has learned about files and models, and keeps in a store for the next start.

Losing the store never stops traffic: a failing call is logged, not more than once a minute, and answered as if nothing
were stored. The same holds for what can't be understood: it is learned again. Methods block and are called on an
executor's thread.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cachetools import LRUCache
from roost.core.figures import Figures
from roost.core.names import VersionKey
from roost.core.tensors import Signature
from roost.router.proof import Proof
from roost.router.store import Store, StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPLAIN_EVERY_S = 60.0
RECENT_FILES = 4096
RECENT_SIGNATURES = 1024
RECENT_PROOFS = 1024
RECENT_MEASURED = 1024

_FILES = "files/"  # path
_SIGNATURES = "signatures/"  # artifact digest, backend
_PROOFS = "proofs/"  # artifact digest, conditions
_MEASURED = "measured/"  # artifact digest, conditions
_PREPARED = "prepared/"  # artifact digest, conditions
_USED = "used/"  # namespace, model, version

_MISREAD = (ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True, slots=True)
class Measured:
    """What an instance of an artifact took when it was looked at.

    Attributes:
        figures: Of memory, once it was loaded and had run.
        load_s: How long its load took; 0 if that was not measured.
        peak_bytes: The most private memory that it took at any time of its load; 0 if that was not measured.
        run_bytes: What a run takes beside that while it lasts, for each row; 0 if that was not measured.
    """

    figures: Figures
    load_s: float = 0.0
    peak_bytes: int = 0
    run_bytes: int = 0


class Learned:
    """See the module. What was put lately is also kept in memory: a disk that fails costs no more than a restart.

    Args:
        store: Where it is kept. ``close`` closes it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._files: LRUCache[str, tuple[int, int, int, str]] = LRUCache(RECENT_FILES)
        self._signatures: LRUCache[str, Signature] = LRUCache(RECENT_SIGNATURES)
        self._proofs: LRUCache[str, Proof] = LRUCache(RECENT_PROOFS)
        self._measured: LRUCache[str, Measured] = LRUCache(RECENT_MEASURED)
        self._silent_until = 0.0

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        """The digest of a file that has not changed since it was put, else None."""
        with self._lock:
            recent = self._files.get(path)
        if recent is not None and recent[:3] == (inode, size, mtime_ns):
            return recent[3]
        text = self._get(_FILES + path, bytes.decode) or ""
        identity = f"{inode} {size} {mtime_ns} "
        return text[len(identity) :] if text.startswith(identity) else None

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        """Remembers a file's digest."""
        with self._lock:
            self._files[path] = (inode, size, mtime_ns, digest)
        self._put(_FILES + path, f"{inode} {size} {mtime_ns} {digest}".encode())

    def get_signature(self, digest: str, backend: str) -> Signature | None:
        """What a backend said of an artifact, else None."""
        key = f"{_SIGNATURES}{digest}/{backend}"
        signature = self._recent(self._signatures, key)
        if signature is None:
            signature = self._get(key, _signature_of)
            if signature is not None:
                with self._lock:
                    self._signatures[key] = signature
        return signature

    def has_signature(self, digest: str, backend: str, signature: Signature) -> bool:
        """Whether that was put or asked for lately; nothing is read from the store."""
        return self._recent(self._signatures, f"{_SIGNATURES}{digest}/{backend}") == signature

    def put_signature(self, digest: str, backend: str, signature: Signature) -> None:
        """Remembers what a backend says of an artifact."""
        key = f"{_SIGNATURES}{digest}/{backend}"
        with self._lock:
            self._signatures[key] = signature
        self._put(key, _json(signature.to_json()))

    def get_proof(self, digest: str, conditions: str) -> Proof | None:
        """What was found out about batches of an artifact, else None."""
        key = f"{_PROOFS}{digest}/{conditions}"
        return self._recent(self._proofs, key) or self._get(key, _proof_of)

    def put_proof(self, digest: str, conditions: str, proof: Proof) -> None:
        """Remembers what was found out about batches of an artifact."""
        key = f"{_PROOFS}{digest}/{conditions}"
        with self._lock:
            self._proofs[key] = proof
        self._put(key, _json([proof.max_rows, proof.reason, proof.failures]))

    def get_measured(self, digest: str, conditions: str) -> Measured | None:
        """What an instance of an artifact takes under conditions such as options and device, else None."""
        key = f"{_MEASURED}{digest}/{conditions}"
        return self._recent(self._measured, key) or self._get(key, _measured_of)

    def put_measured(self, digest: str, conditions: str, measured: Measured) -> None:
        """Remembers what an instance of an artifact takes."""
        key = f"{_MEASURED}{digest}/{conditions}"
        with self._lock:
            self._measured[key] = measured
        figures = measured.figures
        numbers = [figures.private_bytes, figures.mapped_bytes, figures.mappings]
        row = [*numbers, measured.load_s, measured.peak_bytes, measured.run_bytes, figures.device_bytes]
        self._put(key, _json(row if figures.device_bytes else row[:-1]))

    def get_prepared(self, digest: str, conditions: str) -> dict[str, Any] | None:
        """What came of preparing an artifact, in the words of whoever put it, else None."""
        return self._get(f"{_PREPARED}{digest}/{conditions}", _object_of)

    def put_prepared(self, digest: str, conditions: str, result: Mapping[str, Any]) -> None:
        """Remembers what came of preparing an artifact: anything that JSON can say."""
        self._put(f"{_PREPARED}{digest}/{conditions}", _json(dict(result)))

    def forget_prepared(self, digest: str, conditions: str) -> None:
        """Nothing is known of it any more, such as when the copy is gone."""
        self._guard(lambda: self._store.delete(f"{_PREPARED}{digest}/{conditions}"))

    def last_uses(self) -> list[tuple[VersionKey, float]]:
        """When versions were last used, in seconds since 1970; the last used one first."""
        uses = []
        for key, entry in (self._guard(lambda: self._store.scan(_USED)) or {}).items():
            try:
                uses.append((VersionKey(*key.removeprefix(_USED).split("/")), float(entry.value)))
            except _MISREAD:
                continue
        return sorted(uses, key=lambda use: use[1], reverse=True)

    def put_last_uses(self, uses: Mapping[VersionKey, float]) -> bool:
        """Remembers when versions were last used; returns whether it is stored."""

        def put() -> bool:
            self._store.put_all({_USED + "/".join(key): b"%.6f" % at for key, at in uses.items()})
            return True

        return self._guard(put) is True

    def forget_uses(self, keys: Iterable[VersionKey]) -> None:
        """Drops versions that are no more."""

        def drop() -> None:
            for key in keys:
                self._store.delete(_USED + "/".join(key))

        self._guard(drop)

    def close(self) -> None:
        """Ends the use of the store; nothing is known any more."""
        with self._lock:
            for recent in (self._files, self._signatures, self._proofs, self._measured):
                recent.clear()
        self._store.close()

    def _recent(self, recent: LRUCache[str, T], key: str) -> T | None:
        with self._lock:
            return recent.get(key)

    def _get(self, key: str, read: Callable[[bytes], T]) -> T | None:
        try:
            entry = self._store.get(key)
            return read(entry.value) if entry is not None else None
        except StoreError as error:
            self._complain(error)
        except _MISREAD:  # damaged: it is learned again
            pass
        return None

    def _put(self, key: str, value: bytes) -> None:
        self._guard(lambda: self._store.put(key, value))

    def _guard(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except StoreError as error:
            self._complain(error)
            return None

    def _complain(self, error: StoreError) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + COMPLAIN_EVERY_S
            log.error("the store fails (%s): serving goes on without it", error)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _signature_of(value: bytes) -> Signature:
    return Signature.from_json(json.loads(value))


def _proof_of(value: bytes) -> Proof:
    max_rows, reason, failures = json.loads(value)
    return Proof(int(max_rows), str(reason), int(failures))


def _measured_of(value: bytes) -> Measured:
    private_bytes, mapped_bytes, mappings, load_s, peak_bytes, *later = json.loads(value)
    run_bytes, device_bytes = [*map(int, later), 0, 0][:2]
    figures = Figures(int(private_bytes), int(mapped_bytes), int(mappings), device_bytes)
    return Measured(figures, float(load_s), int(peak_bytes), run_bytes)


def _object_of(value: bytes) -> dict[str, Any]:
    result = json.loads(value)
    if not isinstance(result, dict):
        raise TypeError("not an object")
    return result
