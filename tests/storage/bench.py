"""A kernel on a bench: a database, its owner, a daemon's connection, and words to call ledgerd.post with."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import msgspec
from msgspec import Struct

from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ERROR_CODES
from tests.conftest import Database
from tests.model import ABSENT, Account, After, Attempt, Command, Hold, Place, Refusal, Token, Transaction, Unit, audit

T = TypeVar("T")


class Answer(Struct, frozen=True):
    """The kernel's answer to one command; ``code`` is 0 posted, 1 replayed, None undone, else an error's."""

    code: int | None
    data: Mapping[str, Any] | None
    debit: After | None
    credit: After | None

    @property
    def posted(self) -> bool:
        return self.code == 0

    @property
    def replayed(self) -> bool:
        return self.code == 1

    @property
    def refusal(self) -> Refusal | None:
        return None if self.code is None or self.code in (0, 1) else Refusal(ERROR_CODES[self.code], self.data)


OPERATES = frozenset({"limit", "freeze", "unfreeze", "expiry"})
"""Kinds that only an operator's token may post."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def fresh_id() -> str:
    return str(uuid.uuid4())


def microseconds(time: datetime) -> int:
    """A time as the model counts it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def again(command: Command, **changes: Any) -> Command:
    """The command as another attempt, perhaps altered."""
    return msgspec.structs.replace(command, attempt_id=fresh_id(), **changes)


def arguments(units: Sequence[Unit], *, resent: bool = False) -> list[Any]:
    """The arguments of ledgerd.post for these units."""
    rows = [
        (number if unit.batch_id else None, unit.batch_id, command)
        for number, unit in enumerate(units)
        for command in unit.commands
    ]
    commands = [command for _, _, command in rows]
    return [
        resent,
        [command.attempt_id for command in commands],
        [command.token_id for command in commands],
        [command.kind for command in commands],
        [command.transaction_id for command in commands],
        [command.debit for command in commands],
        [command.credit for command in commands],
        [command.amount for command in commands],
        [command.late_problem if command.problem is None else command.problem for command in commands],
        [command.currency for command in commands],
        [command.reference for command in commands],
        [command.reason for command in commands],
        [command.metadata for command in commands],
        [command.refers_to for command in commands],
        [command.expires_in_s for command in commands],
        [number for number, _, _ in rows],
        [batch_id for _, batch_id, _ in rows],
        # The schedules of advances.
        None,
        None,
    ]


def answers(row: asyncpg.Record, units: Sequence[Unit]) -> list[list[Answer]]:
    """One row of ledgerd.post as answers per unit, per command."""

    def after(side: str, i: int) -> After | None:
        values = [row[f"{side}_{name}"][i] for name in ("versions", "balances", "held", "available")]
        return None if values[0] is None or row["codes"][i] != 0 else After(*values)

    positions = itertools.count()

    def answer(i: int) -> Answer:
        data = row["data"][i]
        return Answer(row["codes"][i], data and json.loads(data), after("debit", i), after("credit", i))

    return [[answer(next(positions)) for _ in unit.commands] for unit in units]


class Bench:
    """Synchronous, because a test of the kernel is a list of statements; `run` is for those that need two at once."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._runner = asyncio.Runner()
        self.owner: asyncpg.Connection = self.run(asyncpg.connect(database.dsn))
        self.daemon: asyncpg.Connection = self.run(asyncpg.connect(database.daemon_dsn))
        self._kernel = self.run(self.daemon.prepare(QUERIES["post"]))
        self.operator = self.token("operator")
        self.service = self.token("service")

    def close(self) -> None:
        self.run(self.daemon.close())
        self.run(self.owner.close())
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self._runner.run(wait())

    # -- the owner ------------------------------------------------------------------------------------------------

    def execute(self, sql: str, *values: Any) -> None:
        self.run(self.owner.execute(sql, *values))

    def fetch(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        return self.run(self.owner.fetch(sql, *values))

    def value(self, sql: str, *values: Any) -> Any:
        return self.run(self.owner.fetchval(sql, *values))

    def user(self) -> int:
        insert = "INSERT INTO ledgerd.users (name, created_at) VALUES ('a user', now()) RETURNING user_id"
        return int(self.value(insert))

    def account(self, user: int | None = None, currency: str = "USD", *, balance: int = 0, limit: int = 0) -> int:
        """An account of a user (a new one by default), filled by posting to it."""
        scale = {"USD": 2, "EUR": 2, "JPY": 0}[currency]
        owner = self.user() if user is None else user
        account = int(self.value("SELECT ledgerd.open_account($1, $2, $3)", owner, currency, scale))
        if limit:
            assert self.post(self.limit(account, limit)).posted
        if balance:
            assert self.post(self.credit(account, balance)).posted
        return account

    def token(self, *scopes: str, user: int | None = None, account: int | None = None) -> int:
        return int(
            self.value(
                "INSERT INTO ledgerd.tokens (user_id, account_id, scopes, token_hash) "
                "VALUES ($1, $2, $3, sha256(uuid_send(gen_random_uuid()))) RETURNING token_id",
                user,
                account,
                list(scopes),
            )
        )

    def token_of(self, account: int, *scopes: str, limited: bool = False) -> int:
        """A token of an account's owner; ``limited`` to that account."""
        user = self.value("SELECT user_id FROM ledgerd.accounts WHERE account_id = $1", account)
        return self.token(*(scopes or ("user",)), user=user, account=account if limited else None)

    def end(self, token: int, *, by: str = "revocation") -> None:
        column = "revoked_at" if by == "revocation" else "expires_at"
        self.execute(f"UPDATE ledgerd.tokens SET {column} = now() - interval '1 s' WHERE token_id = $1", token)

    def move_clock(self, seconds: float) -> None:
        """Let the clock of transactions and holds run this much ahead of where it is now; it may go back as well."""
        self.execute("UPDATE ledgerd.settings SET clock_offset = clock_offset + $1", timedelta(seconds=seconds))

    def set_status(self, account: int, status: str) -> None:
        self.execute("UPDATE ledgerd.accounts SET status = $2 WHERE account_id = $1", account, status)

    def disable_owner(self, account: int) -> None:
        self.execute("UPDATE ledgerd.accounts SET owner_disabled = true WHERE account_id = $1", account)

    # -- commands -------------------------------------------------------------------------------------------------

    def command(self, kind: str, **members: Any) -> Command:
        members.setdefault("token_id", self.operator if kind in OPERATES else self.service)
        members.setdefault("transaction_id", fresh_id())
        members.setdefault("attempt_id", fresh_id())
        return Command(kind=kind, **members)

    def credit(self, account: int, amount: int | None, **members: Any) -> Command:
        return self.command("credit", credit=account, amount=amount, **members)

    def debit(self, account: int, amount: int | None, **members: Any) -> Command:
        return self.command("debit", debit=account, amount=amount, **members)

    def transfer(self, source: int, destination: int, amount: int | None, **members: Any) -> Command:
        return self.command("transfer", debit=source, credit=destination, amount=amount, **members)

    def limit(self, account: int, amount: int | None, **members: Any) -> Command:
        return self.command("limit", debit=account, amount=amount, **members)

    def cancel(self, account: int, transaction_id: str, **members: Any) -> Command:
        return self.command("cancel", debit=account, transaction_id=transaction_id, **members)

    def hold(self, account: int, amount: int | None, destination: int | None = None, **members: Any) -> Command:
        members.setdefault("expires_in_s", 3600)
        return self.command("hold", debit=account, credit=destination, amount=amount, **members)

    def capture(self, hold: Command, amount: int | None = None, **members: Any) -> Command:
        return self._about(hold, "capture", amount=amount, **members)

    def release(self, hold: Command, **members: Any) -> Command:
        return self._about(hold, "release", **members)

    def expiry(self, hold: Command, **members: Any) -> Command:
        members.setdefault("transaction_id", str(uuid.uuid5(uuid.UUID(hold.transaction_id), "expiry")))
        return self._about(hold, "expiry", **members)

    def reversal(self, original: Command, amount: int | None = None, **members: Any) -> Command:
        return self._about(original, "reversal", amount=amount, **members)

    def freeze(self, account: int, **members: Any) -> Command:
        return self.command("freeze", debit=account, **members)

    def unfreeze(self, account: int, **members: Any) -> Command:
        return self.command("unfreeze", debit=account, **members)

    def shut(self, account: int, **members: Any) -> Command:
        """A command of kind `close`; `close` ends the bench."""
        return self.command("close", debit=account, **members)

    def bet(self, account: int, amount: int | None, **members: Any) -> Command:
        return self.command("bet", debit=account, amount=amount, **members)

    def win(self, account: int, bet: Command, amount: int | None, **members: Any) -> Command:
        members.setdefault("refers_to", bet.transaction_id)
        return self.command("win", credit=account, amount=amount, **members)

    def rollback(self, account: int, bet: Command, **members: Any) -> Command:
        members.setdefault("refers_to", bet.transaction_id)
        return self.command("rollback", credit=account, **members)

    def _about(self, other: Command, kind: str, **members: Any) -> Command:
        members.setdefault("refers_to", other.transaction_id)
        return self.command(kind, debit=ABSENT, **members)

    def posted(self, command: Command) -> Command:
        """The command, after it was posted."""
        answer = self.post(command)
        assert answer.posted, answer
        return command

    def refused(self, command: Command) -> Refusal:
        """Why the command was refused, after which nothing but the record of that is there."""
        before = self.state()
        refusal = self.post(command).refusal
        assert refusal is not None
        assert self.state() == before
        assert self.stored_attempts()[command.attempt_id].refusal == refusal
        return refusal

    # -- calls ----------------------------------------------------------------------------------------------------

    def call(self, units: Sequence[Unit], *, resent: bool = False) -> list[list[Answer]]:
        """One kernel call by the daemon's role."""
        return self.timed_call(units, resent=resent)[1]

    def timed_call(self, units: Sequence[Unit], *, resent: bool = False) -> tuple[int, list[list[Answer]]]:
        """The same with the time that the kernel says it is."""
        row = self.run(self._kernel.fetchrow(*arguments(units, resent=resent)))
        return microseconds(row["created_at"]), answers(row, units)

    def lose(self, units: Sequence[Unit]) -> None:
        """A call whose connection died before its COMMIT."""

        async def work() -> None:
            transaction = self.daemon.transaction()
            await transaction.start()
            await self._kernel.fetchrow(*arguments(units))
            await transaction.rollback()

        self.run(work())

    def post(self, command: Command, *, resent: bool = False) -> Answer:
        return self.call([Unit((command,))], resent=resent)[0][0]

    def post_all(self, *commands: Command) -> list[Answer]:
        """Independent commands in one call."""
        return [answer for (answer,) in self.call([Unit((command,)) for command in commands])]

    def post_atomic(self, batch_id: str, *commands: Command, resent: bool = False) -> list[Answer]:
        return self.call([Unit(commands, batch_id)], resent=resent)[0]

    # -- what is stored -------------------------------------------------------------------------------------------

    def stored_accounts(self) -> dict[int, Account]:
        return {
            row["account_id"]: Account(
                account_id=row["account_id"],
                user_id=row["user_id"],
                currency=row["currency"],
                balance=row["balance"],
                held=row["held"],
                overdraft_limit=row["overdraft_limit"],
                version=row["version"],
                status=row["status"],
                owner_disabled=row["owner_disabled"],
            )
            for row in self.fetch("SELECT * FROM ledgerd.accounts")
        }

    def stored_account(self, account: int) -> Account:
        return self.stored_accounts()[account]

    def stored_transactions(self) -> dict[str, Transaction]:
        return {str(row["transaction_id"]): _transaction(row) for row in self.fetch("SELECT * FROM ledgerd.records")}

    def stored_transaction(self, command: Command) -> Transaction:
        return self.stored_transactions()[command.transaction_id]

    def stored_holds(self) -> dict[str, Hold]:
        return {
            str(row["hold_id"]): Hold(row["account_id"], microseconds(row["expires_at"]))
            for row in self.fetch("SELECT * FROM ledgerd.holds")
        }

    def stored_fates(self) -> dict[str, tuple[str, int | None]]:
        """What became of each transaction: its present status, and how much of it was given back."""
        rows = self.fetch("SELECT transaction_id, present_status, reversed_amount FROM ledgerd.present_records")
        return {str(row["transaction_id"]): (row["present_status"], row["reversed_amount"]) for row in rows}

    def faults(self) -> list[str]:
        """What the auditor says of all that is stored."""
        return audit(self.stored_accounts(), self.stored_transactions().values(), self.stored_holds())

    def stored_attempts(self) -> dict[str, Attempt]:
        return {str(row["attempt_id"]): _attempt(row) for row in self.fetch("SELECT * FROM ledgerd.attempts")}

    def stored_tokens(self) -> list[Token]:
        return [
            Token(row["token_id"], frozenset(row["scopes"]), row["user_id"], row["account_id"])
            for row in self.fetch("SELECT * FROM ledgerd.tokens")
        ]

    def state(self) -> object:
        """Everything that money can change, to say that nothing did."""
        return self.stored_accounts(), self.stored_transactions(), self.stored_holds()


def _transaction(row: asyncpg.Record) -> Transaction:
    def after(side: str) -> After | None:
        values = [row[f"{side}_{name}"] for name in ("version", "balance", "held", "available")]
        return None if values[0] is None else After(*values)

    def account(account_id: int) -> int | None:
        return account_id if account_id > 0 else None

    return Transaction(
        transaction_id=str(row["transaction_id"]),
        kind=row["kind"],
        amount=row["amount"],
        currency=row["currency"],
        debit_account=account(row["debit_account"]),
        credit_account=account(row["credit_account"]),
        debit=after("debit"),
        credit=after("credit"),
        token_id=row["token_id"],
        created_at=microseconds(row["created_at"]),
        status=row["status"],
        held_change=row["held_change"],
        reference=row["reference"],
        reason=row["reason"],
        metadata=row["metadata"],
        place=None if row["batch_id"] is None else Place(str(row["batch_id"]), row["batch_index"]),
        refers_to=None if row["refers_to"] is None else str(row["refers_to"]),
        expires_in_s=row["expires_in_s"],
        amount_omitted=bool(row["amount_omitted"]),
    )


def _attempt(row: asyncpg.Record) -> Attempt:
    """A stored attempt as the command it was; its problem and its metadata are not kept."""
    return Attempt(
        Command(
            kind=row["kind"],
            token_id=row["token_id"],
            transaction_id=str(row["transaction_id"]),
            attempt_id=str(row["attempt_id"]),
            debit=row["debit_account"],
            credit=row["credit_account"],
            amount=row["amount"],
            currency=row["currency"],
            reference=row["reference"],
            reason=row["reason"],
        ),
        Refusal(ERROR_CODES[row["code"]], row["data"] and json.loads(row["data"])),
    )
