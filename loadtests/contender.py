"""One server under open-loop load: its knee, what is left of it at twice the knee, and what its refusals cost."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass, field

from loadtests.bench_requests import WrongAnswer, ask, build
from loadtests.bench_servers import Server
from loadtests.knee import GOOD_SHARE
from loadtests.open_loop import Schedule, Tally, Target, run
from loadtests.open_requests import Questions, questions

OVERLOAD = 2.0
_TIMEOUT_SHARE = 0.9
_LATE_SHARE_OF_LIMIT = 0.1
_TRIES = 2
_LONGEST = 4
_CALM_S = 15.0
_FIRST_ANSWER_S = 60.0
_WARM_UP_PER_S = 20.0
_HOPELESS_TIMEOUT_S = 1e-6


@dataclass(frozen=True, slots=True)
class Objective:
    """What an answer must be worth.

    Attributes:
        limit_s: Within which time it must come.
        seconds: How long a run takes, if that gives enough requests.
        connections: How many the generator has: more than requests are under way if they are answered within the limit.
        enough_requests: How many a run should have; at 400 four may be late at the knee.
    """

    limit_s: float
    seconds: float
    connections: int = 1024
    enough_requests: int = 400

    def run_s(self, rate_per_s: float) -> float:
        """How long a run takes at a rate."""
        return max(self.seconds, min(self.enough_requests / rate_per_s, _LONGEST * self.seconds))

    @property
    def timeout_s(self) -> float:
        """What requests carry as ``timeout``: a client wants its refusal before it gives up itself."""
        return self.limit_s * _TIMEOUT_SHARE

    @property
    def most_late_s(self) -> float:
        """How late the generator may be."""
        return self.limit_s * _LATE_SHARE_OF_LIMIT


@dataclass(frozen=True, slots=True)
class Measured:
    """A run.

    Attributes:
        rate_per_s: The rate.
        tally: What came of it.
        cpu_s: What the server's processes have used.
        requests: For how many requests that was.
        generator_cores: How much of a core the generator took from them.
    """

    rate_per_s: float
    tally: Tally
    cpu_s: float
    requests: int
    generator_cores: float = 0.0

    @property
    def cpu_per_request_s(self) -> float:
        """CPU time by all requests that were sent."""
        return self.cpu_s / self.requests


@dataclass(frozen=True, slots=True)
class Overload:
    """A run at the knee and one at a multiple of it, right after each other."""

    knee: Measured
    over: Measured

    @property
    def kept(self) -> float:
        """Goodput under overload by goodput at the knee.

        A run at the knee that is worse than knees are by definition does not count in the server's favour.
        """
        return self.over.tally.goodput_per_s / max(self.knee.tally.goodput_per_s, GOOD_SHARE * self.knee.rate_per_s)

    @property
    def refusal_cpu_s(self) -> float:
        """CPU time of one refusal, if requests that were answered cost what they cost at the knee; NaN without any."""
        share = self.over.tally.refused / self.over.tally.requests
        answered = 1 - share
        if not share:
            return float("nan")
        return (self.over.cpu_per_request_s - answered * self.knee.cpu_per_request_s) / share


@dataclass(slots=True)
class Contender:
    """A server that is asked the questions of one model.

    Attributes:
        server: It runs.
        asked: The questions, with a timeout that is worth meeting.
        objective: What an answer must be worth.
        invalid_runs: How many runs were thrown away because the generator was late.
    """

    server: Server
    asked: Questions
    objective: Objective
    invalid_runs: int = field(default=0, init=False)

    def prepare(self) -> None:
        """Waits for the first right answer, which may have to wait for the model, and lets the server warm up.

        Raises:
            WrongAnswer: There is none for a long time.
        """
        give_up = time.monotonic() + _FIRST_ANSWER_S
        while True:
            try:
                ask(build(self.asked.model, "json", 1), self.server.address("json"))
                break
            except WrongAnswer:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
        self.measure(max(_WARM_UP_PER_S, 1 / self.objective.limit_s))

    def measure(self, rate_per_s: float, asked: Questions | None = None) -> Measured:
        """One run. It is repeated if the generator was late, which only ever makes a server look worse.

        A run that is good all the same stands; after some tries the last one is returned as it is.

        Raises:
            WrongAnswer: If there is a single one.
        """
        asked = asked or self.asked
        run_s = self.objective.run_s(rate_per_s)
        limit_s = self.objective.limit_s
        schedule = Schedule(rate_per_s, run_s, connections=self.objective.connections, give_up_s=limit_s)
        host, port = self.server.address("json").split(":")
        for _ in range(_TRIES):
            self._calm()
            before = self.server.cpu_s()
            outcome = run(Target(host, int(port), asked.requests), schedule)
            cpu_s = self.server.cpu_s() - before
            tally = outcome.tally(asked.is_right, limit_s, self.objective.most_late_s)
            generator_cores = outcome.generator_cpu_s / run_s
            measured = Measured(rate_per_s, tally, cpu_s, len(outcome.records), generator_cores)
            if tally.is_valid or tally.share_in_time >= GOOD_SHARE:
                break
            self.invalid_runs += 1
        if measured.tally.wrong:
            raise WrongAnswer(f"{self.server.name} gave {measured.tally.wrong} wrong answers for {asked.model.name}")
        return measured

    def overload(self, knee_per_s: float) -> Overload:
        """What is left of the server's goodput at twice its knee."""
        return Overload(self.measure(knee_per_s), self.measure(knee_per_s * OVERLOAD))

    def hopeless(self, rate_per_s: float) -> Measured:
        """A run of requests that can't be answered in the time they allow, so that all it shows is refusing."""
        return self.measure(rate_per_s, questions(self.asked.model, _HOPELESS_TIMEOUT_S))

    def _calm(self) -> None:
        """Waits until what an earlier run has left in queues is worked off."""
        give_up = time.monotonic() + _CALM_S
        while self._one_s() > self.objective.limit_s and time.monotonic() < give_up:
            pass

    def _one_s(self) -> float:
        """How long one request takes now."""
        head, _, body = self.asked.requests[0].partition(b"\r\n\r\n")
        connection = http.client.HTTPConnection(self.server.address("json"), timeout=_CALM_S)
        began = time.monotonic()
        try:
            connection.request("POST", head.split(b" ")[1].decode(), body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        except OSError:
            return float("inf")
        finally:
            connection.close()
        return time.monotonic() - began
