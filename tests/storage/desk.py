"""A daemon's side of the storage, opened for a test: one generation, and commands as the engine sends them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.commands import AccountFacts, AccountRef, Command, Outcome, Posted, Principal, Record, Refused, Unit
from ledgerd.engine.states import AccountState, TokenState, UserState
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import Generation, open_generation
from tests.conftest import Database

SERVICE = frozenset({"service"})


class Desk(Struct):
    """A running generation. ``config`` and ``books`` outlive it."""

    database: Database
    config: Config
    books: PostgresBooks
    generation: Generation
    service: Principal | None = None

    async def owner(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """A statement of the database's owner, on a connection of its own."""

        async def work() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.database.dsn)
            try:
                return list(await connection.fetch(sql, *values))
            finally:
                await connection.close()

        return await self.generation.crossing.run_unwatched(work)

    async def principal(self, *scopes: str, user_id: int | None = None) -> Principal:
        token = await self.books.create_token(
            token_hash=token_hash(), user_id=user_id, account_id=None, scopes=scopes, expires_at_s=None, label=None
        )
        return principal_of(token)

    async def account(self, *, balance: int = 0, currency: str = "USD") -> AccountState:
        """An account of a new user, filled by posting to it."""
        _, account, _ = await register(self.books, currency=currency)
        if self.service is None:
            self.service = await self.principal("service")
        if balance:
            outcome = await self.post(self.credit(account, balance))
            assert isinstance(outcome, Posted)
        return account

    async def as_posted(self, transaction_id: str) -> Record | None:
        """A stored transaction without what came of it since. Only for kinds whose status never changes."""
        present = await self.books.transaction(transaction_id)
        return None if present is None else msgspec.structs.replace(present, reversed_amount=None)

    def credit(self, account: AccountState, amount: int, **members: Any) -> Command:
        return self.command("credit", credit=account, amount=amount, **members)

    def debit(self, account: AccountState, amount: int, **members: Any) -> Command:
        return self.command("debit", debit=account, amount=amount, **members)

    def command(
        self,
        kind: str,
        *,
        debit: AccountState | None = None,
        credit: AccountState | None = None,
        amount: int | None = None,
        principal: Principal | None = None,
        transaction_id: str | None = None,
        **members: Any,
    ) -> Command:
        """A command as the router hands it on."""
        by = principal or self.service
        assert by is not None
        made = Command(
            kind=kind,
            principal=by,
            transaction_id=transaction_id or str(uuid.uuid4()),
            attempt_id=str(uuid.uuid4()),
            debit=None if debit is None else AccountRef(debit.account_id),
            credit=None if credit is None else AccountRef(credit.account_id),
            amount=None if amount is None else str(amount),
            currency=None,
            reference=members.pop("reference", None),
            reason=members.pop("reason", None),
            metadata=members.pop("metadata", None),
            arrived_at=0.0,
            **members,
        )
        made.debit_account, made.debit_facts = _side(debit)
        made.credit_account, made.credit_facts = _side(credit)
        made.amount_minor = amount
        return made

    async def post(self, command: Command, *, resent: bool = False) -> Outcome:
        """One command in one call of the first lane."""
        ((outcome,),) = await self.generation.lanes[0].post([unit(command)], resent=resent)
        return outcome


def _side(account: AccountState | None) -> tuple[int | None, AccountFacts | None]:
    if account is None:
        return None, None
    return account.account_id, AccountFacts(account.account_id, account.user_id, account.currency, account.scale)


def unit(*commands: Command, batch_id: str | None = None) -> Unit:
    made = Unit(list(commands), lambda _: None, deadline=float("inf"), atomic=batch_id is not None, batch_id=batch_id)
    made.gather_accounts()
    return made


def principal_of(token: TokenState) -> Principal:
    return Principal(token.token_id, token.user_id, token.account_id, frozenset(token.scopes), token.expires_at_s)


def token_hash() -> bytes:
    return uuid.uuid4().bytes * 2


def posted(outcome: Outcome) -> Posted:
    assert isinstance(outcome, Posted), outcome
    return outcome


def refused(outcome: Outcome) -> Refused:
    assert isinstance(outcome, Refused), outcome
    return outcome


async def register(
    books: PostgresBooks, *, currency: str = "USD", **members: Any
) -> tuple[UserState, AccountState, TokenState]:
    """A user, its account and its token."""
    arguments: dict[str, Any] = {
        "name": "a user",
        "email": None,
        "password_hash": None,
        "currency": currency,
        "scale": 2,
        "token_hash": token_hash(),
        "scopes": ["user"],
        "expires_at_s": None,
    }
    return await books.register_user(**(arguments | members))


@asynccontextmanager
async def open_desk(
    database: Database, books: PostgresBooks | None = None, *, keep_epoch: bool = False, **settings: Any
) -> AsyncIterator[Desk]:
    """A generation on this database, with a daemon's privileges."""
    config = Config(**{"dsn": database.daemon_dsn, **settings})
    books = books or PostgresBooks()
    async with open_generation(config, books, keep_epoch=keep_epoch) as generation:
        yield Desk(database=database, config=config, books=books, generation=generation)
