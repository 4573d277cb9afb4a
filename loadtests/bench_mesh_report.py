"""What the mesh bench found: the gates, what else was seen, and what went wrong, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.bench_mesh_asked import Seen
from loadtests.bench_report import gates_table, machine_text
from loadtests.bench_stats import Spread, Verdict, spread
from loadtests.open_loop import MOST_LATE_SHARE

Measured = Spread | Sequence[float] | float


@dataclass(slots=True)
class Findings:
    """One part of the bench.

    Attributes:
        title: What was measured.
        verdicts: The gates, and figures beside them that have none.
        notes: What figures depend on.
        troubles: What went wrong.
        late_shares: Of each run, the share of requests that the generator sent late.
        seconds: How long it took.
    """

    title: str
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    late_shares: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def at_most(self, what: str, wanted: float, measured: Measured) -> None:
        """A gate that something must not be over; of several values their median counts."""
        self.verdicts.append(Verdict(what, wanted, at_least=False, measured=as_spread(measured)))

    def at_least(self, what: str, wanted: float, measured: Measured) -> None:
        """A gate that something must reach; of several values their median counts."""
        self.verdicts.append(Verdict(what, wanted, at_least=True, measured=as_spread(measured)))

    def shown(self, what: str, measured: Measured) -> None:
        """A figure without a gate."""
        self.verdicts.append(Verdict(what, None, at_least=True, measured=as_spread(measured)))

    def check(self, run: Seen, what: str, *, gated: bool = False) -> None:
        """Writes down failures in a run, which may be a gate's business, and how late the generator was."""
        self.late_shares.append(run.tally.late_share)
        if run.failures:
            (self.notes if gated else self.troubles).append(f"{what}: {run.text()}")

    def failed(self, error: BaseException) -> None:
        """The part could not be measured to its end."""
        self.verdicts.append(Verdict(f"{self.title}: all of it, or the rest", None, at_least=True, measured=None))
        text = " ".join(str(error).split())
        self.troubles.append(f"{type(error).__name__}: {text}"[:600])

    @property
    def is_met(self) -> bool:
        """Whether all gates are met and nothing went wrong."""
        return not self.troubles and all(verdict.is_met is not False for verdict in self.verdicts)

    def text(self) -> str:
        """This part for people."""
        return f"{gates_table(self.verdicts)}\n{self.remarks()}"

    def remarks(self) -> str:
        """What there is to say beside the gates."""
        lines = [*self.notes, *(f"TROUBLE: {trouble}" for trouble in self.troubles)]
        late = [share for share in self.late_shares if share > MOST_LATE_SHARE]
        if late:
            lines.append(
                f"the generator was late in {len(late)} of {len(self.late_shares)} runs, for up to {max(late):.0%} of "
                "all requests: the machine has other work to do"
            )
        return "\n".join(f"  {line}" for line in lines)


def as_spread(measured: Measured) -> Spread:
    """A spread as it is, one of several values, or of a single one."""
    if isinstance(measured, Spread):
        return measured
    return spread([measured] if isinstance(measured, (int, float)) else list(measured))


def worst(values: Sequence[float]) -> Spread:
    """The highest, with the range of all: for gates that each of several events must meet."""
    return Spread(max(values), min(values), max(values))


def report_text(parts: Sequence[Findings], about: Mapping[str, Any]) -> str:
    """The whole report: one table of all gates, then what belongs to each part."""
    verdicts = [verdict for part in parts for verdict in part.verdicts]
    judged = [verdict.is_met for verdict in verdicts if verdict.is_met is not None]
    remarks = [f"{part.title} ({part.seconds:.0f} s)\n{part.remarks()}" for part in parts]
    took_s = sum(part.seconds for part in parts)
    summary = f"{sum(judged)} of {len(judged)} gates met, in {took_s / 60:.1f} minutes"
    return "\n\n".join((machine_text(about), gates_table(verdicts), summary, *remarks)) + "\n"


def write_report(folder: Path, text: str, parts: Sequence[Findings], about: Mapping[str, Any]) -> None:
    """Writes ``report.txt`` and ``results.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(text, encoding="utf-8")
    document = {"machine": about, "parts": [_as_document(part) for part in parts]}
    (folder / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _as_document(part: Findings) -> dict[str, Any]:
    gates = [{**asdict(verdict), "met": verdict.is_met} for verdict in part.verdicts]
    return {**asdict(part), "verdicts": gates}
