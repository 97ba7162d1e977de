"""No floods: of one event so many lines per window, and then a count of those that were left out.

Much of what a log tells can be caused by a client, as often as it likes. An operator needs the first lines, and to know
how many there were; the disk needs nobody to write to it as fast as a socket allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LINES_MAX = 100
WINDOW_S = 10.0


class LogRate:
    """Counts the lines of each event. Windows begin with an event's first line, and each event has its own."""

    def __init__(
        self, lines_max: int = LINES_MAX, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines_max = lines_max
        self._window_s = window_s
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # event: when its window began, lines since

    def admit(self, event: str) -> bool:
        """Whether one more line of the event may be written. Call `over` before, so that windows end."""
        began, lines = self._windows.get(event) or (self._clock(), 0)
        self._windows[event] = (began, lines + 1)
        return lines < self._lines_max

    def over(self, *, everything: bool = False) -> list[tuple[str, int]]:
        """Forget the windows that have ended; of each with lines left out, the event and how many."""
        long_ago = self._clock() - self._window_s
        ended = [event for event, (began, _) in self._windows.items() if everything or began <= long_ago]
        lines = [(event, self._windows.pop(event)[1] - self._lines_max) for event in ended]
        return [(event, left_out) for event, left_out in lines if left_out > 0]
