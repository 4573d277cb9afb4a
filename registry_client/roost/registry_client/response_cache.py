"""What a configuration says of answers that are kept for requests that are the same."""

from __future__ import annotations

from roost.core.errors import InvalidArgument
from roost.proto import model_config_pb2 as mc


def check_response_cache(config: mc.ModelConfig) -> None:
    """Refuses a cache where a request's answer is not one that the next one may have as well.

    Raises:
        InvalidArgument: Saying why there can be none.
    """
    if not config.response_cache.enable:
        return
    if config.model_transaction_policy.decoupled:
        raise InvalidArgument("response_cache is not supported for models with decoupled transaction policy")
    if config.HasField("sequence_batching"):
        raise InvalidArgument("response_cache is not supported for models with sequence_batching")
    if config.HasField("ensemble_scheduling"):
        raise InvalidArgument("response_cache is not supported for ensembles: their steps may have one")
