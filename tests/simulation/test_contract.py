"""The simulated database and a real one give the same answers to the same questions, whatever happened before.

One random history is played on both; after every call, and at the end, both are asked everything that engine and
gateway ask. Only times are left out: they are of two clocks. What a command is answered is compared by
`tests/storage/test_kernel_model.py` for far more histories; here it is the rest of what the engine relies on.
"""

from __future__ import annotations

import itertools
import re
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import AccountRef, Command, Outcome, Posted, Principal, Record, Refused, Unit
from ledgerd.engine.ports import Books, Lane
from ledgerd.engine.states import AccountState, Place
from tests.conftest import Database
from tests.simulation.books import StoreBooks, StoreLane
from tests.simulation.chance import Uuids
from tests.simulation.faults import Weather
from tests.simulation.store import Connection, Store
from tests.simulation.trace import Trace
from tests.storage.desk import Desk, open_desk, principal_of, register, token_hash, unit

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def timeless(value: Any) -> Any:
    """Without what is of a clock, or of the order in which a database counts transactions."""
    text = msgspec.json.encode(value).decode()
    return msgspec.json.decode(_TIME.sub("then", text))


class Both:
    """The same accounts and tokens in a real database and in a simulated one."""

    def __init__(self, desk: Desk, store: Store, rng: Random) -> None:
        self.desk = desk
        self.rng = rng
        self.ids = Uuids(rng)
        self.store = store
        connection = Connection("test")
        self.simulated = StoreBooks(store)
        self.simulated.attach(connection)
        self.lanes: tuple[Lane, Lane] = (desk.generation.lanes[0], StoreLane(store, connection))
        self.books: tuple[Books, Books] = (desk.books, self.simulated)  # type: ignore[assignment]
        self.accounts: list[AccountState] = []
        self.owners: list[Principal] = []
        self.sent: list[list[Unit]] = []
        self.places: list[tuple[Place, Place]] = []

    async def open(self) -> None:
        """Four accounts of three users, a token of each, and one of the service."""
        self.service = await self.desk.principal("service")
        self.desk.service = self.service
        self.store.add_token(token_hash(), None, "service", token_id=self.service.token_id)
        for _ in range(3):
            user, account, _ = await register(self.desk.books)
            made = await self.desk.books.create_token(
                token_hash=token_hash(), user_id=user.user_id, account_id=None, scopes=["user"],
                expires_at_s=None, label=None,
            )  # fmt: skip
            self.owners.append(principal_of(made))
            self.store.add_token(token_hash(), user.user_id, "user", token_id=made.token_id)
            self._add(account)
        second = await self.desk.books.open_account(user_id=self.owners[0].user_id or 0, currency="EUR", scale=2)
        self._add(second)
        for account in self.accounts:
            await self.post([unit(self.command("credit", None, account, 10_000))])
        self.places.append(await self.ask("here"))

    def _add(self, account: AccountState) -> None:
        self.accounts.append(account)
        self.store.add_account(account.account_id, account.user_id, account.currency)

    async def ask(self, question: str, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        """What both answer."""
        real, simulated = [await getattr(books, question)(*arguments, **named) for books in self.books]
        return real, simulated

    async def same(self, question: str, *arguments: Any, **named: Any) -> Any:
        """The answer, which both give."""
        real, simulated = await self.ask(question, *arguments, **named)
        assert timeless(simulated) == timeless(real), (question, arguments, named)
        return simulated

    # -- what happens ---------------------------------------------------------------------------------------------

    def command(
        self, kind: str, debit: AccountState | None, credit: AccountState | None, amount: int | None
    ) -> Command:
        """A command as the router hands it on, of the service or of the owner."""
        acting = debit or credit
        owner = next((each for each in self.owners if acting and each.user_id == acting.user_id), self.service)
        own = kind in ("debit", "transfer", "hold", "cancel") and self.rng.random() < 0.5
        made = self.desk.command(
            kind,
            debit=debit,
            credit=credit,
            amount=amount,
            principal=owner if own else self.service,
            transaction_id=str(self.ids.uuid7()),
            expires_in_s=60 if kind == "hold" else None,
        )
        made.arrived_at = trio.current_time()
        return made

    def draw(self) -> Command:
        """Any command, mostly one that can be posted."""
        rng = self.rng
        kind = rng.choice(
            ("credit", "debit", "transfer", "transfer", "hold", "hold", "capture", "release", "reversal", "cancel")
        )
        amount = rng.choice((1, 50, 700, 9_000))
        first, second = rng.sample(self.accounts[:3], 2)
        if kind == "credit":
            return self.command(kind, None, rng.choice(self.accounts), amount)
        if kind in ("debit", "cancel"):
            return self.command(kind, first, None, amount if kind == "debit" else None)
        if kind in ("transfer", "hold"):
            return self.command(kind, first, second if kind == "transfer" or rng.random() < 0.5 else None, amount)
        wanted = ("hold",) if kind != "reversal" else ("credit", "debit", "transfer", "capture")
        found = [commit.record for commit in self.store.commits if commit.record.kind in wanted]
        return self._about(kind, rng.choice(found) if found else None)

    def _about(self, kind: str, record: Record | None) -> Command:
        if record is None:
            return self.command("credit", None, self.accounts[0], 5)
        sides = [record.debit_account, record.credit_account]
        if kind == "reversal":
            sides.reverse()
        named = {account.account_id: account for account in self.accounts}
        debit, credit = (None if side is None else named[side] for side in sides)
        made = self.command(kind, debit, credit, None)
        made.refers_to = record.transaction_id
        made.principal = self.service
        return made

    def draw_call(self) -> list[Unit]:
        """One to four units, some of them atomic, some of them with a command that was sent before."""
        rng = self.rng
        units = []
        for _ in range(rng.randrange(1, 4)):
            commands = [self.draw() for _ in range(rng.choice((1, 1, 1, 3)))]
            if self.sent and rng.random() < 0.25:
                old = rng.choice([each for call in self.sent for unit in call for each in unit.commands])
                commands[0] = msgspec.structs.replace(old, attempt_id=str(self.ids.uuid7()))
                if rng.random() < 0.3 and commands[0].amount_minor is not None:
                    commands[0].amount_minor += 1
            units.append(unit(*commands, batch_id=str(self.ids.uuid4()) if len(commands) > 1 else None))
        return units

    async def post(self, units: list[Unit], *, resent: bool = False) -> list[list[Outcome]]:
        """Post the same on both; the outcomes, which are the same."""
        real, simulated = [await lane.post(units, resent=resent) for lane in self.lanes]
        assert timeless(simulated) == timeless(real)
        assert [[type(each) for each in of_unit] for of_unit in simulated] == [
            [type(each) for each in of_unit] for of_unit in real
        ]
        if not resent:
            self.sent.append(units)
        return simulated

    async def pass_time(self, seconds: int) -> None:
        """Let the clocks of both go on."""
        await self.desk.owner(
            "UPDATE ledgerd.settings SET clock_offset = clock_offset + make_interval(secs => $1)", float(seconds)
        )
        self.store.ahead_us += seconds * 1_000_000

    # -- what is asked --------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        """Everything that engine and gateway ask."""
        numbers = [account.account_id for account in self.accounts]
        users = sorted({account.user_id for account in self.accounts})
        await self.same("account_states", [*numbers, 999_999])
        heads = await self.same("heads", numbers)
        for account in numbers:
            await self._compare_history(account, heads[account])
        await self.same("unknown_accounts", users, numbers[1:3], 5)
        await self.same("unknown_accounts", users, [], 1)
        for user in (None, *users):
            await self.same("accounts", user, numbers[0], 2)
        # Those of one call expire at one moment, and which of them comes first nobody says.
        real, simulated = await self.ask("expired_holds", 100)
        assert {hold.hold_id: hold.account_id for hold in simulated} == {hold.hold_id: hold.account_id for hold in real}
        assert len((await self.ask("expired_holds", 1))[0]) == min(1, len(simulated))

    async def _compare_history(self, account: int, head: int) -> None:
        for after, limit in ((0, 200), (head // 2, 2), (head - 1, 1), (head, 5), (head + 3, 5)):
            await self.same("history", account, max(after, 0), limit)
        for version in (0, 1, head, head + 1):
            await self.same("balance_at", account, version=version)

    async def compare_transactions(self) -> None:
        """What became of every id."""
        ids = [command.transaction_id for call in self.sent for unit in call for command in unit.commands]
        for transaction_id in sorted({*ids, str(UUID(int=5))}):
            await self.same("transaction", transaction_id)
            for who in (self.service, self.owners[0]):
                real, simulated = await self.ask("attempts", transaction_id, who)
                assert {(each.attempt_id, each.code) for each in simulated} == {
                    (each.attempt_id, each.code) for each in real
                }
        by_payer = [(AccountRef(payer_of=transaction_id), "") for transaction_id in ids]
        await self.same("find_accounts", [*by_payer, *((AccountRef(receiver_of=each), "") for each in ids)])
        by_number = [(AccountRef(account_id=number), "") for number in (self.accounts[0].account_id, 999_999)]
        by_user = [(AccountRef(user_id=self.owners[0].user_id), currency) for currency in ("USD", "EUR", "JPY")]
        await self.same("find_accounts", [*by_number, *by_user])

    async def compare_order(self) -> None:
        """What was committed since each place: the same transactions, each account's in order, whatever the pages."""
        for places, limit in itertools.product(self.places, (1, 3, 1_000)):
            real, simulated = [
                await self._read_on(books, place, limit) for books, place in zip(self.books, places, strict=True)
            ]
            assert {each.transaction_id for each in simulated} == {each.transaction_id for each in real}
            for records in (real, simulated):
                self._check_in_order(records)

    async def _read_on(self, books: Books, place: Place, limit: int) -> list[Record]:
        records: dict[str, Record] = {}
        while True:
            stretch = await books.committed_since(place, limit)
            for record in stretch.records:
                records.setdefault(record.transaction_id, record)
            place = stretch.end
            if not stretch.more:
                return list(records.values())

    def _check_in_order(self, records: list[Record]) -> None:
        last: dict[int, int] = {}
        for record in records:
            for side in record.sides:
                assert side.version == last.get(side.account_id, side.version - 1) + 1, record
                last[side.account_id] = side.version

    async def compare_resuming(self) -> None:
        """A position that a client kept leads to a place from which nothing is missed."""
        for places in self.places:
            for books, place in zip(self.books, places, strict=True):
                resumed = await books.place(place.position)
                assert resumed is not None
                since = {each.transaction_id for each in await self._read_on(books, place, 1_000)}
                assert since <= {each.transaction_id for each in await self._read_on(books, resumed, 1_000)}
        for nonsense in ("", "0", "-1", "x", "99999999999999999"):
            assert await self.ask("place", nonsense) == (None, None)


@pytest.fixture
async def both(database: Database, nursery: trio.Nursery) -> Any:
    rng = Random(1)
    calm = Weather(rng, {}, 0, 0, 0, 0, 0.001, calm=True)
    store = Store(Config(), calm, Trace(), nursery)
    async with open_desk(database) as desk:
        made = Both(desk, store, rng)
        await made.open()
        yield made
        assert store.trace.failures == []


@pytest.mark.parametrize("seed", range(4))
async def test_a_simulated_database_answers_as_a_real_one_does(both: Both, seed: int) -> None:
    both.rng.seed(seed)
    for step in range(12):
        units = both.draw_call()
        await both.post(units)
        if both.rng.random() < 0.3:
            await both.post(both.rng.choice(both.sent), resent=True)
        if both.rng.random() < 0.2:
            await both.pass_time(61)
        if step % 4 == 0:
            both.places.append(await both.ask("here"))
            await both.compare()
    await both.compare()
    await both.compare_transactions()
    await both.compare_order()
    await both.compare_resuming()


async def test_what_was_refused_is_refused_again_when_the_call_is_resent_whatever_has_changed(both: Both) -> None:
    poor, rich = both.accounts[0], both.accounts[1]
    call = [unit(both.command("transfer", poor, rich, 20_000))]
    ((first,),) = await both.post(call)
    await both.post([unit(both.command("credit", None, poor, 50_000))])
    ((again,),) = await both.post(call, resent=True)
    assert isinstance(first, Refused)
    assert timeless(again)["code"] == timeless(first)["code"]
    ((anew,),) = await both.post([unit(msgspec.structs.replace(call[0].commands[0], attempt_id=str(both.ids.uuid7())))])
    assert isinstance(anew, Posted)
    await both.compare()
    await both.compare_transactions()


async def test_what_was_posted_is_replayed_when_the_call_is_resent(both: Both) -> None:
    call = [unit(both.command("transfer", both.accounts[0], both.accounts[1], 100))]
    ((first,),) = await both.post(call)
    ((again,),) = await both.post(call, resent=True)
    assert isinstance(first, Posted)
    assert isinstance(again, Posted)
    assert again.record == first.record
    await both.compare()


async def test_a_revoked_token_ends_what_it_could_do(both: Both) -> None:
    owner = both.owners[1]
    await both.desk.books.revoke_tokens(token_id=owner.token_id)
    for token in both.store.tokens:
        if both.store.tokens[token].token_id == owner.token_id:
            both.store.revoke(token)
    numbers = [owner.token_id, both.service.token_id, 999_999]
    real, simulated = await both.ask("revoked_tokens", numbers)
    assert sorted(simulated) == sorted(real)
    command = both.command("debit", both.accounts[1], None, 1)
    command.principal = owner
    ((outcome,),) = await both.post([unit(command)])
    assert isinstance(outcome, Refused)


async def test_an_account_can_be_opened_once_per_currency(both: Both) -> None:
    user_id = both.owners[2].user_id
    for books in both.books:
        opened = await books.open_account(user_id=user_id, currency="EUR", scale=2)
        assert (opened.user_id, opened.currency, opened.version) == (user_id, "EUR", 0)
        with pytest.raises(Exception, match="already"):
            await books.open_account(user_id=user_id, currency="EUR", scale=2)
