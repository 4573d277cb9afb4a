"""What a large tensor costs through a client's shared memory, beside what it must cost.

The bound is a 64-byte request to the same model, plus the model's own time for the large tensor, plus a copy of it each
way. All four are measured in turn, with tritonclient, one request at a time::

    python -m loadtests.client_shm
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm

from loadtests.bench_servers import end_in_order
from loadtests.models import session, write_models
from tests.server import RoostServer, started

CLIENTS: dict[str, ModuleType] = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
MODEL = "identity"
SMALL_ELEMENTS = 16
LARGE_ELEMENTS = 8 * 3 * 224 * 224  # 4.8 MB
MOST_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Round:
    """Medians of one round, in seconds.

    Attributes:
        shared_s: The large tensor through shared memory, both ways.
        small_s: 64 bytes in the request and in its answer.
        model_s: The model alone, with the large tensor in memory that is bound to it.
        copy_s: Copying the large tensor once.
    """

    shared_s: float
    small_s: float
    model_s: float
    copy_s: float

    @property
    def bound_s(self) -> float:
        """What it must cost."""
        return self.small_s + self.model_s + 2 * self.copy_s

    @property
    def ratio(self) -> float:
        """What it costs by what it must cost."""
        return self.shared_s / self.bound_s


def measure(server: RoostServer, file: Path, transport: str, elements: int, rounds: int, repeats: int) -> list[Round]:
    """Measures over one transport; the tensor has new values in every round and is compared when it is back."""
    rng = np.random.default_rng(0)
    model, copy = _bare(file, elements), _copy(elements)
    with _regions(elements * 4) as regions, _requests(server, transport, elements) as (small, shared):
        found = []
        for _ in range(rounds):
            values = rng.random(elements, np.float32)
            shm.set_shared_memory_region(regions[0], [values])
            shared()
            answer = shm.get_contents_as_numpy(regions[1], np.float32, [elements])
            if not np.array_equal(answer, values):
                raise SystemExit("the answer is wrong")
            found.append(Round(*_medians((shared, small, model, copy), repeats)))
        return found


def _medians(calls: tuple[Callable[[], Any], ...], repeats: int) -> list[float]:
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, took, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in took]


def _bare(file: Path, elements: int) -> Callable[[], Any]:
    """The model without a server, on memory that it need not allocate."""
    bare = session(file)
    values, answer = np.ones(elements, np.float32), np.empty(elements, np.float32)
    binding = bare.io_binding()
    binding.bind_cpu_input("INPUT0", values)
    binding.bind_output("OUTPUT0", "cpu", 0, np.float32, [elements], answer.ctypes.data)
    return lambda: bare.run_with_iobinding(binding)


def _copy(elements: int) -> Callable[[], Any]:
    values, copy = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    return lambda: np.copyto(copy, values)


def _key(which: str) -> str:
    return f"/bench-{os.getpid()}-{which}"


@contextmanager
def _regions(size_bytes: int) -> Iterator[list[Any]]:
    """Shared memory for input and output."""
    regions = [shm.create_shared_memory_region(which, _key(which), size_bytes) for which in ("input", "output")]
    try:
        yield regions
    finally:
        for region in regions:
            shm.destroy_shared_memory_region(region)


@contextmanager
def _requests(
    server: RoostServer, transport: str, elements: int
) -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    """The small request and the one through shared memory."""
    module, size_bytes = CLIENTS[transport], elements * 4
    client = module.InferenceServerClient(server.http if transport == "REST" else server.grpc)
    for which in ("input", "output"):
        client.register_system_shared_memory(which, _key(which), size_bytes)
    small_input = module.InferInput("INPUT0", [SMALL_ELEMENTS], "FP32")
    small_input.set_data_from_numpy(np.ones(SMALL_ELEMENTS, np.float32))
    large_input = module.InferInput("INPUT0", [elements], "FP32")
    large_input.set_shared_memory("input", size_bytes)
    large_output = module.InferRequestedOutput("OUTPUT0")
    large_output.set_shared_memory("output", size_bytes)
    small_output = module.InferRequestedOutput("OUTPUT0")
    try:
        yield (
            lambda: client.infer(MODEL, [small_input], outputs=[small_output]),
            lambda: client.infer(MODEL, [large_input], outputs=[large_output]),
        )
    finally:
        client.unregister_system_shared_memory()
        client.close()


def text(transport: str, rounds: list[Round]) -> str:
    """A row of the table: medians over rounds in milliseconds, and the ratio with its spread."""
    cells = [
        statistics.median(values) * 1e3
        for values in zip(*((r.shared_s, r.small_s, r.model_s, r.copy_s, r.bound_s) for r in rounds), strict=True)
    ]
    ratios = [r.ratio for r in rounds]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {transport} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {spread} |"


def main() -> int:
    """Prints the table; 1 if the gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=100, help="requests of each kind in a round (default 100)")
    parser.add_argument("--elements", type=int, default=LARGE_ELEMENTS, help="of the large tensor, FP32")
    options = parser.parse_args()
    end_in_order()
    is_met = True
    print(f"{options.elements * 4 / 1e6:.1f} MB each way, medians of {options.rounds} rounds, ms\n")
    print("| | shared memory | 64 bytes | model | one copy | bound | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="roost-shm-") as name:
        folder = Path(name)
        model = write_models(folder / "models", [MODEL])[MODEL]
        with started(folder / "models", folder / "run", "--allow-client-shm", "--log-level", "warning") as server:
            for transport in CLIENTS:
                rounds = measure(server, model.file, transport, options.elements, options.rounds, options.repeats)
                print(text(transport, rounds), flush=True)
                is_met &= statistics.median(r.ratio for r in rounds) <= MOST_RATIO
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
