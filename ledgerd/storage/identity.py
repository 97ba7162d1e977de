"""Which data a daemon serves, and what it remembers of it from one connection to the next.

Theory of operation. The database knows what it was the last time (`ledgerd.begin_serving`, migration 0013), and that
tells a restored or promoted one. It does not tell files that were put back as they were some time ago, nor an old
primary that came back beside the one which took its place. A running daemon can: it has seen how far the write-ahead
log was on disk, and which timeline there was. It keeps that in memory only, so one that is started afterwards is as
trusting as the database.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import structlog
from msgspec import Struct

from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage.failures import OLD_PRIMARY
from ledgerd.storage.hosts import Host
from ledgerd.storage.queries import QUERIES

_REPLICA = "25006"
_FIRST_TIME = "first time"

log = structlog.get_logger(__name__)


class Identity(Struct, frozen=True):
    """The data as it was last seen. ``wal`` is a position in the write-ahead log, as PostgreSQL writes it."""

    epoch: str
    system_identifier: int
    timeline: int
    wal: str


class Memory:
    """What one daemon has seen, for as long as it runs."""

    def __init__(self) -> None:
        self._seen: Identity | None = None
        self.old_primaries: set[Host] = set()
        """Hosts on which a primary ran whose successor was seen: the others are tried first."""

    async def begin_serving(
        self, connection: asyncpg.Connection, host: Host | None, *, keep_epoch: bool
    ) -> asyncpg.Record:
        """Find out which data this is: epoch, deployment and cursor key. Runs on the asyncio side.

        ``keep_epoch`` is meant for the data that the daemon finds when it starts, not for what happens to it later.
        Raises StorageUnavailable for a replica, and for a primary whose successor was seen: both may end.
        """
        seen = self._seen
        remembered = (None,) * 4 if seen is None else (seen.epoch, seen.system_identifier, seen.timeline, seen.wal)
        try:
            row: asyncpg.Record = await connection.fetchrow(
                QUERIES["begin_serving"], keep_epoch and seen is None, *remembered
            )
        except asyncpg.PostgresError as error:
            if error.sqlstate == OLD_PRIMARY:
                if host is not None:
                    self.old_primaries.add(host)
                name = None if host is None else host.name
                log.error("old_primary", host=name, detail=str(error), hint=error.hint)  # noqa: TRY400  not our bug
            elif error.sqlstate != _REPLICA:
                raise
            raise StorageUnavailable(str(error), applied=False) from error
        self._seen = Identity(row["epoch"], row["system_identifier"], row["timeline"], row["wal"])
        if host is not None:
            self.old_primaries.discard(host)
        if row["changed"] not in (None, _FIRST_TIME):
            log.warning(
                "identity_changed", changed=row["changed"], epoch=row["epoch"], is_new_epoch=row["is_new_epoch"]
            )
        return row

    def notice(self, row: Any) -> None:
        """What the database says while it is served. Raises StorageUnavailable if its epoch is another by now."""
        seen = self._seen
        if seen is None or row is None:
            return
        if row["epoch"] != seen.epoch:
            raise StorageUnavailable("the ledger got a new epoch", applied=False)
        if row["wal"] is not None:
            self._seen = Identity(seen.epoch, seen.system_identifier, seen.timeline, row["wal"])
