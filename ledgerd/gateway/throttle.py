"""Token buckets: so many requests at once, so many more per second, for each of many keys.

They live in this daemon's memory, because a request must not cost a round trip to the database to be counted. Wrong
passwords are counted there, for all daemons: see `ledgerd.gateway.authentication.Credentials`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import trio

from ledgerd_protocol.errors import ErrorCode, LedgerError

KEYS_MAX = 100_000
"""Buckets kept. The one that was used longest ago is forgotten first; it was full, or will be missed by nobody."""


class Throttle:
    """One bucket for each key. A rate of 0 is no limit. Not shared between daemons."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens left, at trio time

    def allow(self, rate_per_s: float, burst: int) -> None:
        """Go by these figures from now on; what has been taken stays taken."""
        self._rate_per_s = rate_per_s
        self._burst = burst

    def take(self, key: Hashable, count: int = 1) -> float:
        """Take ``count`` tokens. 0.0 if they were there, else in how many seconds one will be; none are taken then.

        More than a burst at once is let through by a full bucket, which then owes the rest.
        """
        if self._rate_per_s == 0:
            return 0.0
        left = self._left(key)
        if left < min(count, self._burst):
            return (min(count, self._burst) - left) / self._rate_per_s
        self._buckets[key] = (left - count, trio.current_time())
        if len(self._buckets) > KEYS_MAX:
            self._buckets.popitem(last=False)
        return 0.0

    def require(self, key: Hashable, count: int = 1) -> None:
        """Take ``count`` tokens. Raises LedgerError ``rate_limited`` with the time to wait if they are not there."""
        wait_s = self.take(key, count)
        if wait_s > 0:
            raise LedgerError(ErrorCode.RATE_LIMITED, retry_after_ms=int(wait_s * 1000) + 1)

    def _left(self, key: Hashable) -> float:
        bucket = self._buckets.get(key)
        if bucket is None:
            return float(self._burst)
        self._buckets.move_to_end(key)
        tokens, since = bucket
        return min(self._burst, tokens + (trio.current_time() - since) * self._rate_per_s)
