"""What is shipped: the layout of the source tree, the wheel, an installation from it, and the image's build steps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from roost.core.version import __version__

CHECKOUT = Path(__file__).resolve().parents[2]
IMPORT_ROOTS = ("proto", "server", "router", "runtimes", "registry_client")
PACKAGES = ("core", "proto", "server", "router", "runtimes", "registry_client")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
INSTALL_TIMEOUT_S = 280.0


def clean_environment() -> dict[str, str]:
    """The environment without what would lead an installed Python back into the checkout, or configure Roost."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ROOST_", "PYTHON", "VIRTUAL_ENV")) and name != "PIP_REQUIRE_VIRTUALENV"
    }


def run(*command: str | Path, cwd: Path) -> str:
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", output, CHECKOUT, cwd=output)
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


class TestSourceTree:
    def test_no_root_closes_the_namespace(self) -> None:
        """A roost/__init__.py in one import root would hide the packages of all the others."""
        assert [root for root in IMPORT_ROOTS if (CHECKOUT / root / "roost/__init__.py").exists()] == []

    def test_import_roots_are_no_packages(self) -> None:
        """The import name proto belongs to proto-plus; the others would shadow as well."""
        assert [root for root in IMPORT_ROOTS if (CHECKOUT / root / "__init__.py").exists()] == []

    @pytest.mark.parametrize("package", PACKAGES)
    def test_every_package_is_marked_as_typed(self, package: str) -> None:
        (directory,) = CHECKOUT.glob(f"*/roost/{package}")
        assert (directory / "py.typed").is_file()
        assert (directory / "__init__.py").is_file()

    def test_type_checks_and_import_contracts_cover_every_package(self) -> None:
        """Neither tool finds the parts of a namespace package by itself."""
        tools = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]
        assert set(tools["mypy"]["packages"]) == {f"roost.{package}" for package in PACKAGES}
        assert set(tools["importlinter"]["root_packages"]) == {f"roost.{package}" for package in PACKAGES}

    def test_no_package_is_unknown_here(self) -> None:
        found = {path.parent.name for root in IMPORT_ROOTS for path in (CHECKOUT / root).glob("roost/*/__init__.py")}
        assert found == set(PACKAGES)


class TestWheel:
    def test_top_level_is_roost_alone(self, wheel_names: list[str]) -> None:
        top_level = {name.partition("/")[0] for name in wheel_names}
        assert top_level == {"roost", f"roost-{__version__}.dist-info"}

    def test_holds_every_package(self, wheel_names: list[str]) -> None:
        assert "roost/__init__.py" not in wheel_names
        assert {f"roost/{package}/__init__.py" for package in PACKAGES} <= set(wheel_names)
        assert {f"roost/{package}/py.typed" for package in PACKAGES} <= set(wheel_names)

    def test_holds_what_the_wire_contract_is_loaded_from(self, wheel_names: list[str]) -> None:
        generated = {"descriptors.binpb", "grpc_service_pb2.pyi", "model_config_pb2.pyi"}
        assert {f"roost/proto/{name}" for name in generated} <= set(wheel_names)

    def test_holds_every_source_file(self, wheel_names: list[str]) -> None:
        sources = {
            str(path.relative_to(CHECKOUT / root))
            for root in IMPORT_ROOTS
            for path in (CHECKOUT / root / "roost").rglob("*.py")
        }
        assert sources <= set(wheel_names)


def write_add_model(repository: Path) -> None:
    """A repository with one model, ``add``: SUM = A + B, INT32 [-1, 4]."""
    version = repository / "add" / "1"
    version.mkdir(parents=True)
    names = ("A", "B", "SUM")
    a, b, total = (helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 4]) for name in names)
    graph = helper.make_graph([helper.make_node("Add", ["A", "B"], ["SUM"])], "add", [a, b], [total])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), version / "model.onnx"
    )


