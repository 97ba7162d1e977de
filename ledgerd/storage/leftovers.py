"""What a lost generation leaves on the server: calls that it has sent and the server has not run.

The server does not notice that a connection is lost until it writes to it. A process that was stopped, or had no turn,
reads the call when it goes on, and runs it: after the next generation has sent the same call again, was told that it is
refused, and has told the client. Then the money moves all the same.

So a generation, before it posts anything, ends the server processes of those before it. What they have committed is
found by its id; what they have not, they never will. They are known by number and time of start, because numbers are
given again. Behind a pooler the numbers are not the server's, and nothing is ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import structlog

from ledgerd.storage.queries import QUERIES

log = structlog.get_logger(__name__)


class Leftovers:
    """The server processes of a daemon's generations. Lives as long as the daemon."""

    def __init__(self) -> None:
        self._processes: list[tuple[int, datetime]] = []

    async def end(self, connection: asyncpg.Connection) -> None:
        """End what former generations have left. Runs on the asyncio side."""
        if not self._processes:
            return
        numbers, starts = zip(*self._processes, strict=True)
        ended = await connection.fetch(QUERIES["end_processes"], list(numbers), list(starts))
        if ended:
            log.warning("leftovers_ended", processes=len(ended))
        self._processes.clear()

    async def note(self, connection: asyncpg.Connection, connections: Sequence[asyncpg.Connection]) -> None:
        """Remember the processes that serve the connections of a generation. Runs on the asyncio side."""
        numbers = [each.get_server_pid() for each in connections]
        found = await connection.fetch(QUERIES["processes"], numbers)
        self._processes = [(row["pid"], row["backend_start"]) for row in found]
