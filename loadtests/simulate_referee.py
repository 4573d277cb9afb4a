"""The simulator's referee: libCacheSim's policies on the same traces.

It knows sizes but no costs, and evicts before it looks whether everything it evicts has to go. Where sizes and load
times are equal, its LRU and the router's decide alike, request by request. Its W-TinyLFU is left out: the size
of its sketch overflows with sizes in bytes.
"""

from __future__ import annotations

import libcachesim  # type: ignore[import-not-found]  # is in the simulator's environment

from loadtests.simulate_runs import WARM_UP, Outcome
from loadtests.simulate_traces import Trace

POLICIES = ("LRU", "ARC", "GDSF", "LHD", "Hyperbolic", "S3FIFO", "Sieve")
_HASH_POWER = 17


def referee(trace: Trace, capacity_bytes: int, policy: str) -> Outcome:
    """What libCacheSim's policy does with the counted part of the trace."""
    cache = getattr(libcachesim, policy)(capacity_bytes, hashpower=_HASH_POWER)
    request = libcachesim.Request()
    request.op = libcachesim.ReqOp.OP_GET
    begin = int(len(trace.times) * WARM_UP)
    outcome = Outcome(len(trace.times) - begin)
    sizes, load_s = trace.sizes.tolist(), trace.load_s.tolist()
    for number, (now, model) in enumerate(zip(trace.times.tolist(), trace.models.tolist(), strict=True)):
        request.obj_id, request.obj_size, request.clock_time = model, sizes[model], int(now)
        if not cache.get(request) and number >= begin:
            outcome.cold_starts += 1
            outcome.waited_s += load_s[model]
    return outcome
