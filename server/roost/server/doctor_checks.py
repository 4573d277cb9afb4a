"""What ``roost doctor`` looks at: each check says what it found, whether that is well, and what would help."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.machinery import ModuleSpec
from pathlib import Path

from roost.core.units import format_bytes
from roost.router.plans import Limits
from roost.runtimes.adapters import ADAPTERS, installed_runtimes
from roost.runtimes.nvml import Nvml, open_nvml
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig
from roost.server.gpus import find_gpus
from roost.server.machine import cpu_quota, max_mappings, memory_limit_bytes, memory_total_bytes
from roost.server.sizing import (
    MAPPINGS_SHARE,
    OTHER_KINDS_BYTES,
    WORKER_IDLE_BYTES,
    default_budget_bytes,
    idle_bytes,
    limits_of,
)
from roost.server.values import ONLY_CPU

ENOUGH_FILES = 16_384
FEW_FILES = 1_024
ENOUGH_MAPPINGS = 262_144
MAPPINGS_OF_A_COPY = 300
"""A prepared copy has one for each weight; so many have models of the size of a small transformer."""
LITTLE_SPACE_BYTES = 1 << 30
_FRAMEWORKS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorflow",
    "tensorflow-cpu",
    "scikit-learn",
    "xgboost",
    "xgboost-cpu",
    "lightgbm",
)
"""Distributions of frameworks: one may have several that hold the same modules."""

_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs"})
_VECTOR_FLAGS = ("avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimd")


class Verdict(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found; ``advice`` is what would help, if anything has to."""

    name: str
    verdict: Verdict
    text: str
    advice: str = ""


def check_machine(config: ServeConfig, root: Path = Path("/")) -> Iterator[Finding]:
    """All checks of the machine, for a server with this configuration.

    Args:
        config: As the server would have it.
        root: Where ``/proc`` and ``/sys`` are, for tests.
    """
    yield check_python()
    yield check_runtimes()
    yield check_cpus(config, root)
    yield check_memory(config, root)
    yield check_peak(config)
    yield check_other_kinds(config)
    yield check_gpus(config)
    yield check_overcommit(root)
    yield check_mappings(root)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield check_shared_memory(config, root)


def check_python() -> Finding:
    """The interpreter and its C library."""
    libc, libc_version = platform.libc_ver()
    text = (
        f"{platform.python_implementation()} {platform.python_version()}, {libc or 'unknown C library'} {libc_version}"
    )
    if hasattr(sys, "gettotalrefcount"):
        return Finding("python", Verdict.NOTE, f"{text}, a debug build", "it is several times slower than others")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return Finding("python", Verdict.NOTE, f"{text}, free-threaded", "nobody has tried that; use an ordinary build")
    if libc != "glibc":
        advice = "memory of evicted models comes back to the system late or never; use an image with glibc"
        return Finding("python", Verdict.NOTE, text.rstrip(), advice)
    return Finding("python", Verdict.OK, text)


def check_runtimes() -> Finding:
    """Which frameworks there are to run models with."""
    found = installed_runtimes(name for name, adapter in ADAPTERS.items() if adapter.framework)
    if not found:
        return Finding("runtimes", Verdict.PROBLEM, "none is installed", "pip install 'roost[onnx]'")
    versions = [f"{name} {version}" for name in _FRAMEWORKS if (version := _version(name))]
    text = ", ".join(versions) or ", ".join(found)
    if sum(version.startswith("onnxruntime") for version in versions) > 1:
        return Finding("runtimes", Verdict.PROBLEM, text, "both have the same modules: uninstall one of them")
    if "onnxruntime" in found and not _version("onnx"):
        advice = "without it no model is batched that does not declare it: pip install 'roost[onnx]'"
        return Finding("runtimes", Verdict.NOTE, f"{text}, no onnx", advice)
    return Finding("runtimes", Verdict.OK, text)


def check_cpus(config: ServeConfig, root: Path) -> Finding:
    """What may be kept busy, and what it is good at."""
    quota, cpus = cpu_quota(root), config.machine.cpus
    flags = set(_read(root / "proc/cpuinfo").split())
    vector = next((flag for flag in _VECTOR_FLAGS if flag in flags), "")
    text = f"{cpus} for {config.workers} worker{'s' * (config.workers != 1)}" + (f", {vector}" if vector else "")
    if quota is not None and quota < 1:
        return Finding("cpus", Verdict.PROBLEM, f"{quota:g} of one", "a server that is throttled answers late")
    if config.workers > cpus:
        return Finding("cpus", Verdict.NOTE, text, "more workers than CPUs take memory and gain nothing")
    if flags and not vector:
        return Finding("cpus", Verdict.NOTE, text, "no wide vector instructions: models run several times slower")
    return Finding("cpus", Verdict.OK, text)


