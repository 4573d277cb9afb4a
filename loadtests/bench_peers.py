"""Other servers with the same models: each in an environment of its own, tuned as its documents say.

All run ONNX Runtime with one thread, in one process for each model or one for all, as the server does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from loadtests.bench_requests import Protocol
from loadtests.bench_servers import Server, models_json
from loadtests.models import BenchModel
from tests.server import HOST

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).with_name("peers")
ENVIRONMENTS = ROOT / ".venv" / "peers"
SHM_BYTES = 256 * 1024 * 1024


class Peer(Server):
    """A server that lives in ``.venv/peers/<name>``."""

    @classmethod
    def environment_folder(cls) -> Path:
        """Where it is installed."""
        return ENVIRONMENTS / cls.name

    @classmethod
    def install(cls) -> None:
        """Makes its environment if that is missing or was made of other requirements.

        Raises:
            subprocess.CalledProcessError: If pip could not install it.
        """
        requirements = SCRIPTS / f"{cls.name}.txt"
        folder = cls.environment_folder()
        wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
        stamp = folder / "installed"
        if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
            return
        print(f"Installing {cls.name} into {folder.relative_to(ROOT)} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        stamp.write_text(wanted, encoding="ascii")

    def program(self, name: str) -> str:
        """A program of its environment."""
        return str(self.environment_folder() / "bin" / name)

    @property
    def packages(self) -> Path:
        """Where its environment keeps packages."""
        return next(self.environment_folder().glob("lib/python*/site-packages"))

    def write_models_json(self) -> Mapping[str, str]:
        """Tells its script about the models."""
        file = self.folder / "models.json"
        file.write_text(models_json(self.models), encoding="utf-8")
        return {"BENCH_MODELS": str(file)}


class Triton(Peer):
    """Triton's C++ server with its Python backend, from the wheel of nvidia-pytriton."""

    name = "triton"
    http_threads: ClassVar[int] = 8

    def prepare(self) -> None:
        """Writes its repository: the same configuration with another backend."""
        for model in self.models:
            version = self.folder / "models" / model.name / "1"
            version.mkdir(parents=True, exist_ok=True)
            for link, target in (
                (version / "model.onnx", model.file),
                (version / "model.py", SCRIPTS / "triton_model.py"),
            ):
                link.unlink(missing_ok=True)
                link.symlink_to(target.resolve())
            (version.parent / "config.pbtxt").write_text(model.config(backend="python"), encoding="utf-8")

    def command(self) -> list[str]:
        """Without metrics, and with shared memory for the backend that holds the largest tensors."""
        home = self.packages / "pytriton" / "tritonserver"
        return [
            str(home / "bin" / "tritonserver"),
            f"--model-repository={self.folder / 'models'}",
            f"--backend-directory={home / 'backends'}",
            f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--http-thread-count={self.http_threads}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
            "--grpc-infer-allocation-pool-size=64",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
            "--log-info=false",
        ]

    def environment(self) -> Mapping[str, str]:
        """The backend's stub looks for Python's library and packages by these."""
        stub = self._stub()
        link = self.packages / "pytriton" / "tritonserver" / "backends" / "python" / "triton_python_backend_stub"
        if not link.exists():
            link.symlink_to(stub)
        libraries = [str(self.packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
        return {
            "PATH": f"{self.environment_folder() / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.packages),
            "LD_LIBRARY_PATH": ":".join(libraries),
        }

    def _stub(self) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            self.packages
            / "pytriton"
            / "tritonserver"
            / "python_backend_stubs"
            / version
            / "triton_python_backend_stub"
        )


class Mosec(Peer):
    """mosec: a front end in Rust, a worker process for each model that reads and writes JSON."""

    name = "mosec"
    protocols = frozenset(("json",))

    def command(self) -> list[str]:
        """One server with a route for each model; batches are formed of what waits."""
        line = [self.program("python"), str(SCRIPTS / "mosec_server.py")]
        line += ["--address", HOST, "--port", str(self.http_port), "--path", str(self.folder / "socket")]
        return [*line, "--log-level", "warning", "--timeout", "30000", "--max-request-size", str(SHM_BYTES)]

    def environment(self) -> Mapping[str, str]:
        """Where the script finds the models."""
        return self.write_models_json()

    def ready_path(self, model: BenchModel) -> str:
        """It has no readiness of single models; the first check of answers waits for them."""
        return "/"


class MLServer(Peer):
    """MLServer with a runtime of our own for ONNX, in the server's process and without adaptive batching."""

    name = "mlserver"
    protocols: ClassVar[frozenset[Protocol]] = frozenset(("json", "grpc"))

    def prepare(self) -> None:
        """Writes its settings and those of the models."""
        settings = {
            "host": HOST,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "debug": False,
            "parallel_workers": 0,
            "metrics_endpoint": None,
            "gzip_enabled": False,
        }
        (self.folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        for model in self.models:
            file = self.folder / model.name / "model-settings.json"
            file.parent.mkdir(exist_ok=True)
            document = {
                "name": model.name,
                "implementation": "mlserver_runtime.OnnxModel",
                "parameters": {"uri": str(model.file.resolve())},
            }
            file.write_text(json.dumps(document), encoding="utf-8")

    def command(self) -> list[str]:
        """Serves its folder."""
        return [self.program("mlserver"), "start", str(self.folder)]

    def environment(self) -> Mapping[str, str]:
        """Where it finds the runtime."""
        return {"PYTHONPATH": str(SCRIPTS)}


class KServe(Peer):
    """The model server of KServe's SDK, one process."""

    name = "kserve"

    def command(self) -> list[str]:
        """The script takes the ports, the SDK the rest."""
        line = [self.program("python"), str(SCRIPTS / "kserve_server.py"), str(self.http_port), str(self.grpc_port)]
        return [*line, "--configure_logging", "false"]

    def environment(self) -> Mapping[str, str]:
        """Where the script finds the models."""
        return self.write_models_json()


PEERS: Sequence[type[Peer]] = (Triton, Mosec, MLServer, KServe)
