"""Every source of chance of a run, taken from its seed.

Rules of this file:

- Nothing here changes what the code does, only what it draws: which task runs first, ids, jitter, the time of day.
- Replacements are found by what they are, not by where they stand: every module of the daemon and of the protocol that
  holds `uuid7`, `uuid4`, `time` or `datetime` under whatever name gets the seeded one. A new import cannot slip
  through, and `test_chance.py` says which kinds there may be.
- Trio shuffles the tasks of every tick on purpose. For Hypothesis it has a switch that makes the shuffle depend on
  nothing but its own generator: tasks are sorted by age first, because the sets they come out of are ordered by
  address. That switch, and that generator, are the seeded scheduler.
- What is ordered by address or by string hash elsewhere (sets of sessions, of scopes) may only decide who is woken
  first within one tick, which the scheduler shuffles anyway. That it decides nothing more is what running every
  checked seed twice, in processes with different hash seeds, is for.
"""

from __future__ import annotations

import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import trio
import trio._core._run as trio_run
import uuid_utils

EPOCH_S = 1_800_000_000
"""Unix time at which every simulated world begins."""

GOVERNED = ("ledgerd.engine", "ledgerd.gateway", "ledgerd.supervision", "ledgerd_protocol", "trio_websocket", "wsproto")
"""Modules that run in the simulation and draw."""

_uuid7, _uuid4, _time, _datetime = uuid_utils.uuid7, uuid.uuid4, time, datetime


def now_s() -> float:
    """The simulated time of day, in Unix seconds: the mock clock from `EPOCH_S` on."""
    return EPOCH_S + trio.current_time()


def now_us() -> int:
    """The same in microseconds, as the model counts."""
    return EPOCH_S * 1_000_000 + round(trio.current_time() * 1_000_000)


class _Datetime(datetime):
    """A datetime whose present is simulated."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(now_s(), tz)


class Uuids:
    """Ids from a generator of their own: version 7 with simulated time, version 4."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def uuid7(self) -> uuid.UUID:
        """Like `uuid_utils.uuid7`: ascending by time."""
        ms, low = int(now_s() * 1000), self._rng.getrandbits(74)
        return uuid.UUID(int=(ms << 80) | (7 << 76) | ((low >> 62) << 64) | (2 << 62) | (low & (2**62 - 1)))

    def uuid4(self) -> uuid.UUID:
        """Like `uuid.uuid4`."""
        return uuid.UUID(int=self._rng.getrandbits(128), version=4)


def governed_modules() -> list[ModuleType]:
    """The modules that are imported by now and draw."""
    return [
        module
        for name, module in sorted(sys.modules.items())
        if any(name == root or name.startswith(root + ".") for root in GOVERNED)
    ]


@contextmanager
def governed(seed: str) -> Iterator[None]:
    """Everything in the block draws from the seed; afterwards all is as before."""
    ids = Uuids(Random(f"ids {seed}"))
    replacements: list[tuple[Any, Any]] = [
        (_uuid7, ids.uuid7),
        (_uuid4, ids.uuid4),
        (_time, SimpleNamespace(time=now_s, monotonic=trio.current_time, perf_counter=trio.current_time)),
        (_datetime, _Datetime),
    ]
    places: list[tuple[Any, str, Any]] = [
        (uuid_utils, "uuid7", ids.uuid7),
        (uuid, "uuid4", ids.uuid4),
        (os, "urandom", Random(f"bytes {seed}").randbytes),
        (trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (trio_run, "_r", Random(f"schedule {seed}")),
    ]
    for module in governed_modules():
        for name, value in list(vars(module).items()):
            places += [(module, name, new) for old, new in replacements if value is old]
    with _replaced(places):
        state = random.getstate()
        random.seed(f"jitter {seed}")
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def _replaced(places: list[tuple[Any, str, Any]]) -> Iterator[None]:
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in places]
    try:
        for holder, name, new in places:
            setattr(holder, name, new)
        yield
    finally:
        for holder, name, old in reversed(before):
            setattr(holder, name, old)