@contextmanager
def serving(roost: Path, directory: Path) -> Iterator[dict[str, int]]:
    """Runs ``roost serve`` on free ports until the block ends; yields the ready file's content."""
    ready_file = directory / "ready.json"
    log_file = directory / "serve.log"
    flags = {
        "--model-repository": directory / "models",
        "--http-port": 0,
        "--grpc-port": 0,
        "--admin-port": 0,
        "--state-dir": directory / "state",
        "--cache-dir": directory / "cache",
        "--ready-file": ready_file,
    }
    command = [str(roost), "serve", *(str(part) for flag in flags.items() for part in flag)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=clean_environment(), stdout=log, stderr=log)
    try:
        yield wait_until_ready(process, ready_file, log_file)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0, log_file.read_text()
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> dict[str, int]:
    step_s = 0.05
    for _ in range(int(START_TIMEOUT_S / step_s)):
        if ready_file.exists():
            return {name: int(value) for name, value in json.loads(ready_file.read_bytes()).items()}
        try:
            code = process.wait(step_s)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"roost serve ended with {code} before it was ready:\n{log_file.read_text()}")
    pytest.fail(f"roost serve was not ready after {START_TIMEOUT_S} s:\n{log_file.read_text()}")


def infer(port: int, model: str, inputs: dict[str, list[int]]) -> dict[str, Any]:
    tensors = [
        {"name": name, "datatype": "INT32", "shape": [1, len(data)], "data": data} for name, data in inputs.items()
    ]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{model}/infer",
        data=json.dumps({"inputs": tensors}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.timeout(300)
def test_installed_wheel_serves_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    run(tmp_path / "venv/bin/pip", "install", "--quiet", f"{wheel}[onnx]", cwd=tmp_path)
    roost = tmp_path / "venv/bin/roost"
    assert __version__ in run(roost, "--version", cwd=tmp_path)

    write_add_model(tmp_path / "models")
    with serving(roost, tmp_path) as ready:
        assert set(ready) == {"http", "grpc", "admin", "pid"}
        answer = infer(ready["http"], "add", {"A": [1, 2, 3, 4], "B": [10, 20, 30, 40]})
    assert answer["model_name"] == "add"
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"], output["data"]) == ("SUM", [1, 4], [11, 22, 33, 44])


def read_build_steps(dockerfile: str) -> list[str]:
    """The RUN commands of a Dockerfile's build stage, continuation lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    instructions = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    steps, stage = [], ""
    for instruction in instructions:
        keyword, _, rest = instruction.partition(" ")
        if keyword == "FROM":
            stage = rest.split()[-1]
        elif keyword == "RUN" and stage == "build":
            steps.append(rest)
    return steps


@pytest.mark.timeout(300)
def test_build_steps_of_the_image_give_a_working_installation(tmp_path: Path) -> None:
    """Runs the Dockerfile's own install commands, with its absolute paths moved below a temporary folder."""
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    steps = read_build_steps(dockerfile)
    assert any("pip wheel" in step for step in steps)
    assert any("pip install" in step for step in steps)

    copy_build_context(tmp_path / "src")
    python3 = f'"{sys.executable}"'
    for step in steps:
        moved = re.sub(r"(?<![\w./])/(src|opt)\b", rf"{tmp_path}/\1", step)
        moved = re.sub(r"(?<![\w./-])python3(?= )", lambda _: python3, moved)
        # An image should not keep pip's cache; a test run should not download everything again.
        moved = moved.replace(" --no-cache-dir", "")
        run("env", "VARIANT=cpu", "sh", "-euc", moved, cwd=tmp_path)

    assert __version__ in run(tmp_path / "opt/roost/bin/roost", "--version", cwd=tmp_path)
    run(tmp_path / "opt/roost/bin/python", "-c", "import onnxruntime, roost.proto.grpc_service_pb2", cwd=tmp_path)


def copy_build_context(target: Path) -> None:
    """Copies what .dockerignore lets through, so that a missing entry there fails the build here too."""
    patterns = (CHECKOUT / ".dockerignore").read_text().split("\n")
    target.mkdir()
    for name in (pattern[1:] for pattern in patterns if pattern.startswith("!")):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)


def test_image_runs_without_privileges_and_with_a_health_check() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    final_stage = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*", final_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\\\n\s+CMD .*/v2/health/live", final_stage, re.MULTILINE)
    assert re.search(r"^EXPOSE 8080 8081 8082$", final_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["roost"]' in final_stage
