"""The order of commits, without a column that has it.

Theory of operation. A reader of all transactions keeps a *snapshot* as PostgreSQL has it: which transaction ids had
finished at that moment. Everything that is visible now and was not then is what is new, however late it committed and
however long others stay open; nothing is read twice. When there is too much for one page, the end of the page is
written as a snapshot too: one in which everything up to the last id of the page has finished as it has now.

Within a page rows come by transaction id. That is not yet the order of commits, but it is enough to put the page into
an order that respects the versions of every account, because versions are given under the account's lock.

What a client keeps is only the *low water* of the snapshot: the oldest id that had not finished. Resuming there repeats
what was committed while that one was open, and never misses.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from ledgerd.engine.commands import Record
from ledgerd.engine.states import Place

_POSITION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class Snapshot(Struct, frozen=True):
    """Ids below ``lowest`` have finished; of those below ``next`` all but the ``unfinished`` have; no others."""

    lowest: int
    next: int
    unfinished: tuple[int, ...]

    @property
    def text(self) -> str:
        """As PostgreSQL writes it, a pg_snapshot."""
        return f"{self.lowest}:{self.next}:{','.join(map(str, self.unfinished))}"

    @property
    def place(self) -> Place:
        """The same for the engine, which does not look inside."""
        return Place(exact=self.text, position=str(self.lowest))


def parse(text: str) -> Snapshot:
    """A pg_snapshot as PostgreSQL writes it."""
    lowest, following, unfinished = text.split(":")
    return Snapshot(int(lowest), int(following), tuple(int(number) for number in unfinished.split(",") if number))


def low_water(position: str) -> Snapshot | None:
    """The snapshot in which nothing from the position on has finished; None if it is no position."""
    if _POSITION.fullmatch(position) is None:
        return None
    return Snapshot(int(position), int(position), ())


def page_end(start: Snapshot, now: Snapshot, last: int) -> Snapshot:
    """Where to go on after a page that was read at ``now``, from ``start`` up to the transaction id ``last``.

    Up to ``last`` all is read that had finished now, beyond it what had finished at the start.
    """
    unfinished = tuple(
        sorted(
            {number for number in now.unfinished if number <= last}
            | {number for number in start.unfinished if number > last}
        )
    )
    following = max(start.next, last + 1)
    return Snapshot(unfinished[0] if unfinished else following, following, unfinished)


def in_order(records: Sequence[Record]) -> list[Record]:
    """The records so that the versions of each account ascend, otherwise as they came.

    There is such an order: the one in which they were committed.
    """
    due: dict[int, deque[int]] = {}
    for account, version in sorted((side.account_id, side.version) for record in records for side in record.sides):
        due.setdefault(account, deque()).append(version)
    waiting: dict[tuple[int, int], Record] = {}  # by the account's version that must come first
    ordered: list[Record] = []
    for record in records:
        ready = [record]
        while ready:
            candidate = ready.pop()
            obstacle = _obstacle(candidate, due)
            if obstacle is not None:
                waiting[obstacle] = candidate
                continue
            ordered.append(candidate)
            for side in candidate.sides:
                line = due[side.account_id]
                line.popleft()
                if line and (follower := waiting.pop((side.account_id, line[0]), None)) is not None:
                    ready.append(follower)
    return ordered


def _obstacle(record: Record, due: dict[int, deque[int]]) -> tuple[int, int] | None:
    """The first side whose turn has not come: its account and version. When it comes, the record is looked at again."""
    for side in record.sides:
        if due[side.account_id][0] != side.version:
            return side.account_id, side.version
    return None
