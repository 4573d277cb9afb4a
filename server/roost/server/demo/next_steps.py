"""What to try next: commands that work as they are printed while the demo's server is up."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
from roost.server.demo.clip import SAMPLE_RATE, read_clip
from roost.server.demo.errors import DemoError
from roost.server.demo.repository import SILERO
from roost.server.demo.server_process import Ports
from roost.server.demo.vad_client import chunk_inputs, first_state

_SNIPPET = """\
{python} - <<'END'
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("{address}")
arrays = {{"input": np.zeros((1, 576), "f4"), "state": np.zeros((2, 1, 128), "f4"), "sr": np.array(16000)}}
inputs = []
for name, array in arrays.items():
    inputs.append(triton.InferInput(name, list(array.shape), "INT64" if name == "sr" else "FP32"))
    inputs[-1].set_data_from_numpy(array)
print("speech probability of silence:", client.infer("silero_vad", inputs).as_numpy("output"))
END"""


def write_request(path: Path, clip: Path) -> None:
    """Writes a JSON request that asks silero-vad about the loudest chunk of the clip.

    Raises:
        DemoError: If the file can't be written.
    """
    chunk = max(chunk_inputs(read_clip(clip)), key=lambda part: float(np.abs(part).sum()))
    request = {
        "inputs": [
            # Rounded as doubles, which JSON writes with the digits that are left: enough for 16-bit samples.
            {"name": "input", "shape": [1, 576], "datatype": "FP32", "data": chunk.astype(float).round(5).tolist()},
            {"name": "state", "shape": [2, 1, 128], "datatype": "FP32", "data": first_state().tolist()},
            {"name": "sr", "shape": [], "datatype": "INT64", "data": [SAMPLE_RATE]},
        ],
        "outputs": [{"name": "output"}],
    }
    try:
        path.write_text(json.dumps(request) + "\n", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"cannot write the example request: {error}") from error


def next_steps(ports: Ports, request: Path) -> list[tuple[str, str]]:
    """Pairs of what a command does and the command.

    Args:
        ports: Where the server listens.
        request: The file that ``write_request`` wrote, as the user may name it from here.
    """
    base = f"http://{ports.http_address}/v2"
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    roost = shlex.quote(str(python.with_name("roost")))
    post = "curl -s -X POST -H 'Content-Type: application/json'"
    return [
        ("what the model takes and gives", f"curl -s {base}/models/{SILERO}"),
        (
            "is this speech? (one chunk of the clip, as JSON)",
            f"{post} -d @{shlex.quote(str(request))} {base}/models/{SILERO}/infer",
        ),
        ("all models of the repository", f"curl -s -X POST {base}/repository/index"),
        ("metrics for Prometheus", f"curl -s http://{ports.admin_address}/metrics"),
        ("workers, the models in them, and their memory", f"{roost} status --admin-port {ports.admin}"),
        ("a request from Python", _SNIPPET.format(python=shlex.quote(str(python)), address=ports.http_address)),
    ]