def check_memory(config: ServeConfig, root: Path) -> Finding:
    """Whether what loaded models may take is there."""
    total, limit = memory_total_bytes(root), memory_limit_bytes(root)
    text = f"{format_bytes(total)} in the machine"
    if limit is not None:
        text += f", {format_bytes(limit)} for this group of processes"
    budget = budget_bytes(config)
    text += f"; {format_bytes(budget)} for models"
    if budget <= 0:
        return Finding("memory", Verdict.PROBLEM, text, "there is none left for models: allow more, or fewer workers")
    if budget + idle_bytes(config.workers) > config.machine.memory_bytes:
        return Finding(
            "memory", Verdict.PROBLEM, text, "--memory-budget is more than there is: the kernel ends processes"
        )
    available = _available_bytes(root)
    if limit is None and available is not None and available < budget:
        advice = f"only {format_bytes(available)} are available now: end other programs, or set --memory-budget"
        return Finding("memory", Verdict.NOTE, text, advice)
    return Finding("memory", Verdict.OK, text)


def check_peak(config: ServeConfig) -> Finding:
    """Whether everything at its limit at once would still fit."""
    arenas = config.workers * config.arena_bytes
    peak = budget_bytes(config) + idle_bytes(config.workers) + config.body_budget_bytes
    peak += config.answer_budget_bytes + min(arenas, config.body_budget_bytes + config.answer_budget_bytes)
    text = f"{format_bytes(peak)} with all models, requests and answers at their limits"
    if peak > config.machine.memory_bytes:
        advice = "more than there is: lower --memory-budget, --body-budget or --answer-budget if large tensors come"
        return Finding("peak", Verdict.NOTE, text, advice)
    return Finding("peak", Verdict.OK, text)


def check_other_kinds(
    config: ServeConfig, find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec
) -> Finding:
    """What workers of other kinds would take that a model of their frameworks needs.

    Args:
        config: As the server would have it.
        find: Looks for a top-level module.
    """
    installed = {ADAPTERS[name].kind for name in installed_runtimes(ADAPTERS, find)}
    if not config.code_repositories:
        installed.discard("python")
    kinds = {kind: count for kind, count in config.workers_of.items() if count and kind in installed}
    if not kinds:
        return Finding("other kinds", Verdict.OK, "no other framework than ONNX Runtime can be used")
    needs = {kind: OTHER_KINDS_BYTES[kind] + (count - 1) * WORKER_IDLE_BYTES for kind, count in kinds.items()}
    text = ", ".join(f"{kind} {format_bytes(needs[kind])}" for kind in kinds) + " once a model needs them"
    limit = limits(config)
    if sum(needs.values()) > limit.memory_bytes - limit.private_bytes:
        advice = "more than is left beside --memory-budget: lower that, or set --workers-of KIND=0 for what is not used"
        return Finding("other kinds", Verdict.NOTE, text, advice)
    return Finding("other kinds", Verdict.OK, text)


def check_gpus(config: ServeConfig, open_library: Callable[[], Nvml] = open_nvml) -> Finding:
    """The GPUs that models would run on."""
    if config.devices == ONLY_CPU:
        return Finding("gpus", Verdict.OK, "not used")
    try:
        found = find_gpus(config, open_library)
    except ConfigError as error:
        return Finding("gpus", Verdict.PROBLEM, str(error), "name others with --devices, or none")
    if not found.gpus:
        return Finding("gpus", Verdict.OK, f"not used: {found.reason}")
    text = ", ".join(
        f"{gpu.name} {gpu.product} ({format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free)"
        for gpu in found.gpus
    )
    if not found.has_framework:
        advice = "no framework is installed that was built for GPUs, such as roost[onnx-gpu]: models run on the CPU"
        return Finding("gpus", Verdict.NOTE, text, advice)
    return Finding("gpus", Verdict.OK, text)


def check_overcommit(root: Path) -> Finding:
    """Whether address space has to be covered by memory."""
    if _read(root / "proc/sys/vm/overcommit_memory").strip() == "2":
        advice = "runtimes reserve far more address space than they use: sysctl -w vm.overcommit_memory=0"
        return Finding("overcommit", Verdict.PROBLEM, "strict", advice)
    return Finding("overcommit", Verdict.OK, "allowed")


