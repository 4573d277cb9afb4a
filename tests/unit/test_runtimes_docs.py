"""The runtime that ``docs/runtimes.md`` writes as an example is loaded and run, and its registration is one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.core.errors import InvalidArgument
from roost.core.tensors import from_array, to_array
from roost.registry_client.backends import BACKENDS, Backend
from roost.runtimes.adapters import ADAPTERS, Adapter
from roost.runtimes.protocol import LoadSpec, RunHandle

PAGE = Path(__file__).parents[2] / "docs" / "runtimes.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTION = TEXT.split("\n## Adding a runtime\n")[1]
MODULE, ADAPTER, BACKEND = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)


def test_the_example_is_a_runtime(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "linear"}
    exec(compile(MODULE, "linear.py", "exec"), namespace)
    weights, bias = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones(2, np.float32)
    np.savez(tmp_path / "model.npz", weights=weights, bias=bias)
    runtime = namespace[eval(ADAPTER, {"Adapter": Adapter}).cls]()
    model = runtime.load(LoadSpec(str(tmp_path / "model.npz"), str(tmp_path)))
    rows = np.ones((4, 3), np.float32)
    (output,) = model.run([from_array("x", "FP32", rows)], [], RunHandle())
    np.testing.assert_allclose(to_array(output), rows @ weights + bias)
    assert [spec.shape for spec in (*model.signature.inputs, *model.signature.outputs)] == [(-1, 3), (-1, 2)]
    model.close()
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match="not a linear model"):
        runtime.load(LoadSpec(str(tmp_path / "bad.npz"), str(tmp_path)))


def test_its_registration_is_one() -> None:
    adapter, backend = eval(ADAPTER, {"Adapter": Adapter}), eval(BACKEND, {"Backend": Backend})
    assert adapter.module.endswith(backend.name)
    assert backend.name not in BACKENDS
    assert adapter.kind in {known.kind for known in ADAPTERS.values()}


def test_the_page_has_all_backends() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \| [^|]* \|$", TEXT, re.MULTILINE)
    assert dict(rows) == {name: adapter.kind for name, adapter in ADAPTERS.items() if name != "dummy"}
