"""The demo's server process: ``roost serve`` that ends, in good order, when the demo is gone.

A module of its own rather than a ``preexec_fn``, because the demo has threads (spinner, numerics) when it forks.
"""

from __future__ import annotations

import ctypes
import signal
import sys

from roost.server.cli import main

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    sys.exit(main())
