"""Pages of lists: they end where the limit, the rows or the room in one message end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ledgerd.engine.commands import Principal
from ledgerd.gateway.call import Call
from ledgerd.gateway.clock import now_text
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.results import Page

Row = TypeVar("Row")

_AROUND_ITEMS_BYTES = 768
"""The members of a page beside its items; a cursor is at most 512 of them."""


def whose(principal: Principal) -> list[Any]:
    """What of a caller a cursor is bound to: the same view of things, whichever token it is."""
    return [principal.user_id, principal.account_id, principal.sees_all]


def fitting(
    call: Call,
    rows: Sequence[Row],
    *,
    limit: int,
    view: Callable[[Row], Any],
    around_bytes: int = _AROUND_ITEMS_BYTES,
) -> tuple[list[Raw], int]:
    """The first rows as items, and how many rows that are. ``view`` answers None for a row that the caller may not
    know of; ``around_bytes`` is the room for the rest of the page.

    Raises LedgerError ``response_too_large`` if not even one row has room.
    """
    room = call.result_bytes_max - around_bytes
    items: list[Raw] = []
    done = 0
    for row in rows[:limit]:
        seen = view(row)
        if seen is not None:
            item = msgspec.json.encode(seen)
            room -= len(item) + 1
            if room < 0:
                break
            items.append(Raw(item))
        done += 1
    if rows and done == 0:
        raise LedgerError(ErrorCode.RESPONSE_TOO_LARGE)
    return items, done


async def page_of(
    call: Call,
    method: str,
    filters: list[Any],
    cursor: str | UnsetType,
    *,
    limit: int,
    read: Callable[[list[Any] | None, int], Awaitable[Sequence[Row]]],
    view: Callable[[Row], Any],
    key: Callable[[Row], list[Any]],
) -> Page:
    """The page of a list that begins after the cursor's row, or at the beginning.

    ``read`` answers so many rows after the row of that ``key``, or the first ones; ``view`` answers None for a row that
    the caller may not know of. Raises LedgerError ``invalid_cursor``, ``response_too_large`` if not even one row has
    room, and what ``read`` raises.
    """
    after: list[Any] | None = None
    as_of = now_text()
    if cursor is not UNSET:
        *after, as_of = call.desk.cursors.read(method, filters, cursor)
    rows = await read(after, limit + 1)
    items, done = fitting(call, rows, limit=limit, view=view)
    next_cursor = None
    if done < len(rows):
        next_cursor = call.desk.cursors.write(method, filters, [*key(rows[done - 1]), as_of])
    return Page(items=items, next_cursor=next_cursor, as_of=as_of)


def number_in(key: list[Any] | None) -> int:
    """The number that a list goes by; 0, which is before all of them, at its beginning."""
    return 0 if key is None else int(key[0])
