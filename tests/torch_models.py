"""Builds models of PyTorch and says what it answers itself: run as a program, since tests do not import PyTorch.

``python -m tests.torch_models FOLDER`` leaves there files ``NAME.pt`` and ``NAME.pt2``, and ``NAME.npz`` with inputs
and outputs by name, of those that have answers.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CHUNK = 512
"""Samples of sound that silero-vad takes at a time."""


class ConvNet(nn.Module):
    """Images FP32 [batch, 3, 16, 16] to classes FP32 [batch, 10]; its statistics are updated in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.body(x)), dim=1)


class Both(nn.Module):
    """Sum and difference, by name."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "difference": a - b}


class Pair(nn.Module):
    """The same in a tuple, the second one in double precision."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, (a - b).double()


class Counter(nn.Module):
    """Counts its runs, and refuses negative sums."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() < 0):
            raise ValueError("the sum is negative")
        count = self.count.add_(1)  # type: ignore[operator]
        return count


class InPlace(nn.Module):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Scaled(nn.Module):
    """An argument that is a number, one that is optional."""

    def forward(self, x: torch.Tensor, factor: int, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = x * factor
        return y if bias is None else y + bias


class Halves(nn.Module):
    """BF16 in and out, through half the memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.t() * 2


class Nested(nn.Module):
    """Takes a list of two and a keyword, gives a result that is none and one that is one."""

    def forward(self, pair: list[torch.Tensor], *, more: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, pair[0] + pair[1].view(2, -1).sum(0) + more


class Reader(nn.Module):
    """Looks into a file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/passwd", False, 4, dtype=torch.uint8)


class Writer(nn.Module):
    """Writes a file; the only thing that this does not write is the answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "/tmp/roost-must-not-be-there")
        return x


def main(folder: Path) -> None:
    """Writes everything."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    script(folder, "pair", Pair())
    script(folder, "both", Both())
    script(folder, "counter", Counter())
    script(folder, "in_place", InPlace())
    script(folder, "scaled", Scaled())
    script(folder, "halves", Halves())
    script(folder, "reader", Reader())
    script(folder, "writer", Writer())
    wide = nn.Sequential(nn.Linear(16, 160_000), nn.Linear(160_000, 16))
    script(folder, "wide", wide)
    save(folder, "wide", torch.export.export(wide, (torch.rand(4, 16),)))
    conv_net(folder)
    silero(folder)
    torch.save(ConvNet().state_dict(), folder / "state_dict.pt")
    torch.save(ConvNet().state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    exports(folder)


def script(folder: Path, name: str, module: nn.Module) -> None:
    torch.jit.script(module.eval()).save(str(folder / f"{name}.pt"))  # type: ignore[no-untyped-call]


def conv_net(folder: Path) -> None:
    net = ConvNet()
    with torch.no_grad():
        net(torch.rand(32, 3, 16, 16))  # statistics that are not those of the start
    net.eval()
    script(folder, "conv", net)
    x = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        answers(folder, "conv", {"x": x}, {"y": net(x)})
    batch = torch.export.Dim("batch", min=1, max=64)
    save(folder, "conv", torch.export.export(net, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},)))


def silero(folder: Path) -> None:
    """silero-vad, which keeps state: five chunks of the same sound, one after the other."""
    path = distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")
    model = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    seconds = np.arange(5 * CHUNK, dtype=np.float32) / 16000
    sound = torch.from_numpy(np.sin(2 * np.pi * 220 * seconds) * np.sin(2 * np.pi * 3 * seconds)).view(5, 1, CHUNK)
    with torch.inference_mode():
        speech = torch.stack([model(chunk, 16000) for chunk in sound])
    answers(folder, "silero", {"x": sound}, {"y": speech})
    rows = {f"x{n}": sound[:n, 0] for n in (3, 2)}  # another number of rows makes it begin anew
    with torch.inference_mode():
        answers(folder, "silero_rows", rows, {f"y{n}": model(rows[f"x{n}"], 16000) for n in (3, 2)})


def exports(folder: Path) -> None:
    a, b = torch.rand(3, 4), torch.rand(3, 4)
    rows = torch.export.Dim("rows", min=1, max=8)
    save(folder, "both", torch.export.export(Both(), (a, b), dynamic_shapes=({0: rows}, {0: rows})))
    answers(folder, "both", {"a": a, "b": b}, {"sum": a + b, "difference": a - b})
    size = torch.export.Dim("size", min=2, max=64)
    sizes = {"pair": [{0: size}, {0: 2 * size}], "more": {0: size}}
    values = torch.rand(3), torch.rand(6)
    save(folder, "nested", torch.export.export(Nested(), (list(values),), {"more": values[0]}, dynamic_shapes=sizes))
    # The programs that are made worse here are otherwise as they should be.
    edited(folder, "pickled", "data/weights/model_weights_config.json", pickled, source="conv")
    edited(folder, "calls", "models/model.json", calls, source="both")
    edited(folder, "samples", "data/sample_inputs/model.pt", partial(samples, folder / "was-run"), source="both")
    edited(folder, "short", "data/0", lambda data: data[:-4], source="conv", suffix="pt")
    # The number of rows has no limit here.
    rows = torch.export.Dim("rows")
    save(folder, "open", torch.export.export(Both(), (a, b), dynamic_shapes=({0: rows}, {0: rows})))


def save(folder: Path, name: str, program: torch.export.ExportedProgram) -> None:
    torch.export.save(program, folder / f"{name}.pt2")


def answers(folder: Path, name: str, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
    arrays: dict[str, Any] = {key: value.numpy() for key, value in {**inputs, **outputs}.items()}
    np.savez(folder / f"{name}.npz", **arrays)


def edited(
    folder: Path, name: str, entry: str, edit: Callable[[bytes], bytes], source: str, suffix: str = "pt2"
) -> None:
    """Copies an archive with one entry changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(folder / f"{source}.{suffix}") as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.split("/", 1)[1] == entry:
                data = edit(data)
            new.writestr(item.filename, data)
    (folder / f"{name}.{suffix}").write_bytes(target.getvalue())


def pickled(data: bytes) -> bytes:
    config = json.loads(data)
    next(iter(config["config"].values()))["use_pickle"] = True
    return json.dumps(config).encode()


def calls(data: bytes) -> bytes:
    program = json.loads(data)
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.getpid"
    return json.dumps(program).encode()


class Mkdir:
    """Its unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def samples(folder: Path, _: bytes) -> bytes:
    target = io.BytesIO()
    torch.save(((Mkdir(folder),), {}), target)
    return target.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
