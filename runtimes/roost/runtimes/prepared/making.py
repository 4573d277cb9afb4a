"""Makes a prepared copy, and keeps it only if it answers the same and is better than the model itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from roost.core.units import format_bytes
from roost.runtimes.child import NO_TELEMETRY
from roost.runtimes.memory import MALLOC_ENVIRONMENT
from roost.runtimes.prepared.cache import Busy, CopyCache, TooLarge
from roost.runtimes.prepared.forms import FORMS, has_copies
from roost.runtimes.prepared.identity import can_prepare, copy_key
from roost.runtimes.prepared.manifest import Manifest, Measured

WORTH_LOAD_S = 0.020
WORTH_PRIVATE_BYTES = 8 << 20
TIMEOUT_S = 600.0
DISK_BYTES_PER_ARTIFACT_BYTE = 2.2
DISK_RESERVE_BYTES = 64 << 20


class NoCopy(Exception):
    """There will be no copy; the text says why. It holds until the files change."""


class NotNow(Exception):
    """There is no copy now, for a reason that may pass; the text says which."""


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """A model to make a copy of.

    Attributes:
        path: The model file.
        root: The folder that it and its external data live in.
        digest: The digest of its files.
        files: Name below the root, inode, size and time of change of each of them, when the digest was made.
        backend: Its runtime.
        options: Options of its load.
        threads: Threads that a run may use.
        samples: What ``model_warmup`` of its configuration gives.
        samples_root: The model's folder.
        memory_bytes: What trying it may take.
    """

    path: str
    root: str
    digest: str
    files: Sequence[Sequence[Any]]
    backend: str
    memory_bytes: int
    options: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    samples: Sequence[Mapping[str, Any]] = ()
    samples_root: str = ""

    @property
    def key(self) -> str:
        """The key of the copy."""
        return copy_key(self.digest, self.backend, self.options)

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(int(file[2]) for file in self.files)

    def unchanged(self) -> bool:
        """Whether the files are still those that have the digest."""
        for name, inode, size, mtime_ns in self.files:
            try:
                status = os.stat(os.path.join(self.root, name))
            except OSError:
                return False
            if (status.st_ino, status.st_size, status.st_mtime_ns) != (inode, size, mtime_ns):
                return False
        return True


Trial: TypeAlias = Callable[[CopyOrder, Mapping[str, Any]], Mapping[str, Any]]
"""Has a fresh process do one thing with a model, changed fields of the job aside; raises ``NotNow`` if it can't."""


def make_copy(cache: CopyCache, order: CopyOrder, trial: Trial | None = None) -> Manifest:
    """Makes a copy unless one is there, or was found to be of no use, and says what is known now.

    Args:
        cache: Where it is kept.
        order: The model.
        trial: Starts a process; tests have one that only says what came of it.

    Raises:
        NotNow: If it can't be said now: another process is at it, the disk is full, the files changed, loading failed.
    """
    if not can_prepare(order.backend) or not has_copies(order.backend, order.path, order.options):
        raise NotNow(f"there are no prepared copies for '{order.backend}', or not of such models")
    key = order.key
    known = cache.look_up(key)
    if known is not None:
        return known
    try:
        with cache.making(key) as folder:
            manifest = _make(cache, order, folder, trial or in_fresh_process)
            if not order.unchanged():
                raise NotNow("its files changed")
            cache.keep(key, folder, manifest)
            return manifest
    except Busy:
        raise NotNow("another process makes it") from None
    except TooLarge:
        raise NotNow(f"it takes more than the {format_bytes(cache.limit_bytes)} of the cache") from None
    except OSError as error:
        raise NotNow(f"it can't be written: {error.strerror}") from None


def _make(cache: CopyCache, order: CopyOrder, folder: Path, trial: Trial) -> Manifest:
    """Fills the folder with a copy, or with nothing."""
    try:
        plain = [trial(order, {"job": "measure", "watch": True})]
        _check_worth(plain[0])
        _check_space(cache, order)
        entry = _save(order, folder, trial)
        of_copy = {"job": "measure", "path": str(folder / entry), "root": str(folder), "prepared": True}
        copy = [trial(order, {**of_copy, "watch": True})]
        for _ in range(FORMS[order.backend].trials - 1):
            plain.append(trial(order, {"job": "measure"}))
            copy.append(trial(order, of_copy))
        _compare(plain, copy, FORMS[order.backend].same_bytes)
    except NoCopy as reason:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Manifest(order.digest, order.backend, reason=str(reason))
    return Manifest(order.digest, order.backend, "", entry, cache.records(folder), _least(plain), _least(copy))


