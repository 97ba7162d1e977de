"""Times as the protocol writes them: RFC 3339 in UTC, six digits, `Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def time_text(moment: datetime) -> str:
    """A moment, which has an offset, as text. Not strftime: its years below 1000 have fewer than four digits."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
