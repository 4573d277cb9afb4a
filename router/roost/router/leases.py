"""Step 5: leases that last longer than a run, which sequences have on the loaded copy that knows them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from roost.router.placement import Ledger
from roost.router.revision import Instance
from roost.router.runs import Runs
from roost.router.states import InstanceState


@dataclass(frozen=True, slots=True)
class Leases:
    """See the module.

    Attributes:
        ledger: Never chooses who is held to go.
        runs: Sees to what waits for the end of an instance's last lease.
    """

    ledger: Ledger
    runs: Runs

    def take(self, instance: Instance) -> None:
        """An instance that takes batches stays until this is given back, or its worker is lost."""
        instance.leases += 1
        self.ledger.hold(instance.id, time.monotonic())

    def give_back(self, instance: Instance) -> None:
        """Ends a lease; that of an instance that has gone has ended with it."""
        if instance.state is InstanceState.READY or instance.state is InstanceState.DRAINING:
            self.ledger.let_go(instance.id)
            self.runs.release(instance, time.monotonic())