def _save(order: CopyOrder, folder: Path, trial: Trial) -> str:
    """Has the copy written; returns the file of it that its runtime is given.

    Raises:
        NoCopy: If the model can't be saved in that form.
    """
    saved = trial(order, {"job": "save", "target": str(folder)})
    if "refused" in saved:
        raise NoCopy(str(saved["refused"]))
    return str(saved["entry"])


def _check_worth(plain: Mapping[str, Any]) -> None:
    if plain["load_s"] <= WORTH_LOAD_S and plain["private_bytes"] <= WORTH_PRIVATE_BYTES:
        raise NoCopy("it loads fast and takes little memory without")
    if not plain["answers"]:
        raise NoCopy("it takes no made-up inputs, so answers can't be compared")


def _compare(plain: Sequence[Mapping[str, Any]], copy: Sequence[Mapping[str, Any]], same_bytes: int) -> None:
    """Whether the copy may be used, and should.

    Args:
        plain: Trials of the model itself.
        copy: Trials of the copy.
        same_bytes: See ``Form``.

    Raises:
        NoCopy: If not, with the reason.
    """
    if any(trial["answers"] != plain[0]["answers"] for trial in plain):
        raise NoCopy("its answers to the same inputs differ from time to time")
    if any(trial["answers"] != plain[0]["answers"] or trial["signature"] != plain[0]["signature"] for trial in copy):
        raise NoCopy("the copy's answers differ")
    without, with_copy = _least(plain), _least(copy)
    if with_copy.ready_s > without.ready_s or with_copy.private_bytes > without.private_bytes + same_bytes:
        raise NoCopy("the copy is no better")


def _least(trials: Sequence[Mapping[str, Any]]) -> Measured:
    return Measured(
        min(float(trial["load_s"]) for trial in trials),
        min(float(trial["first_run_s"]) for trial in trials),
        min(int(trial["private_bytes"]) for trial in trials),
        max(int(trial["peak_bytes"]) for trial in trials),
        max(int(trial["mappings"]) for trial in trials),
    )


def _check_space(cache: CopyCache, order: CopyOrder) -> None:
    if order.size_bytes > cache.limit_bytes:
        raise TooLarge
    status = os.statvfs(cache.folder)
    need_bytes = int(DISK_BYTES_PER_ARTIFACT_BYTE * order.size_bytes) + DISK_RESERVE_BYTES
    if status.f_bavail * status.f_frsize < need_bytes:
        raise NotNow(f"there is no space for it on the disk: it may need {format_bytes(need_bytes)}")


def in_fresh_process(
    order: CopyOrder, changes: Mapping[str, Any], keep_open: int | None = None, timeout_s: float = TIMEOUT_S
) -> Mapping[str, Any]:
    """See ``Trial``; the process is ``roost.runtimes.prepared.fresh``.

    Args:
        order: The model.
        changes: Fields of the job.
        keep_open: A descriptor that the process has as well, so that whoever reads its other end sees when it is gone.
        timeout_s: After that it is ended.
    """
    job = {
        "backend": order.backend,
        "path": order.path,
        "root": order.root,
        "options": dict(order.options),
        "threads": order.threads,
        "memory_bytes": order.memory_bytes,
        "samples": list(order.samples),
        "samples_root": order.samples_root,
        "prepared": False,
        "watch": False,
        **changes,
    }
    command = [sys.executable, "-P", "-m", "roost.runtimes.prepared.fresh", str(os.getpid())]
    environment = {**os.environ, **MALLOC_ENVIRONMENT, **NO_TELEMETRY}  # as workers have it
    data = json.dumps(job).encode()
    try:
        ended = subprocess.run(
            command,
            input=data,
            stdout=subprocess.PIPE,
            env=environment,
            timeout=timeout_s,
            check=False,
            pass_fds=() if keep_open is None else (keep_open,),
        )
        answer: Mapping[str, Any] = json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        raise NotNow(f"it was not ready within {timeout_s:g} s") from None
    except ValueError:  # it may have been killed for its memory
        raise NotNow(f"the process that tried it ended with exit code {ended.returncode}") from None
    if "error" in answer:
        raise NotNow(str(answer["error"]))
    return answer
