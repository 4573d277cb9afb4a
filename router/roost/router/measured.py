"""Under which key of the store stands what an instance of a model takes."""

from __future__ import annotations

import hashlib
import json

from roost.registry_client.model_config import ModelDescription
from roost.router.proof import runtime_version

MEASURING_VERSION = 1
"""Of the way in which it is measured."""


def measured_conditions(description: ModelDescription, *, prepared: bool = False, on_gpu: bool = False) -> str:
    """What the figures of an instance depend on besides the model's files.

    Args:
        description: The model's configuration.
        prepared: Whether the instance is loaded from a prepared copy.
        on_gpu: Whether it is loaded on a GPU.
    """
    chosen = json.dumps([dict(description.options), prepared, *(["gpu"] if on_gpu else [])], sort_keys=True)
    key = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    return f"{MEASURING_VERSION}/{description.backend}/{runtime_version()}/{key}"
