"""A gateway for one conversation: the fakes of its own tests, with nothing left out that a method may ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from ledgerd.config import Config
from ledgerd.engine.commands import Unit
from ledgerd.engine.states import UserState
from ledgerd.gateway.authentication import Passwords
from ledgerd.gateway.server import Gateway
from tests.fuzz.requests import PASSWORD
from tests.gateway.fake_books import FakeBooks, FakeDirectory
from tests.gateway.fakes import Door, FakeHub, Pair, _Books


class FuzzBooks(FakeBooks):
    """The fake books, for betting users too, and for users who change their e-mail and then their password."""

    def __init__(self) -> None:
        super().__init__()
        self.passwords = defaultdict(lambda: None, {"u1@example.org": PASSWORD})

    async def update_user(self, user_id: int, *, name: str | None, email: str | None) -> UserState | None:
        before = self.users.get(user_id)
        changed = await super().update_user(user_id, name=name, email=email and email.lower())
        if before is not None and changed is not None and changed.email != before.email:
            self.passwords[changed.email or ""] = self.passwords.pop(before.email or "", None)
        return changed

    async def create_wallet_users(self, names: Sequence[str], **given: Any) -> int:
        await self.ask()
        return len({name for name in names if name})


class FuzzHub(FakeHub):
    """The fake hub, where somebody may follow everything."""

    def stir(self) -> None:
        """Nobody looks."""


class CheapPasswords(Passwords):
    """Compares instead of hashing: a thread would stand still in a clock that jumps."""

    def __init__(self) -> None:
        """Without the hasher, which takes a while to make."""

    async def hash(self, password: str) -> str:
        await trio.lowlevel.checkpoint()
        return password

    async def matches(self, stored: str | None, password: str) -> bool:
        await trio.lowlevel.checkpoint()
        return stored == password


class FuzzDoor(Door):
    """A gateway that serves, its router perhaps holding commands back."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        super().__init__(config, nursery)
        self._answered = 0
        self._streams: list[Pair] = []
        self.books = FuzzBooks()
        self.directory = FakeDirectory(self.books)
        self.hub = FuzzHub()
        self.gateway = Gateway(
            config, books=_Books(self.books), router=self.router, hub=self.hub, directory=self.directory
        )
        desk = self.gateway._desk
        desk.passwords = desk.credentials._passwords = CheapPasswords()

    def token(self, scope: str) -> str:
        """A token of this scope; those that are somebody's are user 1's."""
        scopes = ("user", "topup") if scope == "topup" else (scope,)
        return self.books.token(*scopes, user_id=None if scope in ("service", "operator") else 1)

    async def raw(self, secret: str | None = None) -> Pair:
        stream = await super().raw(secret)
        self._streams.append(stream)
        return stream

    def release(self) -> None:
        """Answer every unit that was held back, in order."""
        held: list[Unit] = self.router.units[self._answered :]
        self._answered = len(self.router.units)
        for unit in held:
            self.router.answer(unit)
        if not held:
            self.router.holding = False

    def hang_up(self) -> None:
        """The client goes away."""
        for stream in self._streams:
            stream.send_stream.close()


@asynccontextmanager
async def open_fuzz_door(settings: dict[str, Any]) -> AsyncIterator[FuzzDoor]:
    """A gateway that serves memory streams; everything ends with the block."""
    async with trio.open_nursery() as nursery:
        door = FuzzDoor(Config(**settings), nursery)
        await nursery.start(door.gateway.serve, [door.listener])
        yield door
        nursery.cancel_scope.cancel()
