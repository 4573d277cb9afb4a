"""ONNX Runtime alone with all models of a repository in one process: memory, and the time of runs at random.

Prints JSON; the mesh bench starts it as a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from tests.server import private_bytes_of

_RUNS = 20_000


def main() -> int:
    """Loads, runs and prints."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    before_bytes, began = private_bytes_of(os.getpid()), time.monotonic()
    sessions = [
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for file in sorted(Path(sys.argv[1]).glob("*/1/model.onnx"))
    ]
    took_s = time.monotonic() - began
    row = np.ones((1, 16), np.int32)
    times_s, rng = [], random.Random(0)
    for _ in range(_RUNS):
        session = rng.choice(sessions)
        begin = time.perf_counter()
        session.run(None, {"INPUT0": row, "INPUT1": row})
        times_s.append(time.perf_counter() - begin)
    private_bytes = private_bytes_of(os.getpid()) - before_bytes
    p99_s = float(np.quantile(times_s, 0.99))
    print(json.dumps({"private_bytes": private_bytes, "load_s": took_s, "p99_s": p99_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
