"""All gates of the mesh in one run: thousands of models, too many models, loads, kills, prepared copies, policies.

Every server is started here, every answer is compared with ONNX Runtime's, requests go out at times that were fixed
beforehand and latency counts from then, and what is compared takes turns. ``--only`` measures some parts, ``--quick``
much less of each: a first look, whose figures are for smaller numbers than the gates are about::

    make bench-mesh
    make bench-mesh ARGS="--only churn kill"
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench import OUTPUT
from loadtests.bench_mesh_churn import churn
from loadtests.bench_mesh_kill import kill
from loadtests.bench_mesh_loads import cycles, loads
from loadtests.bench_mesh_many import registered, resident
from loadtests.bench_mesh_others import cold, decision, prepared, simulator
from loadtests.bench_mesh_report import Findings, report_text, write_report
from loadtests.bench_mesh_scale import FULL, QUICK, Scale
from loadtests.bench_report import machine
from loadtests.bench_servers import end_in_order
from loadtests.open_loop import generator

LIMIT_S = 1500.0


@dataclass(frozen=True, slots=True)
class Part:
    """Some gates that are measured together.

    Attributes:
        about: What is done, for people.
        measure: Does it in a folder of its own.
    """

    about: str
    measure: Callable[[Scale, Path], Findings]


PARTS: Mapping[str, Part] = {
    "registered": Part("thousands of models that nobody asks", registered),
    "resident": Part("thousands of models in memory", resident),
    "churn": Part("ten times more models than fit", churn),
    "loads": Part("requests beside loads", loads),
    "cycles": Part("memory after many loads and unloads", cycles),
    "kill": Part("workers killed under load", kill),
    "prepared": Part("models with and without prepared copies", prepared),
    "cold": Part("first requests", cold),
    "simulator": Part("eviction policies in virtual time", simulator),
    "decision": Part("time of a decision", decision),
}


def measure(name: str, scale: Scale) -> Findings:
    """One part, whatever becomes of it."""
    part = PARTS[name]
    print(f"\n{name}: {part.about} …", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"roost-mesh-{name}-", ignore_cleanup_errors=True) as folder:
        try:
            found = part.measure(scale, Path(folder))
        except Exception as error:  # one part that fails must not cost the figures of all others
            found = Findings(part.about)
            found.failed(error)
    found.seconds = time.monotonic() - began
    print(f"{found.text()}\n  {found.seconds:.0f} s", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the report; 1 if a gate is not met or could not be measured."""
    arguments = _arguments(argv)
    scale = QUICK if arguments.quick else FULL
    end_in_order()
    generator()  # says now what is missing
    give_up = time.monotonic() + arguments.limit
    parts = []
    for name in arguments.only or PARTS:
        if time.monotonic() > give_up:
            found = Findings(PARTS[name].about)
            found.failed(TimeoutError(f"not begun after {arguments.limit:.0f} s"))
        else:
            found = measure(name, scale)
        parts.append(found)
    about = machine(len(os.sched_getaffinity(0)))
    text = report_text(parts, about)
    output = arguments.output / time.strftime("%Y%m%d-%H%M%S-mesh")
    write_report(output, text, parts, about)
    print(f"\n{text}\nwritten to {output}")
    return 0 if all(part.is_met for part in parts) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench_mesh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:12}{part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=(), metavar="NAME", help="parts to measure")
    parser.add_argument("--quick", action="store_true", help="much less of everything, for a first look")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help=f"begin no part after (default {LIMIT_S:.0f} s)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for report and figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
