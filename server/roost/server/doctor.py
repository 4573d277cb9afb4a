"""``roost doctor``: whether a server would be well on this machine, and how many models would fit."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from roost.core.errors import RoostError
from roost.core.units import format_bytes
from roost.registry_client.repository import LocalRepository
from roost.router.sizes import estimated_bytes
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig, read_command
from roost.server.derived import mesh_settings
from roost.server.doctor_checks import Finding, Verdict, budget_bytes, check_folders, check_machine, limits
from roost.server.known_sizes import known_sizes
from roost.server.layers import read_layers
from roost.server.sizing import USED_VERSION_BYTES, Fit, ModelSize, Repositories, fit, read_repositories

_HELP = """usage: roost doctor [--json] [FLAGS OF roost serve]

Check this machine for a server with these flags, and say how many of the models of its
repositories fit into memory. Without --model-repository the machine alone is checked.
Nothing is started and nothing is changed.

flags:
  --json    print everything as JSON
  --help    show this help; 'roost serve --help' shows the other flags

The exit code is 1 if there is a problem, else 0.
"""
_MARKS = {Verdict.OK: "ok", Verdict.NOTE: "NOTE", Verdict.PROBLEM: "PROBLEM"}
_MAX_NAMED = 5
_SIZES_BYTES = (1 << 20, 10 << 20, 100 << 20, 1 << 30)


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost doctor``; 1 if there is a problem.

    Raises:
        ConfigError: If an argument is wrong.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_HELP)
        return 0
    environ = os.environ if environ is None else environ
    config, has_models = _configuration([arg for arg in argv if arg != "--json"], environ)
    findings = [*check_machine(config), *check_folders(config)]
    found = _read(config) if has_models else None
    result = fit(found.sizes, limits(config), config.workers) if found is not None else None
    if found is not None and result is not None:
        findings.append(_repositories(found, result))
        findings += _runs(found, config)
    if "--json" in argv:
        sys.stdout.write(_as_json(config, findings, found, result))
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(config, findings, found, result))
    return 1 if any(finding.verdict is Verdict.PROBLEM for finding in findings) else 0


def _configuration(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ServeConfig, bool]:
    """What a server with these flags would run with, and whether it was given models."""
    layers = read_layers(argv, environ)
    if any("model_repository" in layer for layer in (layers.flags, layers.environment, layers.file)):
        return read_command(argv, environ).config, True
    with tempfile.TemporaryDirectory() as empty:  # a server without a repository is a mistake, a check is not
        return read_command([*argv, "--model-repository", empty], environ).config, False


def _read(config: ServeConfig) -> Repositories:
    cache_dir = config.cache_dir if config.cache_bytes else None
    try:
        with known_sizes(config.state_dir, cache_dir, config.code_repositories) as known:
            repositories = (LocalRepository(path, config.model_format) for path in config.model_repositories)
            return read_repositories(repositories, known)
    except RoostError as error:
        raise ConfigError(error.message) from None


def _repositories(found: Repositories, result: Fit) -> Finding:
    kept_bytes = len(found.sizes) * USED_VERSION_BYTES
    text = (
        f"{found.models:,} models, {len(found.sizes):,} versions, {format_bytes(result.total_bytes)} if all are "
        f"loaded, and {format_bytes(kept_bytes)} in the server"
    )
    bad = [f"{name}: {reason}" for name, reason in found.broken]
    bad += [f"{size.name}: {_shown(size)} is more than there may be" for size in result.too_large]
    if bad:
        more = f"; and {len(bad) - _MAX_NAMED:,} more" if len(bad) > _MAX_NAMED else ""
        return Finding("models", Verdict.PROBLEM, text, "; ".join(bad[:_MAX_NAMED]) + more)
    if not found.models:
        return Finding("models", Verdict.NOTE, "there are none", "")
    return Finding("models", Verdict.OK, text)


def _runs(found: Repositories, config: ServeConfig) -> Iterator[Finding]:
    """What runs may take beside what is accounted for models, if that was measured of any."""
    most = _largest_run(found)
    if most is None or not most.run_bytes:
        return
    runs = _runs_at_once(config)
    text = (
        f"up to {format_bytes(runs * most.run_bytes)} beside that: {runs} at a time, of which a full batch of "
        f"{most.name} takes {format_bytes(most.run_bytes)}"
    )
    yield Finding("runs", Verdict.OK, text)


def _largest_run(found: Repositories) -> ModelSize | None:
    """The version whose full batch takes most; None if there are none."""
    return max(found.sizes, key=lambda size: size.run_bytes, default=None)


def _runs_at_once(config: ServeConfig) -> int:
    return config.workers * mesh_settings(config).spec.slots


def _shown(size: ModelSize) -> str:
    text = format_bytes(size.bytes)
    if size.mapped_bytes:
        text += f" and a file of {format_bytes(size.mapped_bytes)}"
    return f"{text} with {size.mappings:,} mappings" if size.mappings else text


def _lines(
    config: ServeConfig, findings: Sequence[Finding], found: Repositories | None, result: Fit | None
) -> Iterator[str]:
    for finding in findings:
        yield f"{_MARKS[finding.verdict]:<8} {finding.name:<14} {finding.text}"
        if finding.advice:
            yield f"{'':<23} {finding.advice}"
    budget = budget_bytes(config)
    about = "" if config.memory_budget_bytes is not None else "about "
    yield ""
    yield f"{about}{format_bytes(budget)} for models hold"
    if found is None or result is None or not found.sizes:
        for size_bytes in _SIZES_BYTES:
            one = _fit_of_equal(size_bytes, budget)
            yield f"  {one:>7,} models of {format_bytes(size_bytes)} on the disk"
        return
    if result.all_at_once:
        yield f"  all {len(found.sizes):,} versions at once"
        return
    yield f"  {result.on_average:>7,} of {len(found.sizes):,} versions, if those in use are of average size"
    if result.largest_first < result.smallest_first:
        yield f"  {result.largest_first:>7,} if they are the largest"
        yield f"  {result.smallest_first:>7,} if they are the smallest"
    yield "  the others are loaded when they are asked for, and evict what is used least"


def _fit_of_equal(file_bytes: int, budget: int) -> int:
    """How many models with so many bytes of files fit, if nothing is declared."""
    return budget // estimated_bytes(file_bytes)


def _as_json(config: ServeConfig, findings: Sequence[Finding], found: Repositories | None, result: Fit | None) -> str:
    most = _largest_run(found) if found is not None else None
    document = {
        "findings": [asdict(finding) for finding in findings],
        "budget_bytes": budget_bytes(config),
        "models": None if found is None else found.models,
        "versions": None if found is None else len(found.sizes),
        "run_bytes": _runs_at_once(config) * most.run_bytes if most is not None else None,
        "fit": None if result is None else asdict(result),
    }
    return json.dumps(document, indent=2) + "\n"
