"""What this process may use of the machine: CPUs and memory, as the kernel and its cgroups limit them.

Both cgroup versions are read, and mixtures of them: a process is in one group of each hierarchy, and every
group above it up to the mount point limits it as well, so the smallest figure counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes 'no limit' as the largest number of pages it can count, about 2**63 bytes.
_UNLIMITED_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs that this process may keep busy, at least one, and the memory it may have."""

    cpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: the group that is its root, where it is mounted, and its version 1 controllers."""

    root: str
    point: str
    controllers: frozenset[str]
    version: int


def read_machine(root: Path = Path("/")) -> Machine:
    """Reads the limits of this process; ``root`` is where ``/proc`` and ``/sys`` are, for tests."""
    affinity = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    total = memory_total_bytes(root)
    limit = memory_limit_bytes(root)
    # Threads beyond a fractional quota would only be throttled, so it is rounded down.
    cpus = affinity if quota is None else min(affinity, int(quota))
    return Machine(max(1, cpus), total if limit is None else min(total, limit))


def cpu_quota(root: Path) -> float | None:
    """CPUs that the cgroups of this process allow, None if they do not limit them."""
    quotas = []
    for folder, version in _groups(root, "cpu"):
        if version == 2:
            quotas.append(parse_cpu_max(_read(folder / "cpu.max")))
        else:
            pair = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            quotas.append(parse_cpu_max(pair))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit_bytes(root: Path) -> int | None:
    """Bytes that the cgroups of this process allow, None if they do not limit them."""
    limits = []
    for folder, version in _groups(root, "memory"):
        names = ("memory.max",) if version == 2 else ("memory.limit_in_bytes",)
        limits += [parse_memory_limit(_read(folder / name)) for name in names]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_total_bytes(root: Path) -> int:
    """Bytes of memory of the machine.

    Raises:
        OSError: If ``/proc/meminfo`` can't be read.
        ValueError: If it does not say.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError("/proc/meminfo has no MemTotal")


def max_mappings(root: Path = Path("/")) -> int | None:
    """How many mappings a process may have, None if the kernel does not say."""
    text = _read(root / "proc/sys/vm/max_map_count").strip()
    return int(text) if text.isdecimal() and int(text) else None


def parse_cpu_max(text: str) -> float | None:
    """Reads ``quota period`` in microseconds; ``max`` or -1 as quota means none."""
    fields = text.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def parse_memory_limit(text: str) -> int | None:
    """Reads a limit in bytes; ``max`` and version 1's astronomic numbers mean none."""
    text = text.strip()
    if not text.isdecimal() or int(text) >= _UNLIMITED_BYTES:
        return None
    return int(text)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders, from the process's own group up to the mount point, that may limit a controller."""
    mounts = list(_mounts(_read(root / "proc/self/mountinfo")))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        version = 1 if names else 2
        if version == 1 and controller not in names.split(","):
            continue
        for mount in mounts:
            if mount.version == version and (version == 2 or controller in mount.controllers):
                top = root / mount.point.lstrip("/")
                below = _below(mount.root, group)
                yield from ((top.joinpath(*below[:depth]), version) for depth in range(len(below), -1, -1))


def _below(mount_root: str, group: str) -> tuple[str, ...]:
    """A group's path relative to what is mounted; the mount itself if the group lies outside (own namespace)."""
    root_parts = [part for part in mount_root.split("/") if part]
    parts = [part for part in group.split("/") if part]
    if ".." in parts or parts[: len(root_parts)] != root_parts:
        return ()
    return tuple(parts[len(root_parts) :])


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if not separator or len(fields) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        yield _Mount(fields[3], fields[4], frozenset(tail[2].split(",")), 2 if tail[0] == "cgroup2" else 1)


def _read(path: Path) -> str:
    """A file's text; empty if there is none, as in a group without that controller."""
    try:
        return path.read_text()
    except OSError:
        return ""
