"""What the tests of the hard scenarios share: models of known size, and a look at a server while much happens to it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models import write_dummy, write_policy
from tests.server import RoostServer

MIB = 1 << 20
SLACK_BYTES = 8 * MIB
"""What a worker takes beside its models: threads, buffers, what was freed and not yet given back."""

LOOK_EVERY_S = 0.005


def write_model(
    repository: Path, name: str, size_bytes: int = MIB, *, policy: Mapping[str, Any] | None = None, **how: Any
) -> None:
    """A dummy model that takes as much memory as it says; ``how`` it behaves else. No two have the same file."""
    write_dummy(repository / name / "1" / "model.dummy", load_bytes=size_bytes, name=name, **how)
    write_policy(repository / name, memory_bytes=size_bytes, **(policy or {}))


@dataclass
class Watched:
    """The highest of all samples; ``private_bytes`` is what the kernel says of all workers."""

    samples: int = 0
    used_bytes: int = 0
    budget_bytes: int = 0
    private_bytes: int = 0
    queued: int = 0
    copies: Counter[str] = field(default_factory=Counter)

    def take(self, status: dict[str, Any]) -> None:
        """Takes a sample."""
        device = status["devices"][0]
        self.samples += 1
        self.used_bytes = max(self.used_bytes, device["used_bytes"])
        self.budget_bytes = max(self.budget_bytes, device["budget_bytes"])
        self.private_bytes = max(self.private_bytes, private_bytes(status))
        self.queued = max(self.queued, status["queued"])
        self.copies |= Counter(i["model"] for worker in status["workers"] for i in worker["instances"])


def private_bytes(status: dict[str, Any]) -> int:
    """What the kernel says that all workers take."""
    return sum(worker["private_bytes"] for worker in status["workers"])


@contextmanager
def watched(server: RoostServer) -> Iterator[Watched]:
    """Looks at the mesh all the time, until the end of the block."""
    seen, done = Watched(), threading.Event()

    def watch() -> None:
        while True:
            seen.take(server.status())
            if done.wait(LOOK_EVERY_S):
                return

    with ThreadPoolExecutor(1) as executor:
        watching = executor.submit(watch)
        try:
            yield seen
        finally:
            done.set()
        watching.result()


def books_are_right(server: RoostServer) -> bool:
    """Whether nothing is under way, and what is accounted is what is there."""
    status = server.status()
    instances = [instance for worker in status["workers"] for instance in worker["instances"]]
    device = status["devices"][0]
    return (
        (status["queued"], status["body_bytes"], device["reserved_bytes"]) == (0, 0, 0)
        and all(worker["in_flight"] == 0 and worker["state"] == "up" for worker in status["workers"])
        and all(instance["state"] == "ready" and instance["leases"] == 0 for instance in instances)
        and device["used_bytes"] == sum(instance["bytes"] for instance in instances)
    )


def loads_begun(file: Path) -> list[tuple[int, str]]:
    """Process and model of each load that has begun, in order; models write it that have the file as ``load_begun``."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(pid), Path(path).parent.parent.name) for pid, path in (line.split(" ", 1) for line in lines)]
