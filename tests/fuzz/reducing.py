"""A smaller input that fails in the same way."""

from __future__ import annotations

import traceback
from collections.abc import Callable

TRIES_MAX = 2_000


def failure_of(run: Callable[[bytes], None], data: bytes) -> str | None:
    """What the input runs into: the kind of exception and the line that raised it. None if nothing."""
    try:
        run(data)
    except Exception as error:  # whatever a target finds
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raised_at = traceback.extract_tb(found.__traceback__)[-1]
        return f"{type(found).__name__} at {raised_at.filename}:{raised_at.lineno}"
    return None


def reduced(run: Callable[[bytes], None], data: bytes) -> bytes:
    """Leave out what can be left out, in ever smaller pieces, while the failure stays the same."""
    wanted = failure_of(run, data)
    if wanted is None:
        return data
    tries, size = 0, max(1, len(data) // 2)
    while size and tries < TRIES_MAX:
        at = 0
        while at < len(data) and tries < TRIES_MAX:
            tries += 1
            shorter = data[:at] + data[at + size :]
            if failure_of(run, shorter) == wanted:
                data = shorter
            else:
                at += size
        size //= 2
    return data
