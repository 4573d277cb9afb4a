"""What the kernel says of processes, read from made-up files."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from roost.router.process_watch import exit_code_of, is_stopped, oom_kills

V2 = "low 0\nhigh 3\nmax 7\noom 2\noom_kill {}\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("groups", "files", "kills"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.events": V2.format(4), "proc/vmstat": "oom_kill 9\n"}, 4),
        ("0::/a\n", {"sys/fs/cgroup/memory.events": V2.format(3)}, 3),  # a namespace of its own
        ("5:cpu:/\n4:memory:/a\n0::/\n", {"sys/fs/cgroup/memory/a/memory.oom_control": V1.format(5)}, 5),
        ("4:cpu,memory:/x\n", {"sys/fs/cgroup/memory/memory.oom_control": V1.format(6)}, 6),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.events": "garbage\n", "proc/vmstat": "nr_free 1\noom_kill 2\n"}, 2),
        ("0::/a\n", {}, 0),
        ("", {"proc/vmstat": "oom_kill 1\n"}, 1),
    ],
)
def test_how_many_processes_were_ended_for_want_of_memory(
    tmp_path: Path, groups: str, files: dict[str, str], kills: int
) -> None:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == kills


def test_neither_this_process_nor_one_that_is_not_there_is_stopped() -> None:
    assert not is_stopped(os.getpid())
    assert not is_stopped(2**22 + 1)


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("exit 0", 0), ("kill -SEGV $$", -signal.SIGSEGV)])
def test_why_a_process_has_ended_is_known_before_it_is_reaped(script: str, code: int) -> None:
    process = subprocess.Popen(["sh", "-c", script])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert exit_code_of(process.pid) == code
    process.wait()
    assert exit_code_of(process.pid) is None
    assert exit_code_of(os.getpid()) is None
