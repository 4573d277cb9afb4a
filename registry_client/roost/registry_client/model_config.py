"""Model configurations: reading them, merging them with what a model says of itself, completing them.

The parts are in modules of their own; this one gathers what others use.
"""

from roost.registry_client.completion import complete_config
from roost.registry_client.description import (
    MAX_CONFIG_BYTES,
    ModelDescription,
    parse_config_json,
    parse_config_text,
)
from roost.registry_client.signature import effective_signature, served_versions, signature_from_config

__all__ = [
    "MAX_CONFIG_BYTES",
    "ModelDescription",
    "complete_config",
    "effective_signature",
    "parse_config_json",
    "parse_config_text",
    "served_versions",
    "signature_from_config",
]
