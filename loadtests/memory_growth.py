"""Whether a server grows with the number of requests it has answered: a million of them, half REST, half gRPC.

Memory of the server and its workers is read after a warm-up with the same load and again at the end, both times once it
has come to rest::

    make bench-memory
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.bench_load import ensure_generators, run_load
from loadtests.bench_requests import Protocol, WireRequest, ask, build
from loadtests.bench_servers import Roost, end_in_order
from loadtests.models import write_models

REQUESTS = 1_000_000
MOST_GROWTH_BYTES = 20_000_000
PROTOCOLS: tuple[Protocol, ...] = ("json", "grpc")
_IN_FLIGHT = 16
_CHUNK_S = 10.0
_WARM_UP_SHARE = 0.02
_REST_BYTES = 128 * 1024
_REST_S = 20.0
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all processes of a server.

    Attributes:
        rss_bytes: Resident; pages that two of them share count twice.
        pss_bytes: The same, but such pages count once.
    """

    rss_bytes: int
    pss_bytes: int

    def growth_bytes(self, since: Memory) -> int:
        """By how much it has grown, whichever way one counts."""
        return max(self.rss_bytes - since.rss_bytes, self.pss_bytes - since.pss_bytes)


def memory_of(pid: int) -> Memory:
    """Memory of a process and everything below it."""
    rss_bytes = pss_bytes = 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            rss_bytes += info.rss
            pss_bytes += info.pss
    return Memory(rss_bytes, pss_bytes)


def memory_at_rest(pid: int) -> Memory:
    """The same once it does not change any more, or after a while: servers give memory back a little later."""
    give_up = time.monotonic() + _REST_S
    last = memory_of(pid)
    while time.monotonic() < give_up:
        time.sleep(_LOOK_EVERY_S)
        now = memory_of(pid)
        if abs(now.pss_bytes - last.pss_bytes) < _REST_BYTES:
            return now
        last = now
    return last


def drive(server: Roost, request: WireRequest, requests: int, chunk_s: float, give_up: float) -> int:
    """Sends at least so many requests, in pieces, and checks an answer before and after; returns how many it sent.

    Raises:
        LoadFailed: If a request failed.
        SystemExit: If it is later than ``give_up``.
    """
    address = server.address(request.protocol)
    length, sent = ask(request, address), 0
    while sent < requests:
        if time.monotonic() > give_up:
            raise SystemExit(f"only {sent} of {requests} requests over {request.protocol} in the time allowed")
        sent += run_load(request, address, _IN_FLIGHT, chunk_s, length).requests
    ask(request, address)
    return sent


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 if the server has grown too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS, metavar="N", help=f"default {REQUESTS:,}")
    parser.add_argument("--chunk", type=float, default=_CHUNK_S, metavar="S", help="length of a run of the generators")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="S", help="give up after (default 1800 s)")
    options = parser.parse_args(argv)
    ensure_generators()
    end_in_order()
    give_up = time.monotonic() + options.limit
    each = options.requests // len(PROTOCOLS)
    with tempfile.TemporaryDirectory(prefix="roost-memory-") as name:
        model = write_models(Path(name) / "models", ["simple"])["simple"]
        server = Roost([model], Path(name) / "roost")
        server.start()
        try:
            requests = [build(model, protocol, 1) for protocol in PROTOCOLS]
            for request in requests:
                drive(server, request, int(each * _WARM_UP_SHARE), options.chunk, give_up)
            before = memory_at_rest(server.pid)
            for request in requests:
                sent = drive(server, request, each, options.chunk, give_up)
                now = memory_at_rest(server.pid)
                print(f"{sent:,} requests over {request.protocol}: {_text(now)}, before {_text(before)}", flush=True)
        finally:
            server.stop()
    growth_bytes = now.growth_bytes(before)
    print(f"grown by {growth_bytes / 1e6:.1f} MB, allowed are {MOST_GROWTH_BYTES / 1e6:.0f}")
    return 0 if growth_bytes <= MOST_GROWTH_BYTES else 1


def _text(memory: Memory) -> str:
    return f"PSS {memory.pss_bytes / 1e6:.1f} MB, RSS {memory.rss_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
