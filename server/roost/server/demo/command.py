"""``roost demo``: builds a model repository, starts a server on it, asks it questions and shows the answers."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from roost.server.demo import next_steps, report
from roost.server.demo.clients import DemoClient, open_clients
from roost.server.demo.clip import demo_sounds, write_clip
from roost.server.demo.errors import DemoError, Interrupted
from roost.server.demo.files import choose_files
from roost.server.demo.questions import ask_file_types, ask_speech
from roost.server.demo.repository import DemoRepository, build_repository
from roost.server.demo.server_process import DEFAULT_PORTS, DemoServer, Ports, start_server, usable_ports


def main(argv: Sequence[str]) -> int:
    """Runs the demo; returns its exit code (1: it could not go on, and one line on stderr says why)."""
    arguments = _parser().parse_args(argv)
    # A terminal that goes away or a service manager ends the demo as Ctrl-C does; nohup's wish is respected.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        _run(arguments)
    except DemoError as error:
        sys.stderr.write(f"roost demo: error: {' '.join(str(error).split())}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="roost demo",
        description="Serves two real models and asks them: which file types are the files here, and is this speech?",
    )
    parser.add_argument("--once", action="store_true", help="stop the server after the answers instead of serving on")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".demo"),
        help="where the model repository, the server's state and its log go (default: %(default)s)",
    )
    for name, port in (
        ("http", DEFAULT_PORTS.http),
        ("grpc", DEFAULT_PORTS.grpc),
        ("admin", DEFAULT_PORTS.admin),
    ):
        parser.add_argument(
            f"--{name}-port",
            type=int,
            default=port,
            metavar="PORT",
            help="port to listen on, 0 or one that is taken: any free port (default: %(default)s)",
        )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(0)


def _run(arguments: argparse.Namespace) -> None:
    console = report.make_console()
    folder: Path = arguments.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with report.step(console, f"building a model repository in {folder / 'models'}"):
            repository = build_repository(folder / "models")
            clip = write_clip(folder / "speech.wav")
    except OSError as error:
        raise DemoError(f"cannot write to {folder}: {error.strerror or error}") from error
    next_steps.write_request(folder / "request.json", clip)
    ports, taken = usable_ports(Ports(arguments.http_port, arguments.grpc_port, arguments.admin_port))
    if taken:
        console.print(f"taken: port {', '.join(map(str, taken))}; using free ones instead")
    try:
        with start_server(folder, repository.path, ports) as server:
            _serve(console, server, repository, folder, clip, once=arguments.once)
    except Interrupted:
        # The block above has stopped the server on the way out, in good order.
        console.print("the server has ended")


def _serve(
    console: Console, server: DemoServer, repository: DemoRepository, folder: Path, clip: Path, *, once: bool
) -> None:
    with report.step(console, "starting the server and its workers"):
        ports = server.wait_ready()
    _ask(console, ports, repository, clip)
    steps = next_steps.next_steps(ports, folder / "request.json")
    if once:
        report.show_next_steps(console, "Run 'make run' (or 'roost demo') without ONCE to try, while it serves:", steps)
        return
    report.show_next_steps(console, "Try next, in another terminal:", steps)
    console.print(f"REST on {ports.http_address}, gRPC on {ports.grpc_address}, admin on {ports.admin_address}")
    console.print(f"The server's log is {folder / 'server.log'}; README.md tells more. Ctrl-C ends the demo.")
    sys.stdout.flush()
    try:
        server.wait()
    except Interrupted:
        console.print("\nstopping: the server finishes what it has begun ...")
        raise


def _ask(console: Console, ports: Ports, repository: DemoRepository, clip: Path) -> None:
    here = Path.cwd()
    files = choose_files(here, [repository.model_file.resolve(), clip.resolve()], repository.file_types.suffixes)
    rest, grpc = open_clients(ports)
    try:
        with report.step(console, "saying hello over REST and gRPC"):
            name, version = rest.server()
            _check_server(grpc, name, version)
        with report.step(console, f"asking {name} {version} about {len(files)} files"):
            file_answers, magika_cost = ask_file_types(repository.file_types, files, rest, grpc)
        sounds = demo_sounds(clip)
        with report.step(console, f"asking {name} {version} about {len(sounds)} sounds, 32 ms by 32 ms"):
            sound_answers, silero_cost = ask_speech(sounds, rest, grpc)
    finally:
        rest.close()
        grpc.close()
    console.print()
    report.show_file_types(console, file_answers, here)
    report.show_speech(console, sound_answers)
    report.show_load_costs(console, [magika_cost, silero_cost], repository.sizes_bytes)


def _check_server(grpc: DemoClient, name: str, version: str) -> None:
    if grpc.server() != (name, version):
        raise DemoError("REST and gRPC are answered by different servers")
