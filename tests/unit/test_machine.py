"""Limits of CPU and memory, read from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from roost.server.machine import (
    cpu_quota,
    memory_limit_bytes,
    memory_total_bytes,
    parse_cpu_max,
    parse_memory_limit,
    read_machine,
)

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:        8000 kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_takes_the_smallest_figure_on_the_way_up(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kube/pod/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/kube/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/kube/pod/box/memory.max": "5000000\n",
            "sys/fs/cgroup/kube/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/kube/pod/memory.max": "4000000\n",
            "sys/fs/cgroup/kube/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/kube/memory.max": "max\n",
        },
    )
    assert cpu_quota(root) == 1.5
    assert memory_limit_bytes(root) == 4_000_000
    machine = read_machine(root)
    assert machine.cpus == 1
    assert machine.memory_bytes == 4_000_000


def test_version_2_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/memory.max": "7000000\n",
    }
    assert cpu_quota(make(tmp_path, files)) == 3
    assert memory_limit_bytes(tmp_path) == 7_000_000


@pytest.mark.parametrize("mount_root", ["/", "/docker/abc"])
def test_version_1(tmp_path: Path, mount_root: str) -> None:
    """In a container the mount's root is the container's own group, so the group's path must not be doubled."""
    below = "docker/abc/" if mount_root == "/" else ""
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS.replace(" / /sys/fs/cgroup/", f" {mount_root} /sys/fs/cgroup/"),
            f"sys/fs/cgroup/cpu,cpuacct/{below}cpu.cfs_quota_us": "200000\n",
            f"sys/fs/cgroup/cpu,cpuacct/{below}cpu.cfs_period_us": "100000\n",
            f"sys/fs/cgroup/memory/{below}memory.limit_in_bytes": "6000000\n",
        },
    )
    assert cpu_quota(root) == 2
    assert memory_limit_bytes(root) == 6_000_000


def test_no_limits(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n2:cpu,cpuacct:/a\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cpu_quota(root) is None
    assert memory_limit_bytes(root) is None
    machine = read_machine(root)
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.memory_bytes == 8000 * 1024


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": str(2**50),
    }
    assert read_machine(make(tmp_path, files)).memory_bytes == 8000 * 1024


def test_without_cgroups(tmp_path: Path) -> None:
    root = make(tmp_path, {})
    assert cpu_quota(root) is None
    assert memory_limit_bytes(root) is None


def test_a_group_outside_the_namespace_counts_as_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/../../other\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/memory.max": "3000000",
    }
    assert memory_limit_bytes(make(tmp_path, files)) == 3_000_000


def test_meminfo_without_a_total(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MemTotal"):
        memory_total_bytes(make(tmp_path, {"proc/meminfo": "MemFree: 1 kB\n"}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", None), ("50000 100000", 0.5), ("-1 100000", None), ("", None), ("1 0", None), ("x y", None)],
)
def test_cpu_max(text: str, expected: float | None) -> None:
    assert parse_cpu_max(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("max", None), ("", None), ("4096\n", 4096), (str(2**63 - 4096), None)])
def test_memory_limit(text: str, expected: int | None) -> None:
    assert parse_memory_limit(text) == expected


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.cpus >= 1
    assert machine.memory_bytes > 2**26
