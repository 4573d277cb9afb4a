"""Settings of processes and memory: a part of ``roost.server.settings.Settings``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings
from roost.server.setting import MEMORY, setting
from roost.server.values import (
    AutoSize,
    AutoSizeOrNone,
    Devices,
    Duration,
    OptionalPath,
    Switch,
    WorkerCountSpecs,
    WorkerLabelSpecs,
    Workers,
    choice,
)


class WorkerSettings(BaseSettings):
    """Workers and memory."""

    workers: Workers = setting(
        None,
        MEMORY,
        "N",
        "Number of worker processes that models run in. Those of ONNX Runtime are always there.",
        shown_default="one for each CPU that the process may use, less one, at least one",
    )
    workers_of: WorkerCountSpecs = setting(
        (),
        MEMORY,
        "KIND=N",
        "Number of worker processes of another kind: torch, tensorflow, sklearn or python. They are started when a "
        "model needs them. With 0 such models are refused. Give it several times for several kinds.",
        shown_default="as many as `--workers`, at most 4",
    )
    worker_idle_timeout: Duration = setting(
        60.0,
        MEMORY,
        "DURATION",
        "How long workers of another kind stay when no model is loaded in them.",
    )
    devices: Devices = setting(
        "auto",
        MEMORY,
        "auto|cpu|GPU[,GPU]",
        "What models run on. With `auto` on all NVIDIA GPUs that there are, as far as their frameworks can use them, "
        "else on the CPU. GPUs are named by numbers, such as `cuda:0`, or the beginnings of their UUIDs; parts of "
        "divided ones (MIG) are GPUs of their own. Each has a budget of its own, of the memory that is free at the "
        "start. Needs `nvidia-ml-py`.",
    )
    worker_labels: WorkerLabelSpecs = setting(
        (),
        MEMORY,
        "[N:]NAME=VALUE[,NAME=VALUE]",
        "Labels of worker N, which are counted from 0 in each kind, or of all of them. Models may require or prefer "
        "them. Give it several times for several workers.",
        separator=";",
    )
    memory_budget: AutoSize = setting(
        None,
        MEMORY,
        "SIZE",
        "Memory that loaded models may take, without what the idle processes take. When it is full, models are "
        "evicted in the order that `--eviction` says.",
        shown_default="70 % of the memory limit of the container or else of the machine, less the measured idle use",
    )
    eviction: Annotated[str, BeforeValidator(choice("lru", "cost"))] = setting(
        "lru",
        MEMORY,
        "lru|cost",
        "Which model goes when another one needs its memory. With `lru` the one that was not used for the longest "
        "time. With `cost` the one whose going brings the least loading back: use often, load slowly and take little "
        "memory, and a model stays; models that are used on a timer are loaded shortly before it.",
    )
    arena_size: AutoSizeOrNone = setting(
        None,
        MEMORY,
        "SIZE",
        "Memory that the server shares with each worker at most, for large tensors on their way to and from models, "
        "beside `--memory-budget`. It is taken as it is needed and given back when it is not. What does not fit goes "
        "through a socket, which is slower; 0 is for all of it.",
        shown_default="an eighth of the memory, at most 1GiB",
    )
    state_dir: OptionalPath = setting(
        None,
        MEMORY,
        "DIR",
        "Folder for what survives a restart, such as digests and signatures of models. "
        "One server at a time can use it.",
        shown_default="`$XDG_STATE_HOME/roost`, else `~/.local/state/roost`",
    )
    cache_dir: OptionalPath = setting(
        None,
        MEMORY,
        "DIR",
        "Folder for prepared copies: models saved in the form that loads fastest on this machine, made in the "
        "background or by `roost prepare`. Several servers can share it, and all of it may be deleted at any time.",
        shown_default="`$XDG_CACHE_HOME/roost`, else `~/.cache/roost`",
    )
    cache_size: AutoSizeOrNone = setting(
        None,
        MEMORY,
        "SIZE",
        "What all prepared copies may take on the disk; those used longest ago go first. 0 is for none.",
        shown_default="a tenth of the file system, at most 20GiB",
    )
    response_cache_size: AutoSizeOrNone = setting(
        None,
        MEMORY,
        "SIZE",
        "Memory for answers that are kept for requests that are the same, of models whose configuration has "
        "`response_cache { enable: true }`, beside `--memory-budget`. Those used longest ago go first. 0 is for none.",
        shown_default="a 32nd of the memory, at most 256MiB",
    )
    measure_models: Switch = setting(
        True,
        MEMORY,
        "",
        "Find out in the background, after the first load of a model, what an instance of it takes, and account for "
        "that instead of an estimate. Models whose configuration sets `roost.memory_bytes` are not measured.",
    )
    preload: Switch = setting(
        True,
        MEMORY,
        "",
        "After the start, load the models again that were in use before it, in the background, last used first, as far "
        "as they fit into the memory budget.",
    )
