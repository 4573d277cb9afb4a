"""A model of PyTorch and one of XGBoost, which double their input: ``python -m tests.kinds_models FOLDER``.

A process of its own, since the one that runs tests imports no framework.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

NET, TREES = "net", "trees"


def main(folder: Path) -> None:
    """Writes ``net/1/model.pt``, ``trees/1/model.json``, and what the trees say of 0 to 3 to ``trees.npy``."""
    import torch
    import xgboost

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    for name in (NET, TREES):
        (folder / name / "1").mkdir(parents=True)
    net: Any = torch.jit.script(Double())
    net.save(str(folder / NET / "1" / "model.pt"))
    rows = np.arange(40, dtype=np.float32).reshape(-1, 1) % 4
    trees = xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0] * 2), num_boost_round=8)
    trees.save_model(folder / TREES / "1" / "model.json")
    np.save(folder.parent / "trees.npy", trees.predict(xgboost.DMatrix(rows[:4])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
