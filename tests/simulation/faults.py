"""What goes wrong, and how often: drawn anew for every seed, so that each runs with a few kinds of trouble, not all.

A world in which everything fails all the time is as tame as one in which nothing does: nobody gets far enough to do
harm. So a seed enables some kinds only, each with a rate of its own.
"""

from __future__ import annotations

from enum import Enum
from random import Random

from msgspec import Struct


class Fault(Enum):
    """What happens to one call of a lane."""

    NONE = "nothing"
    BEFORE = "the connection is lost before the call is sent"
    LOST_BEFORE_COMMIT = "the connection is lost, and nothing is committed"
    LOST_AFTER_COMMIT = "the connection is lost after the commit, before the answer"
    CUT = "the daemon loses the connection at once, while the server goes on and commits"
    LATE = "the daemon loses the connection at once, and the server comes to the call long after that"
    SLOW = "the call takes long, its locks held"
    STALLED = "the commit takes long, its locks held"
    DEADLOCK = "the call is chosen as the victim of a deadlock, rolled back and run again"


RATES = {
    Fault.BEFORE: (0.02, 0.1),
    Fault.LOST_BEFORE_COMMIT: (0.02, 0.1),
    Fault.LOST_AFTER_COMMIT: (0.02, 0.15),
    Fault.CUT: (0.02, 0.15),
    Fault.LATE: (0.02, 0.15),
    Fault.SLOW: (0.05, 0.2),
    Fault.STALLED: (0.03, 0.1),
    Fault.DEADLOCK: (0.05, 0.3),
}
"""How often a kind happens when it is enabled: about one of these."""


class Weather(Struct):
    """The trouble of one seed. ``calm`` switches all of it off."""

    rng: Random
    calls: dict[Fault, float]
    reads_fail: float
    reads_slow: float
    hints_lost: float
    hints_doubled: float
    hints_late_s: float
    calm: bool = False

    def of_call(self) -> Fault:
        """What happens to the next call."""
        if not self.calm:
            draw = self.rng.random()
            for fault, rate in self.calls.items():
                draw -= rate
                if draw < 0:
                    return fault
        return Fault.NONE

    def read_fails(self) -> bool:
        """Whether the next read is lost."""
        return not self.calm and self.rng.random() < self.reads_fail

    def read_takes_s(self) -> float:
        """How long the next read takes."""
        slow = not self.calm and self.rng.random() < self.reads_slow
        return self.rng.choice((0.3, 1.0, 2.5)) if slow else self.rng.choice((0.0002, 0.001, 0.004))

    def hint_arrives_s(self) -> list[float]:
        """After how long the next hint arrives at one daemon: never, once, or more often."""
        if self.calm:
            return [0.001]
        if self.rng.random() < self.hints_lost:
            return []
        times = 2 if self.rng.random() < self.hints_doubled else 1
        return [self.rng.random() * self.hints_late_s for _ in range(times)]


def weather_of(rng: Random) -> Weather:
    """The trouble of a seed. One of eight has none of these at all."""
    kinds = list(RATES)
    enabled = [] if rng.random() < 0.125 else rng.sample(kinds, rng.randrange(1, 5))
    return Weather(
        rng=rng,
        calls={fault: rng.choice(RATES[fault]) for fault in enabled},
        reads_fail=rng.choice((0, 0, 0.02, 0.1)),
        reads_slow=rng.choice((0, 0, 0.05)),
        hints_lost=rng.choice((0, 0.3, 1)),
        hints_doubled=rng.choice((0, 0.5)),
        hints_late_s=rng.choice((0.001, 0.2, 3.0)),
    )
