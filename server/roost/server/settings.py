"""The settings of ``roost serve``: one field for each flag, ``ROOST_`` variable and key of the YAML file.

Flags, help texts and ``docs/configuration.md`` are made from the fields, so a setting is described here and
nowhere else. Values may be written as people write them (``64MiB``, ``30s``); fields hold bytes and seconds.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import SettingsConfigDict
from roost.server.setting import LOGS, MEMORY, MODELS, setting
from roost.server.settings_limits import GrpcSettings, LimitSettings
from roost.server.settings_models import ModelSettings
from roost.server.settings_workers import WorkerSettings
from roost.server.values import MAX_HISTOGRAM_MODELS, HistogramModels, Switch, choice


class Settings(GrpcSettings, LimitSettings, WorkerSettings, ModelSettings):
    """Everything that can be set; ``None`` stands for what is worked out from the machine.

    Help texts and documentation have the fields in order: those of the last base class first, its own last.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=False, protected_namespaces=())

    log_level: Annotated[str, BeforeValidator(choice("debug", "info", "warning", "error"))] = setting(
        "info", LOGS, "debug|info|warning|error", "Least severe log lines to write."
    )
    log_format: Annotated[str, BeforeValidator(choice("human", "json"))] = setting(
        "human", LOGS, "human|json", "Whether log lines are written for people or as one JSON object each."
    )
    access_log: Switch = setting(False, LOGS, "", "Write a log line for each request. Tensors are never logged.")
    histogram_model: HistogramModels = setting(
        (),
        LOGS,
        "NAME",
        "Model that gets latency histograms of its own, beside those over all models. Give it several times for "
        f"several models, at most {MAX_HISTOGRAM_MODELS}, since each costs about 100 time series.",
    )
    triton_metrics: Switch = setting(
        True,
        LOGS,
        "",
        "Expose Triton's metrics (`nv_...`) beside those of the server: 14 time series, about 1 KB of each scrape, for "
        "every version of a model that is used.",
    )
    fake_gpus: Switch = setting(
        False, MEMORY, "", "Run what is placed on GPUs on the CPU, for tests without any.", hidden=True
    )
    enable_dummy: Switch = setting(
        False, MODELS, "", "Allow the dummy runtime, which misbehaves on command.", hidden=True
    )
