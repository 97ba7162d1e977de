"""Restart what may be restarted: generations of a task tree, with backoff and a limit.

Trio has no supervisor, because most errors are bugs and a bug should not be hidden by trying again. So this one
restarts only after errors that the caller names; anything else, a mixed group included, goes on upwards.

Two named numbers and one word shape it: `restarts_max` within `window_s`, and `healthy()`, which the body calls once it
really works. Health forgets the failures before it: a database that is restarted once a day never adds up to a limit.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from msgspec import Struct

from ledgerd.masking import error_text

log = structlog.get_logger(__name__)


class RestartLimitReached(Exception):
    """It failed more often than allowed without being healthy in between; the cause is the last failure."""


class Backoff(Struct):
    """How long to wait before trying again: doubling from ``first_s`` to ``most_s``, the later half of it by chance.

    The chance keeps many that failed together from coming back together.
    """

    first_s: float = 0.1
    most_s: float = 5.0
    chance: Callable[[], float] = random.random
    failures: int = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        # 2 ** 30 is beyond every sensible ratio of the two, and small enough not to overflow a float.
        whole = min(self.most_s, self.first_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return whole * (0.5 + 0.5 * self.chance())

    def reset(self) -> None:
        """Start over: it worked."""
        self.failures = 0


async def supervise(
    body: Callable[[Callable[[], None]], Awaitable[None]],
    *,
    name: str,
    recoverable: tuple[type[Exception], ...],
    restarts_max: int,
    window_s: float = 60.0,
    backoff: Backoff | None = None,
) -> None:
    """Run ``body(healthy)`` in generations until one returns.

    A generation that ends with nothing but ``recoverable`` errors is followed by another, after a wait. At most
    ``restarts_max`` restarts happen within ``window_s`` seconds, not counting those before the latest ``healthy()``.

    Raises RestartLimitReached, and every other error of the body (in the group it came in).
    """
    backoff = backoff or Backoff()
    restarts: deque[float] = deque()

    def healthy() -> None:
        restarts.clear()
        backoff.reset()

    while True:
        failure: BaseExceptionGroup[Exception] | None = None
        try:
            await body(healthy)
        except* recoverable as group:
            failure = group
        if failure is None:
            return
        now = trio.current_time()
        while restarts and restarts[0] <= now - window_s:
            restarts.popleft()
        if len(restarts) >= restarts_max:
            raise RestartLimitReached(f"{name}: {len(restarts)} restarts within {window_s:g} s") from failure
        restarts.append(now)
        wait_s = backoff.next_s()
        log.warning("restart", what=name, wait_s=round(wait_s, 3), restarts=len(restarts), causes=_causes(failure))
        await trio.sleep(wait_s)


class PartEnded(Exception):
    """A part of the daemon that runs for as long as the daemon does has returned: a bug."""


class Vitals:
    """Which parts of the daemon live. A watchdog goes by it.

    A part that dies takes the daemon along, as everything in a nursery does. Should that take for ever, because some
    other part does not end, the dead one is still known here.
    """

    def __init__(self) -> None:
        self._alive: dict[str, bool] = {}
        self.stopping = False

    def dead(self) -> list[str]:
        """The parts that have ended, by name."""
        return [name for name, alive in self._alive.items() if not alive]

    async def keep(
        self,
        name: str,
        run: Callable[..., Awaitable[None]],
        *args: Any,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a part until it is cancelled, or returns because the daemon is ``stopping``.

        Started with `nursery.start`, it is given the ``task_status``. Raises PartEnded.
        """
        self._alive[name] = True
        try:
            if task_status is trio.TASK_STATUS_IGNORED:
                await run(*args)
            else:
                await run(*args, task_status=task_status)
        finally:
            self._alive[name] = self.stopping  # then it may rest
        if not self.stopping:
            raise PartEnded(name)


def _causes(group: BaseExceptionGroup[Exception]) -> list[str]:
    """The errors of a group, one line each."""
    lines: list[str] = []
    for error in group.exceptions:
        lines += _causes(error) if isinstance(error, BaseExceptionGroup) else [error_text(error)]
    return lines
