"""Cursors of lists: opaque to clients, signed, and good only for the list and the filters they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import msgspec

from ledgerd_protocol.errors import ErrorCode, LedgerError

MAC_BYTES = 16


class Cursors:
    """Writes and reads cursors with the key of the database, so that any daemon on it takes another's."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        self._key = key

    def write(self, method: str, filters: list[Any], position: list[Any]) -> str:
        """The cursor for what comes after ``position`` in this list."""
        body = msgspec.json.encode(position)
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
        position: list[Any] = msgspec.json.decode(body, type=list[Any])
        return position

    def _mac(self, method: str, filters: list[Any], body: bytes) -> bytes:
        message = msgspec.json.encode([method, filters]) + b"\0" + body
        return hmac.digest(self._key(), message, hashlib.sha256)[:MAC_BYTES]
