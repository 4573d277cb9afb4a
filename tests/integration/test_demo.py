"""``roost demo`` for real: a server process, both models, both transports, and the commands it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("magika")
pytest.importorskip("tritonclient.grpc")

TIMEOUT_S = 90
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0", "--admin-port", "0"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with files of known types, which the demo is started in."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "README.md").write_text(
        "# Title\n\nSome *text* with a [link](https://example.org).\n\n- one\n- two\n" * 9
    )
    (folder / "program.py").write_text("import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n\n\nmain()\n" * 9)
    (folder / "data.json").write_text(json.dumps({"names": ["a", "b"], "numbers": list(range(200))}, indent=2))
    return folder


def command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "roost.server.cli", "demo", "--folder", str(folder), *flags]


def flat(text: str) -> str:
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", text).split())


def assert_answers(output: str) -> None:
    text = flat(output)
    for file, label in (
        ("README.md", "markdown"),
        ("program.py", "python"),
        ("data.json", "json"),
        ("model.onnx", "onnx"),
        ("speech.wav", "wav"),
    ):
        assert re.search(rf"{re.escape(file)} {label} ", text), f"{file} is not called {label} in:\n{output}"
    assert re.search(r"a sentence, read aloud \(3\.0 s\) yes, at 0\.\d-2\.\d s", text), output
    assert "silence (3.0 s) none" in text, output
    assert "white noise (3.0 s) none" in text, output


def test_once_prints_answers_of_both_models_and_ends(project: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        command(tmp_path / "demo", "--once", *FREE_PORTS),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert_answers(run.stdout)


@pytest.fixture
def serving(project: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(tmp_path / "demo", *FREE_PORTS),
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    yield process
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    pytest.fail(f"the demo ended early:\n{''.join(lines)}{process.stderr.read() if process.stderr else ''}")


def printed_commands(output: str) -> list[str]:
    """What stands below each '# comment' of the last part of the output."""
    parts = re.split(r"\n# [^\n]*\n", output.split("Try next", 1)[1])
    return [part.split("\n\n\n")[0].strip() for part in parts[1:-1]] + [re.split(r"\n\nREST on", parts[-1])[0].strip()]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_printed_commands_work_while_it_serves_and_an_interrupt_ends_it(
    serving: subprocess.Popen[str], project: Path, tmp_path: Path
) -> None:
    output = read_until(serving, "Ctrl-C ends the demo")
    assert_answers(output)
    commands = printed_commands(output)
    assert len(commands) == 6, commands
    answers = []
    for line in commands:
        tried = subprocess.run(
            ["bash", "-c", line], cwd=project, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert tried.returncode == 0, f"{line}\n{tried.stdout}{tried.stderr}"
        answers.append(tried.stdout)
    metadata, speech, index, metrics, status, python = answers
    assert json.loads(metadata)["name"] == "silero_vad"
    assert json.loads(speech)["outputs"][0]["data"][0] > 0.1
    assert {entry["name"] for entry in json.loads(index)} == {"magika", "silero_vad", "silero_vad_sequences"}
    assert "# TYPE " in metrics
    assert "magika" in status
    assert "speech probability of silence: [[0." in python
    server = json.loads((tmp_path / "demo" / "ready.json").read_text())["pid"]
    serving.send_signal(signal.SIGINT)
    out, err = serving.communicate(timeout=TIMEOUT_S)
    assert (serving.returncode, err) == (0, ""), out
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.parametrize("words", ["starting the server", "asking"])
def test_a_signal_in_the_middle_ends_server_and_demo_without_a_traceback(
    serving: subprocess.Popen[str], words: str
) -> None:
    read_until(serving, words)
    serving.send_signal(signal.SIGTERM)
    out, err = serving.communicate(timeout=TIMEOUT_S)
    assert (serving.returncode, err) == (0, ""), out
    assert "the server has ended" in out


def test_a_taken_port_is_replaced_by_a_free_one(project: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        run = subprocess.run(
            command(tmp_path / "demo", "--once", "--http-port", taken, "--grpc-port", "0", "--admin-port", "0"),
            cwd=project,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"taken: port {taken}" in run.stdout


def test_a_server_that_cannot_start_is_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "state").write_text("a file where the state folder should be")
    run = subprocess.run(
        command(tmp_path / "demo", "--once", *FREE_PORTS),
        cwd=project,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("roost demo: error: the server did not start: ")
    assert run.stderr.count("\n") == 1
