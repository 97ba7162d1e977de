"""Cursors of lists: opaque to clients, signed, and good only for the list and the filters they came from.

A cursor ends with its database: one that was restored, which gives it a new epoch, does not take it. It also ends a day
after the first page of its list was read, whatever page it came from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ledgerd.engine.states import LedgerFacts
from ledgerd_protocol.errors import ErrorCode, LedgerError

MAC_BYTES = 16
LIFETIME = timedelta(hours=24)


class Cursors:
    """Writes and reads cursors with the key of the database, so that any daemon on it takes another's."""

    def __init__(self, facts: Callable[[], LedgerFacts]) -> None:
        self._facts = facts

    def write(self, method: str, filters: list[Any], position: list[Any]) -> str:
        """The cursor for what comes after ``position`` in this list.

        A position ends with the time at which the list's first page was read, as the protocol writes it.
        """
        body = msgspec.msgpack.encode(position)
        return base64.urlsafe_b64encode(self._mac(method, filters, body) + body).rstrip(b"=").decode()

    def read(self, method: str, filters: list[Any], cursor: str) -> list[Any]:
        """The position that `write` was given. Raises LedgerError ``invalid_cursor``."""
        try:
            data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise LedgerError(ErrorCode.INVALID_CURSOR) from None
        mac, body = data[:MAC_BYTES], data[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(method, filters, body)):
            raise LedgerError(ErrorCode.INVALID_CURSOR)
        position: list[Any] = msgspec.msgpack.decode(body, type=list[Any])
        if datetime.now(UTC) - datetime.fromisoformat(position[-1]) > LIFETIME:
            raise LedgerError(ErrorCode.INVALID_CURSOR, "The cursor is more than a day old; start from the first page.")
        return position

    def _mac(self, method: str, filters: list[Any], body: bytes) -> bytes:
        facts = self._facts()
        message = msgspec.json.encode([facts.epoch, method, filters]) + b"\0" + body
        return hmac.digest(facts.cursor_key, message, hashlib.sha256)[:MAC_BYTES]
