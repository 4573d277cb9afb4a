"""``roost inspect``: its command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig, read_command
from roost.server.inspection.lines import lines_of
from roost.server.inspection.looking import Looker
from roost.server.inspection.targets import Target, target_of
from roost.server.known_sizes import known_sizes

_HELP = """usage: roost inspect PATH [--json] [--load] [FLAGS OF roost serve]

Say what Roost sees in a model's folder, in a version of it, or in a file: which runtime and
why, what it takes and gives, its memory, whether requests are batched, and what is missing.
Files are read, nothing in them is run.

flags:
  --json    print everything as JSON
  --load    load the model as well, in a process of its own, to see what it says then and
            what it takes
  --help    show this help; 'roost serve --help' shows the other flags

The exit code is 1 if something has to be put right before a server with these flags serves
it, else 0.
"""
_SWITCHES = ("--json", "--load")


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Runs ``roost inspect``; 1 if there is a problem.

    Raises:
        ConfigError: If an argument is wrong.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_HELP)
        return 0
    if not argv or argv[0].startswith("-"):
        raise ConfigError("a path comes first: roost inspect PATH")
    target = target_of(argv[0])
    config = _configuration(target, [arg for arg in argv[1:] if arg not in _SWITCHES], environ)
    allow_code = target.repository in config.code_repositories
    cache_dir = config.cache_dir if config.cache_bytes else None
    with known_sizes(config.state_dir, cache_dir, config.code_repositories) as known:
        looker = Looker(config, known, allow_code=allow_code, may_load="--load" in argv)
        report = looker.look(target)
    if "--json" in argv:
        sys.stdout.write(json.dumps(report.document(), indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines_of(report))
    return 0 if report.is_ready else 1


def _configuration(target: Target, argv: Sequence[str], environ: Mapping[str, str] | None) -> ServeConfig:
    """That of a server which has the model's repository and these flags."""
    environ = os.environ if environ is None else environ
    return read_command([*argv, "--model-repository", str(target.repository)], environ).config
