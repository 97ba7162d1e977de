"""Collects payments of advances that are due.

Every daemon does this, without asking the others. One function of the database claims what no other daemon is at, takes
the money through the kernel and marks the payments, all in one transaction: whoever dies, at whatever instant, has done
all of it or nothing. Here is only when to ask, and telling those who follow the accounts.

What was collected is published as if one of our lanes had posted it. A daemon that dies between the commit and that has
told nobody, and the change is found as every change of another daemon is: by its version.

Lives as long as a database generation.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import Record
from ledgerd.engine.ports import CallRefused, Collections, StorageUnavailable
from ledgerd.engine.states import Collected
from ledgerd.masking import error_text
from ledgerd.metrics import COLLECTIONS_LOST, PAYMENTS_COLLECTED, PAYMENTS_FAILED

PAYMENTS_MAX = 50
"""Of one call. It holds the locks of as many accounts, and takes a few hundredths of a second."""

log = structlog.get_logger(__name__)


class Collector:
    """Looks for due payments once per ``collect_interval_s``, and at once again when there is more."""

    def __init__(
        self,
        config: Config,
        books: Collections,
        publish: Callable[[Record], None],
        on_advances: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        """``publish`` is called with every payment collected, ``on_advances`` with the ids of advances looked at."""
        self._config = config
        self._books = books
        self._publish = publish
        self._on_advances = on_advances
        self._stopped = False

    def stop(self) -> None:
        """Collect nothing more: the daemon is stopping."""
        self._stopped = True

    async def run(self) -> None:
        """Work until stopped. What goes wrong is tried again at the next look; nothing is raised."""
        while not self._stopped:
            if not await self._look():
                await trio.sleep(self._config.collect_interval_s)

    async def _look(self) -> bool:
        """Collect once; whether to look again at once."""
        try:
            done = await self._books.collect_due(PAYMENTS_MAX)
        except StorageUnavailable as error:
            # The database is away, or others had the accounts: nothing was collected that is not found by its version.
            if not self._stopped:
                COLLECTIONS_LOST.inc()
                log.info("collection_lost", cause=error_text(error))
            return False
        except CallRefused:
            # A bug, and not one to stop everything else for.
            COLLECTIONS_LOST.inc()
            log.exception("collection_refused")
            return False
        self._tell(done)
        return done.more

    def _tell(self, done: Collected) -> None:
        PAYMENTS_COLLECTED.inc(len(done.records))
        PAYMENTS_FAILED.inc(done.failed)
        if done.records or done.failed:
            log.info(
                "payments_collected", payments=len(done.records), failed=done.failed, advance_ids=list(done.advances)
            )
        for record in done.records:
            try:
                self._publish(record)
            except Exception:
                log.exception("publish_failed", **record.ids())
        if done.advances:
            self._on_advances(done.advances)
