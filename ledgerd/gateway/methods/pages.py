"""Pages of lists: they end where the limit, the rows or the room in one message end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from ledgerd.engine.commands import Principal
from ledgerd.gateway.call import Call
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


def page_of(
    call: Call,
    method: str,
    filters: list[Any],
    rows: Sequence[Row],
    *,
    limit: int,
    view: Callable[[Row], Any],
    position: Callable[[Row], list[Any]],
    as_of: str,
) -> Page:
    """The first rows as a page. ``rows`` has one more than ``limit`` if there are more; ``view`` answers None for a
    row that the caller may not know of.

    Raises LedgerError ``response_too_large`` if not even one row has room.
    """
    items, done = fitting(call, rows, limit=limit, view=view)
    cursor = None
    if done < len(rows):
        cursor = call.desk.cursors.write(method, filters, [*position(rows[done - 1]), as_of])
    return Page(items=items, next_cursor=cursor, as_of=as_of)
