"""Step 5 of the data path: what is said of loads that come to nothing before they have begun."""

from __future__ import annotations

from roost.core.errors import Cancelled, Limit, ResourceExhausted
from roost.core.figures import Figures
from roost.core.units import format_bytes
from roost.router.loads import Load, LoadPriority
from roost.router.plans import Figure, Refuse


def nobody_waits() -> Cancelled:
    """A load is not wanted any more."""
    return Cancelled("nobody waits for this load any more")


def too_large(load: Load, figures: Figures, refusal: Refuse) -> ResourceExhausted:
    """It would not fit even alone."""
    key = load.revision.key
    if refusal.figure is Figure.MAPPINGS:
        what = f"{figures.mappings} mappings, more than the {refusal.available:.0f} that a process may have for it"
    elif refusal.figure is Figure.MEMORY:
        needed = format_bytes(figures.private_bytes + figures.mapped_bytes)
        available = format_bytes(int(refusal.available))
        what = f"{needed} with the files that it maps, more than the {available} of memory that there is for it"
    elif refusal.figure is Figure.DEVICE:
        available = format_bytes(max(0, int(refusal.available)))
        what = f"{format_bytes(figures.device_bytes)} of a GPU's memory, more than the {available} that there is for it"
    else:
        available = format_bytes(int(refusal.available))
        what = f"{format_bytes(figures.private_bytes)}, more than the {available} that the memory budget has for it"
    return ResourceExhausted(f"model '{key.name}' version {key.version} needs {what}", limit=Limit.NO_MEMORY)


def no_room(load: Load) -> ResourceExhausted:
    """It may evict nothing that would have to go."""
    name = load.revision.key.name
    if load.priority is LoadPriority.LOOK:
        text = (
            f"model '{name}' was never loaded and there is no room to look at it without evicting a model that is in "
            "use: declare its inputs and outputs in config.pbtxt, or send it a request"
        )
    else:
        text = f"there is no room for another instance of model '{name}' without evicting a model that was used since"
    return ResourceExhausted(text, retry_after_s=1.0, limit=Limit.NO_MEMORY)
