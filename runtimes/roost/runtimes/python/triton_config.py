"""The configuration that ``auto_complete_config`` of a Triton model may complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEDULERS = ("sequence_batching", "ensemble_scheduling")
_INPUT_KEYS = frozenset({"name", "data_type", "dims", "optional"})
_OUTPUT_KEYS = frozenset({"name", "data_type", "dims"})


class ModelConfig:
    """A model's configuration; what it says already can't be changed.

    Args:
        config: In Triton's JSON; not changed.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {**config, "input": [*config.get("input", ())], "output": [*config.get("output", ())]}

    def as_dict(self) -> dict[str, Any]:
        """What it says by now."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Sets the size of the largest batch.

        Raises:
            ValueError: If the configuration has a larger one.
        """
        configured = int(self._config.get("max_batch_size", 0))
        if configured > max_batch_size:
            raise ValueError(f"max_batch_size is {configured} in the configuration, and {max_batch_size} in the model")
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Has requests batched.

        Raises:
            ValueError: If the configuration has another scheduler.
        """
        other = next((name for name in _SCHEDULERS if name in self._config), None)
        if other is not None:
            raise ValueError(f"the configuration has {other}, and the model dynamic_batching")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Says whether there may be more or fewer responses than one.

        Raises:
            ValueError: If the configuration says something else.
        """
        unknown = transaction_policy_dict.keys() - {"decoupled"}
        if unknown:
            raise ValueError(f"the transaction policy has no '{min(unknown)}'")
        policy = self._config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            wanted = bool(transaction_policy_dict["decoupled"])
            if bool(policy.get("decoupled", wanted)) != wanted:
                raise ValueError(f"decoupled is {policy['decoupled']} in the configuration, and {wanted} in the model")
            policy["decoupled"] = wanted

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Adds an input.

        Raises:
            ValueError: If it lacks something, or the configuration says something else of it.
        """
        self._add("input", input, _INPUT_KEYS)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Adds an output.

        Raises:
            ValueError: If it lacks something, or the configuration says something else of it.
        """
        self._add("output", output, _OUTPUT_KEYS)

    def _add(self, side: str, item: Mapping[str, Any], keys: frozenset[str]) -> None:
        for key in ("name", "data_type", "dims"):
            if key not in item:
                raise ValueError(f"an {side} of auto_complete_config has no '{key}'")
        unknown = item.keys() - keys
        if unknown:
            raise ValueError(f"{side} '{item['name']}' of auto_complete_config has a '{min(unknown)}'")
        tensors: list[dict[str, Any]] = self._config[side]
        known = next((tensor for tensor in tensors if tensor["name"] == item["name"]), None)
        if known is None:
            tensors.append(dict(item))
            return
        for key, value in item.items():
            configured = known.get(key)
            if configured not in (None, "TYPE_INVALID", [], False) and configured != value:
                raise ValueError(
                    f"{side} '{item['name']}': {key} is {configured} in the configuration, and {value} here"
                )
            known[key] = value
