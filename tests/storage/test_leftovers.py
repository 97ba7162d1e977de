"""A call that a generation sent and lost is not run after the next one was told what became of it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio
import trio.testing

from ledgerd.engine.commands import Posted, Refused
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage import connection as connection_module
from ledgerd.storage import leftovers
from ledgerd.storage.books import PostgresBooks
from tests.conftest import Database
from tests.storage.desk import Desk, open_desk

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops a server process by a signal")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server process that gets no turn in the block, as on a machine that has too much to do."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def until_gone(desk: Desk, pid: int) -> None:
    """Until a server process is no more; the test's timeout bounds it."""
    while await desk.owner("SELECT 1 FROM pg_stat_activity WHERE pid = $1", pid):
        pass


async def lose_a_call_and_send_it_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, bool]:
    """A call without funds is sent to a process that is stopped, lost, sent again and refused. Then the money comes,
    and the process goes on. Whether the second sending was refused, and whether it is posted all the same.
    """
    monkeypatch.setattr(connection_module, "WATCH_INTERVAL_S", 0.02)
    books = PostgresBooks()
    async with open_desk(database, books) as desk:
        poor = await desk.account()
        service = desk.service
        late = desk.debit(poor, 5)
        lane = desk.generation.lanes[0]
        pid = int(lane._connection.get_server_pid())
        with stopped(pid):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_lost, desk, late)
                while lane._connection not in desk.generation.crossing.busy_since:
                    await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.05)  # until it is written: nothing here tells when it is
                lane._connection.terminate()
            async with open_desk(database, books) as again:
                again.service = service
                outcome = await again.post(late, resent=True)
                assert isinstance(await again.post(again.credit(poor, 100)), Posted)
                os.kill(pid, signal.SIGCONT)
                await until_gone(again, pid)
                return isinstance(outcome, Refused), await books.transaction(late.transaction_id) is not None


async def _lost(desk: Desk, command: object) -> None:
    with pytest.raises(StorageUnavailable):
        await desk.post(command)  # type: ignore[arg-type]


async def test_a_call_that_was_lost_and_refused_the_second_time_is_never_posted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await lose_a_call_and_send_it_again(database, monkeypatch) == (True, False)


async def test_left_alone_it_would_be_posted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: object, connection: object) -> None:
        """Leave them."""

    monkeypatch.setattr(leftovers.Leftovers, "end", nothing)
    assert await lose_a_call_and_send_it_again(database, monkeypatch) == (True, True)


async def test_the_processes_of_others_and_of_the_present_generation_go_on(database: Database) -> None:
    books = PostgresBooks()
    async with open_desk(database) as other:
        async with open_desk(database, books):
            pass
        async with open_desk(database, books) as desk:
            await desk.books.ping()
            await other.books.ping()
            assert len(books.leftovers._processes) == len(other.books.leftovers._processes) > 0