def check_mappings(root: Path) -> Finding:
    """How many files and pieces of memory a process may map."""
    limit = max_mappings(root) or 0
    copies = int(MAPPINGS_SHARE * limit) // MAPPINGS_OF_A_COPY
    text = f"{limit:,} for a process: about {copies:,} prepared copies of models with {MAPPINGS_OF_A_COPY} weights"
    if 0 < limit < ENOUGH_MAPPINGS:
        return Finding("mappings", Verdict.NOTE, text, "for thousands of models: sysctl -w vm.max_map_count=1048576")
    return Finding("mappings", Verdict.OK, text)


def check_open_files(limit: int) -> Finding:
    """How many connections and files there may be. The server raises its soft limit to the hard one."""
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", Verdict.OK, "no limit")
    text = f"{limit:,} for a process, so nearly as many connections"
    if limit < FEW_FILES:
        return Finding("open files", Verdict.PROBLEM, text, f"ulimit -Hn {ENOUGH_FILES}, or LimitNOFILE= of its unit")
    if limit < ENOUGH_FILES:
        return Finding("open files", Verdict.NOTE, text, f"for many clients: ulimit -Hn {ENOUGH_FILES}")
    return Finding("open files", Verdict.OK, text)


def check_shared_memory(config: ServeConfig, root: Path) -> Finding:
    """Memory that processes share: anonymous files for workers, ``/dev/shm`` for clients."""
    try:
        os.close(os.memfd_create("roost-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        advice = "large tensors go through sockets: allow memfd_create, or set --arena-size 0"
        return Finding("shared memory", Verdict.PROBLEM, f"no anonymous files: {error.strerror}", advice)
    if not config.allow_client_shm:
        return Finding("shared memory", Verdict.OK, "anonymous files; /dev/shm is not used without --allow-client-shm")
    try:
        size = _size_bytes(root / "dev/shm")
    except OSError as error:
        return Finding("shared memory", Verdict.PROBLEM, f"/dev/shm: {error.strerror}", "mount a tmpfs there")
    if size <= 64 << 20:  # what containers have by default
        advice = "clients' regions have to fit: --shm-size of docker run, or an emptyDir in memory"
        return Finding("shared memory", Verdict.NOTE, f"/dev/shm has {format_bytes(size)}", advice)
    return Finding("shared memory", Verdict.OK, f"/dev/shm has {format_bytes(size)}")


def check_folders(config: ServeConfig, root: Path = Path("/")) -> Iterator[Finding]:
    """The folders that the server keeps files in."""
    yield check_folder("--state-dir", config.state_dir, LITTLE_SPACE_BYTES, root)
    if config.cache_bytes:
        yield check_folder("--cache-dir", config.cache_dir, config.cache_bytes, root)


def check_folder(
    name: str,
    folder: Path,
    wanted_bytes: int,
    root: Path = Path("/"),
    may_write: Callable[[Path], bool] = lambda place: os.access(place, os.W_OK | os.X_OK),
) -> Finding:
    """Whether a folder can be written to, on what it is, and whether there is as much space as it may take."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not may_write(place):
        return Finding(name, Verdict.PROBLEM, f"{folder}: can't be written", f"give another one with {name}")
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    kind = _file_system(place, _read(root / "proc/self/mounts"))
    text = f"{folder}: {format_bytes(free)} free" + (f", {kind}" if kind else "")
    if kind in _REMOTE:
        return Finding(name, Verdict.PROBLEM, text, "what is in it is locked and mapped: give a disk of this machine")
    if free < wanted_bytes:
        return Finding(name, Verdict.NOTE, text, f"it may take {format_bytes(wanted_bytes)}")
    return Finding(name, Verdict.OK, text)


def budget_bytes(config: ServeConfig) -> int:
    """What models may take, estimated where it is not given."""
    if config.memory_budget_bytes is not None:
        return config.memory_budget_bytes
    return default_budget_bytes(config.machine.memory_bytes, config.workers)


def limits(config: ServeConfig, root: Path = Path("/")) -> Limits:
    """What models may take, estimated where it is not given."""
    machine_bytes = config.machine.memory_bytes
    return limits_of(config.memory_budget_bytes, machine_bytes, idle_bytes(config.workers), max_mappings(root))


def _file_system(place: Path, mounts: str) -> str:
    """The kind of the file system that a folder is on."""
    kind, longest = "", -1
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and place.is_relative_to(fields[1]) and len(fields[1]) >= longest:
            kind, longest = fields[2], len(fields[1])
    return kind


def _available_bytes(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _size_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
