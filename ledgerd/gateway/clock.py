"""The clock on the wall, and the times that clients write."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ledgerd.times import time_text
from ledgerd_protocol.errors import ErrorCode, LedgerError


def now_text() -> str:
    """The time now."""
    return time_text(datetime.now(UTC))


def now_s() -> float:
    """Unix time in seconds, as tokens' expiries are given."""
    return time.time()


def text_of(seconds: float) -> str:
    """Unix time in seconds as text."""
    return time_text(datetime.fromtimestamp(seconds, UTC))


def parse_time(text: str, pointer: str) -> datetime:
    """A time that a client wrote, in UTC.

    The pattern of `ledgerd_protocol.fields.Time` has matched, so it has an offset. Raises LedgerError
    ``invalid_params`` at ``pointer`` for a time that does not exist.
    """
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        detail = "There is no such time."
        raise LedgerError(ErrorCode.INVALID_PARAMS, detail, errors=[{"pointer": pointer, "detail": detail}]) from None


def utc_text(text: str, pointer: str) -> str:
    """A time that a client wrote, in the protocol's spelling. Raises LedgerError like `parse_time`."""
    return time_text(parse_time(text, pointer))
