"""Where programs are: on the CPU, or on the only GPU that the process sees."""

from __future__ import annotations

from typing import Any

import torch
from roost.runtimes.protocol import NoGpu

CPU = torch.device("cpu")
_GPU = torch.device("cuda", 0)


def find_gpu() -> torch.device:
    """The GPU, which is ready to be used then.

    Raises:
        NoGpu: If there is none that PyTorch can use.
    """
    if not torch.cuda.is_available():
        raise NoGpu("this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch finds none")
    try:
        torch.zeros(1, device=_GPU)
    except RuntimeError as error:
        raise NoGpu(str(error).partition("\n")[0]) from None
    return _GPU


def moved(value: Any, device: torch.device) -> Any:
    """An input where its program is; those that are no tensors are nowhere."""
    return value.to(device) if isinstance(value, torch.Tensor) else value


def wait_for(device: torch.device) -> None:
    """Returns when what was begun has been computed, so that it counts as that and not as the way back."""
    if device.type == _GPU.type:
        torch.cuda.current_stream(device).synchronize()
