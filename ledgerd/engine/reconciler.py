"""Looks for advances whose sums do not hold, and tells operators of each: in the log, by a metric, and on `alerts`.

The database cannot come to that by itself: money and payments change in one transaction. What can is a row that was
altered by hand, a restored table, a bug. Every daemon looks, without asking the others, with the query that
`ledgerd verify` uses too.

All advances are looked at in the order of their ids, `SLICE` in one statement, at most `SLICES_MAX` slices at a look;
the next look goes on where the last one stopped. An advance of twelve payments costs about 0.2 ms of one reader: a
look takes 2 s of a minute at most, in pieces of 0.1 s, and a cycle over 100,000 advances ten looks.

Lives as long as a database generation; what is known to be wrong outlives it.
"""

from __future__ import annotations

import structlog
import trio

from ledgerd.config import Config
from ledgerd.engine.alerts import Alerts
from ledgerd.engine.ports import Audits, StorageUnavailable
from ledgerd.engine.states import Audited
from ledgerd.masking import error_text

ADVANCE_MISMATCH = "advance_mismatch"

SLICE = 500
SLICES_MAX = 20

PAUSE_S = 0.05
"""Between two slices: whoever waits for a reader comes first."""

_HINT = "Somebody or something changed rows of the ledger: `ledgerd verify` tells what else does not add up."

log = structlog.get_logger(__name__)


class Reconciler:
    """Looks once per ``reconcile_interval_s``."""

    def __init__(self, config: Config, books: Audits, alerts: Alerts) -> None:
        self._config = config
        self._books = books
        self._alerts = alerts
        self._next: str | None = None  # where to go on; None is the beginning

    async def run(self) -> None:
        """Look for ever. While the database does not answer, so do those who wait for it; nothing is raised."""
        while True:
            try:
                await self._look()
            except StorageUnavailable as error:
                log.debug("reconciliation_put_off", cause=error_text(error))
            await trio.sleep(self._config.reconcile_interval_s)

    async def _look(self) -> None:
        """Look at some advances, or all. Raises StorageUnavailable."""
        for _ in range(SLICES_MAX):
            audited = await self._books.audit_advances(self._next, SLICE)
            self._tell(self._next, audited)
            self._next = audited.next_id
            if self._next is None:
                return
            await trio.sleep(PAUSE_S)

    def _tell(self, first: str | None, audited: Audited) -> None:
        for advance_id, detail in audited.wrong.items():
            if self._alerts.raise_alert(ADVANCE_MISMATCH, advance_id, detail):
                log.error("advance_mismatch", advance_id=advance_id, detail=detail, hint=_HINT)
        for advance_id in self._alerts.about(ADVANCE_MISMATCH):
            looked_at = (first or "") <= advance_id and (audited.next_id is None or advance_id < audited.next_id)
            if looked_at and advance_id not in audited.wrong:
                self._alerts.withdraw(ADVANCE_MISMATCH, advance_id)
                log.info("advance_mismatch_mended", advance_id=advance_id)
