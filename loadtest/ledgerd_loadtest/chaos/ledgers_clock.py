"""The ledger's own clock, moved with the owner's connection: holds run out and payments fall due while things break."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import trio

from ledgerd_loadtest.baseline import BaselineFailed, value

_MOVE = "UPDATE ledgerd.settings SET clock_offset = clock_offset + $1 RETURNING 1"

STEP_S = 2.0
STEPS_S = (20.0, 20.0, 20.0, 40_000.0)
"""Mostly less than a hold lasts; now and then half a day, until payments of advances are due."""


def move_clock(dsn: str, seconds: float) -> None:
    """Let so many seconds pass at once. Raises BaselineFailed, OSError."""
    value(dsn, _MOVE, timedelta(seconds=seconds))


async def let_time_pass(dsn: str) -> None:
    """Move the clock for ever; while the database is away it stands still."""
    while True:
        for step_s in STEPS_S:
            await trio.sleep(STEP_S)
            try:
                await trio.to_thread.run_sync(partial(move_clock, dsn, step_s))
            except (BaselineFailed, OSError):
                continue
