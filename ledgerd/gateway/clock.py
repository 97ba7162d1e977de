"""Times as the protocol writes them: RFC 3339 in UTC, six digits, `Z`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ledgerd_protocol.errors import ErrorCode, LedgerError


def _text(moment: datetime) -> str:
    """Not strftime: its years below 1000 have fewer than four digits."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def now_text() -> str:
    """The time now."""
    return _text(datetime.now(UTC))


def now_s() -> float:
    """Unix time in seconds, as tokens' expiries are given."""
    return time.time()


def text_of(seconds: float) -> str:
    """Unix time in seconds as text."""
    return _text(datetime.fromtimestamp(seconds, UTC))


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
    return _text(parse_time(text, pointer))
