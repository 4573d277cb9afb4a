"""The command ``roost``. Each subcommand imports what it needs when it runs, so that help and version are instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from roost.core.version import __version__


class _Command(NamedTuple):
    run: Callable[[Sequence[str]], int]
    summary: str


def _serve(argv: Sequence[str]) -> int:
    # numpy comes with threads for products of matrices, of which there are none here; workers have their own number.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from roost.server.config import read_command
    from roost.server.effective_config import effective_yaml

    command = read_command(argv)
    if command.print_config:
        sys.stdout.write(effective_yaml(command.config))
        return 0
    # Workers are started by fork and exec, and gRPC's fork handlers, run in between, abort or hang the child at times.
    # Whether there are any is decided when gRPC is imported.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # So that one thread does what three threads hand to each other otherwise, for a tenth of what a call costs.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    from roost.server.lifecycle import serve

    return serve(command.config)


def _status(argv: Sequence[str]) -> int:
    from roost.server.status import main as status

    return status(argv)


def _top(argv: Sequence[str]) -> int:
    from roost.server.top import main as top

    return top(argv)


def _doctor(argv: Sequence[str]) -> int:
    from roost.server.doctor import main as doctor

    return doctor(argv)


def _inspect(argv: Sequence[str]) -> int:
    from roost.server.inspection.command import main as inspect

    return inspect(argv)


def _demo(argv: Sequence[str]) -> int:
    from roost.server.demo.command import main as demo

    return demo(argv)


def _prepare(argv: Sequence[str]) -> int:
    from roost.server.prepare import main as prepare

    return prepare(argv)


COMMANDS = {
    "serve": _Command(_serve, "serve models over REST and gRPC"),
    "status": _Command(_status, "show the workers of a running server, their models and memory"),
    "top": _Command(_top, "watch a running server: models by rate, workers, memory, cold starts"),
    "inspect": _Command(_inspect, "say what Roost sees in a model's folder or file, and what is missing"),
    "prepare": _Command(_prepare, "save models in the form that loads fastest on this machine"),
    "doctor": _Command(_doctor, "check this machine for a server, and say how many models fit"),
    "demo": _Command(_demo, "serve real models that come in Python packages, and ask them something"),
}


def fail(message: str, code: int = 2) -> int:
    """Writes one line to stderr and returns the exit code."""
    sys.stderr.write(f"roost: error: {' '.join(message.split())}\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code (2: nothing was started because the command line is wrong)."""
    argv = sys.argv[1:] if argv is None else argv
    first = argv[0] if argv else ""
    if first in ("--version", "-V"):
        sys.stdout.write(f"roost {__version__}\n")
        return 0
    if first in ("--help", "-h", "help"):
        sys.stdout.write(_help())
        return 0
    if not first:
        sys.stderr.write(_help())
        return 2
    if first not in COMMANDS:
        return fail(_unknown(first))
    if sys.platform != "linux":
        return fail(f"Roost runs on Linux only, this is {sys.platform}")
    return _run(COMMANDS[first], argv[1:])


def _run(command: _Command, argv: Sequence[str]) -> int:
    from roost.server.arguments import ConfigError

    try:
        code = command.run(argv)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return fail(str(error))
    except SystemExit as stop:  # argparse ends so after it has printed a help text
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough; what is still buffered must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _help() -> str:
    lines = [
        "usage: roost COMMAND [FLAGS]",
        "",
        "Serve thousands of models from the memory of a few.",
        "",
        "commands:",
        *(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "flags:",
        "  --version show the version",
        "  --help    show this help; 'roost COMMAND --help' shows a command's flags",
        "",
    ]
    return "\n".join(lines)


def _unknown(word: str) -> str:
    from roost.server.arguments import did_you_mean

    kind = "flag" if word.startswith("-") else "command"
    return f"unknown {kind} {word}" + (did_you_mean(word, [*COMMANDS, "--version", "--help"]) or "; see roost --help")


if __name__ == "__main__":
    sys.exit(main())
