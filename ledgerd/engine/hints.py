"""Telling the other daemons what changed here, and hearing it from them.

A hint says "these accounts have reached these versions". It is only a hint: it is sent after the commit, never inside
the money's transaction (a NOTIFY there takes a lock over the whole database and puts all commits in one line), it may
be lost, doubled or late, and whoever hears it reads the change itself from the table. What hints miss, polling finds.

Changes are collected and sent together, one payload per interval, so that the cost does not grow with the rate. When
too much changed to name it, the payload says just that, and the others look at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog
import trio
from msgspec import Struct

from ledgerd.engine.commands import Record
from ledgerd.engine.states import AccountState

log = structlog.get_logger(__name__)

PAYLOAD_BYTES_MAX = 7_900
"""NOTIFY takes less than 8,000 bytes."""


class Hint(Struct, frozen=True, array_like=True):
    """Who says it, the newest version of each account, and users who have new accounts.

    Without versions too much changed to name it.
    """

    daemon: str
    versions: dict[int, int] | None
    users: list[int] = []


_DECODER = msgspec.json.Decoder(Hint)


class Hints:
    """Both directions of one daemon. ``daemon`` is a name no other daemon has; own hints come back and are dropped."""

    def __init__(self, daemon: str, interval_s: float) -> None:
        self._daemon = daemon
        self._interval_s = interval_s
        self._changed: dict[int, int] = {}
        self._users: set[int] = set()
        self._something = trio.lowlevel.ParkingLot()

    def note(self, record: Record) -> None:
        """A transaction was committed here. Never waits."""
        for side in record.sides:
            if side.version > self._changed.get(side.account_id, 0):
                self._changed[side.account_id] = side.version
        self._something.unpark()

    def note_account(self, state: AccountState) -> None:
        """An account was opened here. Never waits."""
        self._users.add(state.user_id)
        self._something.unpark()

    async def run(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Send what was noted, once per interval. What a failing ``send`` loses is found by polling."""
        while True:
            if not self._changed and not self._users:
                await self._something.park()
            await trio.sleep(self._interval_s)
            await send(self._payload())

    def _payload(self) -> str:
        """What was noted, which is forgotten."""
        changed, self._changed = self._changed, {}
        users, self._users = self._users, set()
        text = msgspec.json.encode(Hint(self._daemon, changed, sorted(users))).decode()
        if len(text) > PAYLOAD_BYTES_MAX:
            text = msgspec.json.encode(Hint(self._daemon, None)).decode()
        return text

    def heard(self, payload: str) -> Hint | None:
        """A hint of another daemon; None for our own and for what is none."""
        try:
            hint = _DECODER.decode(payload)
        except msgspec.MsgspecError:
            log.warning("hint_not_understood", bytes=len(payload))
            return None
        return None if hint.daemon == self._daemon else hint
