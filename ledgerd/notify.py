"""What the service manager is told, over the socket that it names in NOTIFY_SOCKET. Without one, nothing.

Rules of this file:

- Telling never fails and holds nobody up for long: a daemon serves its clients even if its manager does not listen.
- The variables are taken out of the environment: what a child says must not count as the daemon's word.
- Keep-alives come from a task of the event loop, and only while every part of the daemon lives. So a loop that is
  wedged, or a part that has died, has the process killed and started again; a database that is away does not.

The messages are those of sd_notify(3), which other managers speak too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping

import structlog
import trio

log = structlog.get_logger(__name__)

SEND_S = 1.0
"""For the manager to take a message, whose queue may be full; then it is given up."""

READY_S = 10.0
"""The same for the one message that must not be lost: without it the manager takes the start for failed."""

STATUS_EVERY_S = 2.0
"""How late the status line may be."""


class Notifier:
    """Tells the service manager how the daemon is."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """``address`` is a path, or ``@`` and a name in the abstract namespace; empty: nobody listens.

        ``watchdog_s`` is after how many seconds of silence the manager kills the process; 0: never.
        """
        if address and address[0] not in "/@":
            log.warning("notify_socket_unknown", address=address)
            address = ""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s if self._address else 0.0
        self._status = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """What the manager has asked for. Takes its variables out of ``environ``."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1_000_000 if ours and usec.isascii() and usec.isdigit() else 0.0)

    # -- what happens once ----------------------------------------------------------------------------------------

    async def ready(self, status: str) -> None:
        """The daemon serves; after `reloading`, it is done with that."""
        await self._send("READY=1", self._status_line(status), within_s=READY_S)

    async def reloading(self) -> None:
        """The daemon reads its settings again; `ready` must follow."""
        # With Type=notify-reload the time tells this reload from one that was asked for earlier.
        await self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def stopping(self, status: str) -> None:
        """The daemon stops, whoever asked it to."""
        await self._send("STOPPING=1", self._status_line(status))

    async def status(self, status: str) -> None:
        """One line for people, unless it is what was said last."""
        if status != self._status:
            await self._send(self._status_line(status))

    # -- what goes on ---------------------------------------------------------------------------------------------

    async def keep_status(self, describe: Callable[[], str]) -> None:
        """Say how the daemon is whenever that has changed."""
        while self._address:
            await self.status(describe())
            await trio.sleep(STATUS_EVERY_S)

    async def keep_watchdog(self, dead: Callable[[], list[str]]) -> None:
        """Ask not to be killed, twice as often as need be, as long as ``dead`` names no part of the daemon."""
        while self._watchdog_s:
            parts = dead()
            if parts:
                log.error("watchdog_silent", dead=parts)
            else:
                await self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog_s / 2)

    # -- sending --------------------------------------------------------------------------------------------------

    def _status_line(self, status: str) -> str:
        self._status = status
        return "STATUS=" + " ".join(status.split())

    async def _send(self, *lines: str, within_s: float = SEND_S) -> None:
        if not self._address:
            return
        try:
            # A socket for each message: one that is connected waits for room in the manager's queue, and one that is
            # new finds a manager that has been exchanged.
            with trio.fail_after(within_s), trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as socket:
                await socket.connect(self._address)
                await socket.send("\n".join(lines).encode())
        except (OSError, trio.TooSlowError) as error:
            log.warning("notify_failed", message=lines[0], error=str(error) or type(error).__name__)
