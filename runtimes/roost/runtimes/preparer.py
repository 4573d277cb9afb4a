"""Entry of the preparer's process: ``python -m roost.runtimes.preparer``.

It finds things out about models that take time and memory, one job after another, in the background: each line of
its standard input is a job in JSON, each line of its standard output what came of one. It gives way to everything else
on the machine, may take no more memory than a job was given, and ends with its input.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from roost.core.errors import RoostError
from roost.runtimes.child import configure_child_logging, die_with_parent, ignore_terminal, offer_to_oom_killer

_log = logging.getLogger("roost.runtimes.preparer")

NICENESS = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13

Job = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Does jobs until its input ends."""
    ignore_terminal()
    arguments = _parse(argv)
    configure_child_logging(arguments.log_level, arguments.log_format, {"worker": "preparer"}, _log)
    die_with_parent()
    offer_to_oom_killer()
    step_back()
    # What models and libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)
    os._exit(0)  # whatever threads still do


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="roost-preparer", description="A background process; the router starts it.")
    parser.add_argument("--log-level", default="info", help="least severe level of its log")
    parser.add_argument("--log-format", default="human", help="how log lines look: human or json")
    return parser.parse_args(argv)


def step_back() -> None:
    """Runs and reads only when nobody else wants to, as far as the system allows."""
    for give_way in (_run_last, _read_last):
        try:
            give_way()
        except OSError as error:
            _log.debug("no lower priority: %s", error)


def _run_last() -> None:
    """A 70th of what others get. SCHED_IDLE gives a fifth of that: on a busy server nothing would ever be found out."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _read_last() -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE):
        raise OSError("the system refused")


def _serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    for line in jobs:
        # Who reads the answers knows by their end that the processes that a job has started have gone, too.
        fields = {**json.loads(line), "keep_open": answers.fileno()}
        answers.write(json.dumps({"id": fields["id"], **_answer(fields)}).encode() + b"\n")
        answers.flush()


def _answer(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What comes of a job: a result, or an error whose text may be shown."""
    job = JOBS.get(str(fields.get("job")))
    if job is None:
        return {"error": "there is no such job"}
    try:
        return {"result": job(fields)}
    except RoostError as error:
        return {"error": error.message}
    except ImportError as error:
        return {"error": f"the package '{error.name}' is not installed", "missing": True}
    except MemoryError:
        return {"error": "not enough memory"}
    except Exception:
        _log.exception("a job failed")
        return {"error": "an unexpected error, see the server's log"}


def limit_memory(size_bytes: int) -> None:
    """Lets this process have so many more private bytes than it has now; beyond, allocations fail."""
    used_bytes = 0
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmData:"):
                used_bytes = int(line.split()[1]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used_bytes + size_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _prove_batching(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whether rows of a model may be run together; see ``roost.runtimes.proof``."""
    from roost.runtimes.proof.prove import prove
    from roost.runtimes.protocol import LoadSpec

    limit_memory(int(fields["memory_bytes"]))  # not earlier: libraries reserve a lot when they are imported
    options = {str(key): str(value) for key, value in fields["options"].items()}
    verdict = prove(
        LoadSpec(str(fields["path"]), str(fields["root"]), int(fields["threads"]), options),
        max_rows=int(fields["max_rows"]),
        budget_s=float(fields["budget_s"]),
        samples=fields["samples"],
        samples_root=str(fields["samples_root"]),
    )
    return {"max_rows": verdict.max_rows, "reason": verdict.reason}


def _prepare_copy(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Makes a prepared copy of a model, in processes of its own; see ``roost.runtimes.prepared``."""
    from roost.runtimes.prepared.jobs import prepare_copy

    return prepare_copy(fields)


def _check_copy(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whether a prepared copy is what was written."""
    from roost.runtimes.prepared.jobs import check_copy

    return check_copy(fields)


def _measure(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an instance of a model takes, found out in a process of its own."""
    from roost.runtimes.measuring import measure

    return measure(fields)


JOBS: Mapping[str, Job] = {
    "prove_batching": _prove_batching,
    "prepare_copy": _prepare_copy,
    "check_copy": _check_copy,
    "measure": _measure,
}
"""What it can do, by name."""


if __name__ == "__main__":
    main()
