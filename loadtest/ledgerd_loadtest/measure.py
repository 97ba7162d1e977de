"""What a measurement is, and the arithmetic on measurements. Pure.

A window is a stretch of steady load between two looks at the clock. Windows that are to be compared are measured in the
same round, one right after the other, because a shared machine is faster in one minute than in the next; what is
reported is the median of the ratios of those pairs, not the ratio of two medians.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct


class Cpu(Struct, frozen=True):
    """CPU seconds. ``client`` is the process that makes the load; None is a process that could not be looked at."""

    client_s: float
    daemon_s: float | None
    postgres_s: float | None

    def since(self, start: Cpu) -> Cpu:
        """What was used between an earlier look and this one."""
        return Cpu(
            self.client_s - start.client_s,
            _less(self.daemon_s, start.daemon_s),
            _less(self.postgres_s, start.postgres_s),
        )


class Window(Struct, frozen=True):
    """One measured stretch: what was answered in it and how long the answers took, in seconds.

    ``client_busy`` is the share of one core that the busiest process of the load generator used.
    """

    transfers: int
    seconds: float
    latency_p50_s: float
    latency_p99_s: float
    cpu: Cpu
    client_busy: float
    refused: int = 0

    @property
    def rate(self) -> float:
        """Transfers per second."""
        return self.transfers / self.seconds


class Target(Struct, frozen=True):
    """A figure that the release must reach (``least``) or must not exceed, and where it stood in each round."""

    name: str
    bound: float
    least: bool
    values: list[float]

    @property
    def value(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of the bound."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed. NaN of nothing."""
    if not sorted_values:
        return math.nan
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)]


def pair_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios round by round. Raises ValueError if a round is missing on one side."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def best(windows_by_name: dict[str, list[Window]]) -> str:
    """The name whose median rate over the rounds is highest."""
    return max(windows_by_name, key=lambda name: statistics.median(window.rate for window in windows_by_name[name]))


def joined(windows: Sequence[Window], latencies: Sequence[float]) -> Window:
    """One window of several generators that ran at the same time; ``latencies`` are those of all of them.

    The first of the windows has looked at the daemon and at PostgreSQL for all.
    """
    values = sorted(latencies)
    return Window(
        transfers=sum(window.transfers for window in windows),
        seconds=max(window.seconds for window in windows),
        latency_p50_s=percentile(values, 0.50),
        latency_p99_s=percentile(values, 0.99),
        cpu=Cpu(sum(window.cpu.client_s for window in windows), windows[0].cpu.daemon_s, windows[0].cpu.postgres_s),
        client_busy=max(window.client_busy for window in windows),
        refused=sum(window.refused for window in windows),
    )


def _less(now: float | None, start: float | None) -> float | None:
    return None if now is None or start is None else now - start
