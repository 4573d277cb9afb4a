"""How much a server carries when requests come as they come: knees, overload and refusals, open loop.

The knee is the highest Poisson rate at which 99 % of the requests are answered rightly within the limit (5 x t(1) of a
model that works, 20 ms for ``simple``). In every round all servers get the same rising rates in turn, so that ratios
compare neighbouring seconds; each round ends with a run at twice the knee::

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
from loadtests.knee import Curve, rates
from loadtests.models import BenchModel, write_models
from loadtests.open_loop import NoGenerator, generator
from loadtests.open_report import OURS, ModelResult, Series, as_document, results_table
from loadtests.open_requests import questions
from loadtests.work_models import write_work_models

SIMPLE = "simple"
SIMPLE_LIMIT_S = 0.020
LIMIT_OF_ONE_ROW = 5.0
SERVERS = ("roost", "triton", "mosec")
GROWTH = 1.25
HIGHEST = 30.0
_SIMPLE_FROM_PER_S = 2000.0
_WORK_FROM = 0.2


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the time in which its answers must come, and the lowest rate that servers are asked at."""

    model: BenchModel
    is_work: bool
    limit_s: float
    lowest_per_s: float


def subjects(folder: Path, names: Sequence[str]) -> Iterator[Subject]:
    """Writes the models; what those that work cost is measured here and now, and printed."""
    if not names or SIMPLE in names:
        yield Subject(write_models(folder, [SIMPLE])[SIMPLE], False, SIMPLE_LIMIT_S, _SIMPLE_FROM_PER_S)
    if names and set(names) <= {SIMPLE}:
        return
    for work in write_work_models(folder):
        if not names or work.model.name in names:
            print(work.text(), flush=True)
            limit_s = LIMIT_OF_ONE_ROW * work.one_row_s
            yield Subject(work.model, True, limit_s, _WORK_FROM / work.one_row_s)


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
    for contender in contenders:
        contender.prepare()
        result.servers[contender.server.name] = Series()
    for number in range(effort.rounds):
        if number and time.monotonic() > effort.give_up:
            print(f"{subject.model.name}: the time is up after {number} rounds", file=sys.stderr)
            break
        for name, curve in _climb(subject, contenders).items():
            result.servers[name].curves.append(curve)
            shares = ", ".join(f"{rate:.0f}/s {100 * share:.1f} %" for rate, share in curve.points)
            print(f"{subject.model.name}, round {number + 1}, {name}: {shares}", flush=True)
        for contender in contenders:
            _overload(contender, result.servers[contender.server.name], subject.lowest_per_s)
    return result


def _climb(subject: Subject, contenders: Sequence[Contender]) -> dict[str, Curve]:
    """Asks all servers at one rate, then at the next, until they do not carry it.

    Those that fall a little short are asked once more, and the better of both counts: a machine that stands still for a
    moment costs any of them more than one request in a hundred.
    """
    curves = {contender.server.name: Curve() for contender in contenders}
    for rate_per_s in rates(subject.lowest_per_s, HIGHEST * subject.lowest_per_s, GROWTH):
        for again in (False, True):
            for contender in contenders:
                curve = curves[contender.server.name]
                if curve.fell_a_little_short(rate_per_s) if again else not curve.is_over:
                    curve.add(rate_per_s, contender.measure(rate_per_s).tally.share_in_time)
    return curves


def _overload(contender: Contender, series: Series, lowest_per_s: float) -> None:
    """What one server does at twice its knee of this round."""
    knee_per_s = series.curves[-1].knee_per_s() or lowest_per_s
    series.overloads.append(contender.overload(knee_per_s))
    if contender.server.name.startswith(OURS):
        series.hopeless.append(contender.hopeless(knee_per_s))
    series.invalid_runs = contender.invalid_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the tables; 1 if a server answered wrongly or in a way that the generator does not know."""
    arguments = _arguments(argv)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
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
    parser.add_argument("--rounds", type=int, metavar="N", help="default 3, quick 1")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a run (default 4, quick 2)")
    parser.add_argument(
        "--limit", type=float, default=7200.0, metavar="S", help="no further round after (default 7200 s)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER", help="for report and figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
