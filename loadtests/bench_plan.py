"""What the closed-loop bench measures, and what Roost promises: cells and gates as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.bench_requests import Protocol
from loadtests.bench_stats import Gate

REST_PEERS = ("roost", "triton", "mosec", "mlserver", "kserve")
GRPC_PEERS = ("roost", "roost-grpcio", "triton", "mlserver", "kserve")
TWO = ("roost", "triton")
# With Roost on grpcio beside it, where nobody else is of interest.
TWO_GRPC = ("roost", "roost-grpcio", "triton")
FP32_BYTES = 4
LARGE_BYTES = 4_800_000
SWEEP_BYTES = (64, 4_096, 65_536, 1_000_000, LARGE_BYTES, 16_000_000)
LARGE_IN_FLIGHT = 4
GRPCIO_WANTED = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One model asked in one way by several servers in turn.

    Attributes:
        model: The model.
        protocol: JSON or binary tensors over REST, or gRPC.
        in_flight: How many requests are under way at any moment.
        servers: Who takes part.
        size: Rows of a request, or elements for a model that does not batch.
    """

    model: str
    protocol: Protocol
    in_flight: int
    servers: tuple[str, ...]
    size: int = 1

    @property
    def key(self) -> str:
        """Its name in results."""
        size = "" if self.size == 1 else f" {self.size * FP32_BYTES} B"
        return f"{self.model}{size} {self.protocol} {self.in_flight}"


def _cells() -> Iterator[Cell]:
    for in_flight in (1, 4, 16, 64):
        # The slowest peer would take a fifth of the time and is far behind everywhere.
        rest = REST_PEERS if in_flight == 16 else REST_PEERS[:-1]
        grpc = GRPC_PEERS if in_flight == 16 else GRPC_PEERS[:-1]
        yield Cell("simple", "json", in_flight, rest)
        yield Cell("simple", "grpc", in_flight, grpc)
    yield Cell("simple", "binary", 16, TWO)
    yield Cell("mlp", "json", 16, REST_PEERS)
    yield Cell("mlp", "binary", 16, TWO)
    yield Cell("mlp", "grpc", 16, GRPC_PEERS)
    yield Cell("mlp", "binary", 64, TWO)
    yield Cell("mlp", "grpc", 64, TWO_GRPC)
    yield Cell("magika", "binary", 4, TWO)
    yield Cell("magika", "grpc", 4, TWO_GRPC)
    yield Cell("convnet", "binary", 4, TWO)
    yield Cell("convnet", "grpc", 4, TWO_GRPC)
    for size in SWEEP_BYTES:
        yield Cell("identity", "binary", LARGE_IN_FLIGHT, TWO, size // FP32_BYTES)
        yield Cell("identity", "grpc", LARGE_IN_FLIGHT, TWO_GRPC, size // FP32_BYTES)


def _gates() -> Iterator[Gate]:
    grpc, json = "simple grpc 16", "simple json 16"
    large = f"identity {LARGE_BYTES} B {{}} {LARGE_IN_FLIGHT}"
    yield Gate("gRPC simple, 16 in flight, vs Triton", grpc, "roost", "triton", 3.5)
    yield Gate("gRPC simple, 16 in flight, vs MLServer", grpc, "roost", "mlserver", 8.0)
    yield Gate("REST JSON simple, 16 in flight, vs Triton", json, "roost", "triton", 5.0)
    yield Gate("REST JSON simple, 16 in flight, vs mosec", json, "roost", "mosec", 2.5)
    yield Gate("REST JSON simple, 16 in flight, vs MLServer", json, "roost", "mlserver", 12.0)
    yield Gate("REST JSON mlp, 16 in flight, vs Triton", "mlp json 16", "roost", "triton", 2.5)
    yield Gate("REST binary mlp, 16 in flight, vs Triton", "mlp binary 16", "roost", "triton", 2.5)
    yield Gate("gRPC mlp, 16 in flight, vs Triton", "mlp grpc 16", "roost", "triton", 2.0)
    yield Gate("REST JSON simple, 1 in flight, p50 vs Triton", "simple json 1", "roost", "triton", 0.8, "p50", False)
    yield Gate("gRPC simple, 1 in flight, p50 vs Triton", "simple grpc 1", "roost", "triton", 1.0, "p50", False)
    yield Gate("4.8 MB tensor, REST binary, vs Triton", large.format("binary"), "roost", "triton", 1.0)
    yield Gate("4.8 MB tensor, gRPC, vs Triton", large.format("grpc"), "roost", "triton", 1.0)


def _with_grpcio(gates: Iterable[Gate]) -> Iterator[Gate]:
    """After each gate about gRPC the same ratio on grpcio, which promises less."""
    for gate in gates:
        yield gate
        if "gRPC" in gate.title:
            wanted = GRPCIO_WANTED if (gate.cell, gate.peer) == ("simple grpc 16", "triton") else None
            title = f"{gate.title}, on grpc.aio"
            yield dataclasses.replace(gate, title=title, server="roost-grpcio", wanted=wanted)


CELLS: Sequence[Cell] = tuple(_cells())
GATES: Sequence[Gate] = tuple(_with_grpcio(_gates()))
EFFICIENCY_CELLS = ("mlp binary 64", "mlp grpc 64")
EFFICIENCY_WANTED = 0.5
EFFICIENCY_PEER = "bare ONNX Runtime"


GATED = frozenset((*EFFICIENCY_CELLS, *(gate.cell for gate in GATES)))


def is_gated(cell: Cell) -> bool:
    """Whether a promise is about the cell."""
    return cell.key in GATED
