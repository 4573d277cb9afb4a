"""Closed-loop load from wrk and h2load, and what they say was seen.

Both keep a number of requests in flight from one thread. wrk's script prints JSON; h2load is read from its summary and
from its log of single requests, which has the latencies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench_requests import WireRequest

SCRIPT = Path(__file__).with_name("post.lua")
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
GRACE_S = 30.0
# As many connections as a client that cares opens; the rest of what is in flight shares them.
GRPC_CONNECTIONS = 4
# Answers that were under way at the end count half.
LENGTH_TOLERANCE = 0.02

_MICROSECOND_S = 1e-6


class LoadFailed(RuntimeError):
    """A generator could not be run, or requests failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a generator saw."""

    requests: int
    seconds: float
    p50_s: float
    p99_s: float

    @property
    def rate_per_s(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds


def ensure_generators() -> None:
    """Looks for wrk and h2load; installs them where that is possible without asking.

    Raises:
        SystemExit: If they are missing and stay so.
    """
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for line in (["apt-get", "update", "-q"], ["apt-get", "install", "-qy", "--no-install-recommends", *missing]):
            subprocess.run(line, check=False, stdout=subprocess.DEVNULL)
    if any(shutil.which(program) is None for program in PACKAGES):
        raise SystemExit(f"The load generators are missing. On Debian or Ubuntu: apt-get install {' '.join(missing)}")


def run_load(request: WireRequest, address: str, in_flight: int, seconds: float, answer_bytes: int) -> Load:
    """Keeps so many requests in flight for so long.

    Args:
        request: What is sent.
        address: Host and port.
        in_flight: How many requests are under way at any moment.
        seconds: For how long.
        answer_bytes: How many bytes of body the right answer has.

    Raises:
        LoadFailed: If any request failed.
    """
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        body = Path(folder, "body")
        body.write_bytes(request.body)
        if request.protocol != "grpc":
            headers = [part for header in request.headers.items() for part in header]
            line = ["wrk", "-t1", f"-c{in_flight}", f"-d{_wrk_time(seconds)}", "--timeout", f"{GRACE_S:.0f}s"]
            line += ["-s", str(SCRIPT), f"http://{address}{request.path}", "--", str(body), *headers]
            return parse_wrk(_output(line, seconds))
        connections = min(GRPC_CONNECTIONS, in_flight)
        log = Path(folder, "log")
        line = ["h2load", "-t1", f"-c{connections}", f"-m{in_flight // connections}", "-D", f"{seconds * 1e3:.0f}ms"]
        line += [f"--log-file={log}", "-d", str(body)]
        line += [f"-H{name}: {value}" for name, value in request.headers.items()]
        text = _output([*line, f"http://{address}{request.path}"], seconds)
        return parse_h2load(text, log.read_text(encoding="ascii"), answer_bytes)


def _wrk_time(seconds: float) -> str:
    # wrk takes whole seconds only.
    return f"{max(1, round(seconds))}s"


def _output(line: Sequence[str], seconds: float) -> str:
    try:
        run = subprocess.run(line, capture_output=True, text=True, timeout=seconds + 2 * GRACE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadFailed(f"{line[0]}: {error}") from error
    if run.returncode != 0:
        raise LoadFailed(f"{line[0]} ended with {run.returncode}: {run.stderr or run.stdout}")
    return run.stdout


def parse_wrk(text: str) -> Load:
    """Reads the line of JSON that ``post.lua`` prints last.

    Raises:
        LoadFailed: If it is missing, or requests failed.
    """
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadFailed(f"wrk printed no summary: {text}")
    seen = json.loads(lines[-1])
    errors = {kind: count for kind, count in seen["errors"].items() if count}
    if errors or not seen["requests"]:
        raise LoadFailed(f"wrk: {errors} in {seen['requests']} requests")
    return Load(
        seen["requests"],
        seen["duration_us"] * _MICROSECOND_S,
        seen["p50_us"] * _MICROSECOND_S,
        seen["p99_us"] * _MICROSECOND_S,
    )


def parse_h2load(text: str, log: str, answer_bytes: int) -> Load:
    """Reads h2load's summary and its log: a line for each answer with its start, HTTP status and microseconds.

    An error of gRPC has HTTP status 200 but no message, so answers that are shorter than the right one count as failed.

    Raises:
        LoadFailed: If the summary is not understood, or requests failed.
    """
    finished = re.search(r"finished in ([\d.]+)(us|ms|s)?, ([\d.]+) req/s", text)
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    statuses = re.search(r"(\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    data = re.search(r"\((\d+)\) data", text)
    if not (finished and counts and statuses and data):
        raise LoadFailed(f"h2load printed no summary: {text}")
    answers = int(counts[2])
    bad = int(counts[3]) + sum(map(int, statuses.groups()[1:]))
    rows = [line.split("\t") for line in log.splitlines()]
    took_s = [int(row[2]) * _MICROSECOND_S for row in rows if len(row) == 3 and row[1] == "200"]
    if bad or not answers or len(took_s) < 2:
        raise LoadFailed(f"h2load: {bad} of {counts[1]} requests failed: {text}")
    if int(data[1]) < answers * answer_bytes * (1 - LENGTH_TOLERANCE):
        raise LoadFailed(f"h2load: {answers} answers had {data[1]} bytes, right ones have {answer_bytes} each")
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1.0}[finished[2]]
    cuts = statistics.quantiles(took_s, n=100, method="inclusive")
    return Load(answers, float(finished[1]) * unit, cuts[49], cuts[98])
