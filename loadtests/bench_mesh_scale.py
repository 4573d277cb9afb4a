"""How much the mesh bench measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Counts and durations; the default is the full run.

    Attributes:
        models: How many models are registered, and how many are resident.
        rounds: How often things that are compared take turns.
        seconds: How long one of them is measured at a time.
        resident_s: How long all resident models are asked.
        churn_models: How many tiny models compete for memory; of magikas there is one for a hundred of them.
        different: How many different models are loaded and unloaded in turn.
        cycles: How often that is.
        kills: How many workers are killed.
        trials: In how many fresh processes a model is loaded each way.
        seeds: How many traces of each kind the simulator runs through.
        traces: How many kinds.
    """

    models: int = 20_000
    rounds: int = 3
    seconds: float = 10.0
    resident_s: float = 30.0
    churn_models: int = 5000
    different: int = 50
    cycles: int = 1000
    kills: int = 23
    trials: int = 5
    seeds: int = 1
    traces: int = 99


FULL = Scale()
QUICK = Scale(
    models=2000,
    rounds=1,
    seconds=4.0,
    resident_s=6.0,
    churn_models=2000,
    different=20,
    cycles=100,
    kills=4,
    trials=1,
    traces=3,
)
