"""How much a server carries when requests come as they come: knees, overload and refusals, open loop.

The knee is the highest Poisson rate at which 99 % of the requests are answered rightly within the limit (5 x t(1) of a
model that works, 20 ms for ``simple``). It is looked for once in full, then again around the last one in every round,
server after server, so that ratios compare neighbouring minutes; each round ends with a run at twice the knee::

    make bench-open
    python -m loadtests.bench_open --quick --models simple --servers roost
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench import OUTPUT, running, server_classes
from loadtests.bench_report import gates_table, machine, machine_text
from loadtests.bench_requests import WrongAnswer
from loadtests.bench_servers import Server, end_in_order
from loadtests.contender import Contender, Objective
from loadtests.knee import Search
from loadtests.models import BenchModel, write_models
from loadtests.open_loop import NoGenerator, generator
from loadtests.open_report import OURS, ModelResult, Series, as_document, results_table
from loadtests.open_requests import questions
from loadtests.work_models import write_work_models

SIMPLE = "simple"
SIMPLE_LIMIT_S = 0.020
LIMIT_OF_ONE_ROW = 5.0
SERVERS = ("roost", "triton", "mosec")
FULL = Search(growth=1.6, precision=0.1, most_runs=6, confirmations=1)
AGAIN = Search(growth=1.12, precision=0.04, most_runs=6, confirmations=1)
_SIMPLE_START_PER_S = 2000.0
_WORK_START = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the time in which its answers must come, and where to look for knees first."""

    model: BenchModel
    is_work: bool
    limit_s: float
    start_per_s: float


def subjects(folder: Path, names: Sequence[str]) -> Iterator[Subject]:
    """Writes the models; what those that work cost is measured here and now, and printed."""
    if not names or SIMPLE in names:
        yield Subject(write_models(folder, [SIMPLE])[SIMPLE], False, SIMPLE_LIMIT_S, _SIMPLE_START_PER_S)
    if names and set(names) <= {SIMPLE}:
        return
    for work in write_work_models(folder):
        if not names or work.model.name in names:
            print(work.text(), flush=True)
            limit_s = LIMIT_OF_ONE_ROW * work.one_row_s
            yield Subject(work.model, True, limit_s, _WORK_START / work.one_row_s)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: rounds with runs of so many seconds; no further round begins after ``give_up``."""

    rounds: int
    seconds: float
    give_up: float


def measure(subject: Subject, servers: Sequence[Server], effort: Effort) -> ModelResult:
    """Knees and overload of all servers in turn.

    Raises:
        WrongAnswer: If a server gives one.
    """
    objective = Objective(subject.limit_s, effort.seconds)
    asked = questions(subject.model, objective.timeout_s)
    result = ModelResult(subject.model.name, subject.is_work, subject.limit_s)
    contenders = [Contender(server, asked, objective) for server in servers]
    last_per_s: dict[str, float] = {}
    for contender in contenders:
        name = contender.server.name
        contender.prepare()
        last_per_s[name] = contender.knee(subject.start_per_s, FULL) or subject.start_per_s
        result.servers[name] = Series()
        print(f"{subject.model.name}, {name}: about {last_per_s[name]:.0f}/s", flush=True)
    for number in range(effort.rounds):
        if number and time.monotonic() > effort.give_up:
            print(f"{subject.model.name}: the time is up after {number} rounds", file=sys.stderr)
            break
        for contender in contenders:
            name = contender.server.name
            last_per_s[name] = _round(contender, result.servers[name], last_per_s[name])
            print(f"round {number + 1}, {name}: about {last_per_s[name]:.0f}/s", flush=True)
    return result


def _round(contender: Contender, series: Series, last_per_s: float) -> float:
    """One server's part of a round; returns its knee, or the last one if there is none."""
    knee_per_s = contender.knee(last_per_s, AGAIN)
    series.knees_per_s.append(knee_per_s)
    last_per_s = knee_per_s or last_per_s
    series.overloads.append(contender.overload(last_per_s))
    if contender.server.name.startswith(OURS):
        series.hopeless.append(contender.hopeless(last_per_s))
    series.invalid_runs = contender.invalid_runs
    return last_per_s


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the tables; 1 if a server answered wrongly or in a way that the generator does not know."""
    arguments = _arguments(argv)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    seconds = arguments.seconds or (2.0 if arguments.quick else 4.0)
    effort = Effort(rounds, seconds, time.monotonic() + arguments.limit)
    generator()  # says now what is missing
    end_in_order()
    classes = server_classes(arguments.servers)
    results: list[ModelResult] = []
    is_well = True
    with tempfile.TemporaryDirectory(prefix="roost-bench-open-") as name:
        folder = Path(name)
        for subject in list(subjects(folder / "models", arguments.models)):
            # Each model has servers of its own, so that nothing else takes part.
            with running(classes, {subject.model.name: subject.model}, folder / subject.model.name) as servers:
                try:
                    results.append(measure(subject, servers, effort))
                except (WrongAnswer, NoGenerator) as error:
                    print(f"{subject.model.name}: {error}", file=sys.stderr)
                    is_well = False
    _report(results, arguments.output)
    return 0 if is_well else 1


def _report(results: Sequence[ModelResult], output: Path) -> None:
    verdicts = [verdict for result in results for verdict in result.verdicts()]
    about = machine(len(os.sched_getaffinity(0)))
    text = "\n\n".join((machine_text(about), results_table(results), gates_table(verdicts))) + "\n"
    folder = output / time.strftime("%Y%m%d-%H%M%S-open")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    document = {"machine": about, "results": as_document(results)}
    (folder / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(f"\n{text}\nwritten to {folder}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of short runs, for a first look")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME", help="simple, work-0.2, work-1, work-4")
    parser.add_argument("--servers", nargs="+", default=SERVERS, metavar="NAME", help=" ".join(SERVERS))
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5, quick 1")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a run (default 4, quick 2)")
    parser.add_argument(
        "--limit", type=float, default=7200.0, metavar="S", help="no further round after (default 7200 s)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for report and figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
