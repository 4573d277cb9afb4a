"""The closed-loop bench's results for people and for programs."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.bench_stats import Sample, Verdict, ratio, spread


@dataclass(slots=True)
class Results:
    """Everything that was measured.

    Attributes:
        samples: By cell and server, one for each round.
        batch_rows: Mean rows of Roost's batches by cell.
        pss_bytes: Memory of all processes at the end, by server.
        idle_cpu: CPU use without any request as a share of one core, by server.
        troubles: What went wrong, for example wrong answers.
    """

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    batch_rows: dict[str, list[float]] = field(default_factory=dict)
    pss_bytes: dict[str, int] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first is left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join((row[0].ljust(len(first)), *rest)).rstrip())
    return "\n".join(lines)


def cells_table(results: Results, ours: str = "roost") -> str:
    """Medians for each cell and server; the ratio is Roost's rate over the server's, with its spread."""
    rows = [("cell, server", "req/s", "p50 ms", "p99 ms", "CPU s/10k", f"{ours} is")]
    for cell, by_server in results.samples.items():
        for server, samples in by_server.items():
            if not samples:
                continue
            times = ratio(by_server.get(ours, ()), samples, "rate") if server != ours else None
            rows.append(
                (
                    f"{cell}, {server}",
                    f"{spread([sample.rate_per_s for sample in samples]).median:,.0f}",
                    f"{spread([sample.p50_s for sample in samples]).median * 1e3:.2f}",
                    f"{spread([sample.p99_s for sample in samples]).median * 1e3:.2f}",
                    f"{spread([sample.cpu_s_per_10k for sample in samples]).median:.2f}",
                    f"{times.text()} x" if times else "",
                )
            )
    return table(rows)


def gates_table(verdicts: Sequence[Verdict]) -> str:
    """Each promise: what was wanted, what was measured, whether it is kept."""
    rows = [("gate", "wanted", "measured", "")]
    for verdict in verdicts:
        wanted = "" if verdict.wanted is None else f"{'≥' if verdict.at_least else '≤'} {verdict.wanted:g}"
        measured = verdict.measured.text() if verdict.measured else "not measured"
        says = {None: "", True: "met", False: "NOT MET"}[verdict.is_met]
        rows.append((verdict.title, wanted, measured, says))
    return table(rows)


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    return f"{machine['cores']} cores, {machine['processor']}, Python {machine['python']}, {machine['date']}"


def machine(cores: int) -> dict[str, Any]:
    """What figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "cores": cores,
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def report_text(results: Results, verdicts: Sequence[Verdict], about: Mapping[str, Any]) -> str:
    """The whole report."""
    memory = ", ".join(f"{server} {size / 1e6:.0f} MB" for server, size in results.pss_bytes.items())
    idle = ", ".join(f"{server} {share:.1%}" for server, share in results.idle_cpu.items())
    batches = ", ".join(f"{cell}: {spread(rows).text(1)}" for cell, rows in results.batch_rows.items())
    parts = [
        machine_text(about),
        cells_table(results),
        f"memory (PSS of all processes, at the end): {memory}",
        f"CPU use while idle: {idle}",
        f"rows in a batch of Roost's: {batches}",
        gates_table(verdicts),
        *(["troubles:", *results.troubles] if results.troubles else []),
    ]
    return "\n\n".join(parts) + "\n"


def write_report(
    folder: Path, text: str, results: Results, verdicts: Sequence[Verdict], about: Mapping[str, Any]
) -> None:
    """Writes ``report.txt`` and ``results.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    gates = [{**asdict(verdict), "met": verdict.is_met} for verdict in verdicts]
    document = {"machine": about, "gates": gates, **asdict(results)}
    (folder / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
