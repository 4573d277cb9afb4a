"""``make fuzz``: a long run of all targets, or of those named; ends with 1 if anything is wrong."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.driver import describe, fuzz, replay
from tests.fuzz.targets import targets


def _main() -> int:
    found = {target.name: target for target in targets()}
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*found, []], help="all of them by default")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", metavar="BASE64", help="run one input of one target, as a report printed it")
    arguments = parser.parse_args()
    names = arguments.targets or list(found)
    if arguments.replay is not None:
        replay(found[names[0]], arguments.replay)
        return 0
    failed = False
    for name in names:
        report = fuzz(found[name], -(-arguments.inputs // len(names)), arguments.seed)
        print(describe(found[name], report), flush=True)
        for violation in report.violations:
            print(f"  {violation}", flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(_main())
