"""A ledger in memory with the faces of the real storage, whose faults are switches. For tests of the engine."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from itertools import count
from typing import Any
from uuid import UUID

import trio
import trio.testing

from ledgerd.config import Config
from ledgerd.engine.commands import (
    AccountFacts,
    AccountRef,
    ActorInfo,
    Command,
    Outcome,
    Posted,
    Principal,
    Record,
    Refused,
    Side,
    Unit,
)
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory
from ledgerd.engine.hub import Hub
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.engine.router import Router
from ledgerd.engine.states import AccountState, Place, Stretch
from ledgerd.engine.subscription import Subscription
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.messages import SubscribeOptions

POISON = "poison"
"""A command with this reason makes the fake refuse the whole call, as a database does with text it cannot store."""

_numbers = count(1)


class Fault(Enum):
    """What happens to the next call of a lane."""

    NONE = "nothing"
    AWAY = "the connection is lost before the call is sent"
    LOST_BEFORE_COMMIT = "the connection is lost, nothing is committed, and nobody can know"
    LOST_AFTER_COMMIT = "the connection is lost after the commit, before the answer"
    BUG = "the code around the database fails"


def principal(
    user_id: int | None = 1, *scopes: str, account_id: int | None = None, token_id: int | None = None
) -> Principal:
    """A user's token, or another one with the given scopes."""
    token = token_id if token_id is not None else 1000 + (user_id or 0)
    return Principal(token, user_id, account_id, frozenset(scopes or ("user",)), None)


SERVICE = principal(None, "service", token_id=7)
OPERATOR = principal(None, "operator", token_id=8)


def command(
    kind: str,
    debit: int | AccountRef | None,
    credit: int | AccountRef | None,
    amount: str | None = "1.00",
    *,
    by: Principal = SERVICE,
    reason: str | None = None,
    currency: str | None = None,
    transaction_id: str | None = None,
    refers_to: str | None = None,
) -> Command:
    """A money command; accounts are given by id or as a ref."""
    number = next(_numbers)
    return Command(
        kind=kind,
        principal=by,
        transaction_id=transaction_id or str(UUID(int=number)),
        attempt_id=str(UUID(int=10**9 + number)),
        debit=AccountRef(account_id=debit) if isinstance(debit, int) else debit,
        credit=AccountRef(account_id=credit) if isinstance(credit, int) else credit,
        amount=amount,
        currency=currency,
        reference=None,
        reason=reason,
        metadata=None,
        arrived_at=trio.current_time(),
        refers_to=refers_to,
    )


class Asked(Unit):
    """A unit that remembers its answer and when it came."""

    __slots__ = ("answered_at", "done", "outcomes")

    def __init__(
        self, *commands: Command, ttl_s: float = 10.0, atomic: bool = False, then: Callable[[], None] | None = None
    ) -> None:
        self.done = trio.Event()
        self.outcomes: list[Outcome] | None = None
        self.answered_at: float | None = None

        def answer(outcomes: list[Outcome]) -> None:
            assert self.outcomes is None, "answered twice"
            self.outcomes = outcomes
            self.answered_at = trio.current_time()
            self.done.set()
            if then is not None:
                then()

        super().__init__(list(commands), answer, deadline=trio.current_time() + ttl_s, atomic=atomic)

    async def outcome(self) -> Outcome:
        """The outcome of the only command."""
        await self.done.wait()
        assert self.outcomes is not None
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    @property
    def refusal(self) -> tuple[ErrorCode, bool | None]:
        """Code and `applied` of the only command's refusal."""
        assert self.outcomes is not None, "not answered"
        (outcome,) = self.outcomes
        assert isinstance(outcome, Refused), outcome
        return outcome.code, outcome.applied

    @property
    def record(self) -> Record:
        """The transaction of the only command."""
        assert self.outcomes is not None, "not answered"
        (outcome,) = self.outcomes
        assert isinstance(outcome, Posted), outcome
        return outcome.record


def transfer(source: int, destination: int, amount: str = "1.00", **more: Any) -> Asked:
    """A unit of one transfer."""
    return Asked(command("transfer", source, destination, amount, **more))


class FakeLedger:
    """Accounts, transactions and refused attempts. Amounts in minor units, two decimals."""

    def __init__(self) -> None:
        self.accounts: dict[int, AccountState] = {}
        self.records: dict[str, tuple[Record, str]] = {}
        self.wallets: dict[str, int] = {}  # the user of each
        self.refused: dict[str, Refused] = {}
        self.histories: dict[int, list[Record]] = {}
        self.commits: list[Record] = []
        self.low_water: int | None = None  # commits before somebody else's transaction, which is still open
        self.stretches: list[str] = []
        self.epoch = "e1"
        self.calls: list[tuple[str, list[str], bool]] = []
        self.locked: set[int] = set()
        self.judged: list[tuple[float, str]] = []
        self.directory_calls: list[list[tuple[AccountRef, str]]] = []
        self.directory_delay_s = 0.0
        self.reads: list[tuple[int, int, int]] = []
        self.read_delay_s = 0.001
        self.away = False
        self.own_are_replays = False  # whether a command sent again by us counts as replayed
        self.before_states: Callable[[], None] = lambda: None

    def open(
        self, account_id: int, user_id: int | None = None, balance: int = 0, currency: str = "USD"
    ) -> AccountState:
        """An account with a balance, at version 0."""
        state = AccountState(
            account_id, user_id or account_id, currency, 2, balance, 0, balance, 0, 0, "open", "then", "then"
        )
        self.accounts[account_id] = state
        self.histories[account_id] = []
        return state

    def version(self, account_id: int) -> int:
        """The account's newest version."""
        return self.accounts[account_id].version

    # -- the kernel ----------------------------------------------------------------------------------------------

    def apply(self, units: Sequence[Unit]) -> list[list[Outcome]]:
        """Judge and post, as the kernel does."""
        if any(command.reason == POISON for unit in units for command in unit.commands):
            raise CallRefused("poison")
        return [[self._judge(command) for command in unit.commands] for unit in units]

    def _judge(self, command: Command) -> Outcome:
        stored = self.records.get(command.transaction_id)
        if stored is not None:
            return Posted(stored[0], replayed=self.own_are_replays or stored[1] != command.attempt_id)
        if command.attempt_id in self.refused:
            return self.refused[command.attempt_id]
        self.judged.append((trio.current_time(), command.transaction_id))
        refusal = self._refusal(command)
        if refusal is not None:
            self.refused[command.attempt_id] = Refused(refusal, attempt_id=command.attempt_id)
            return self.refused[command.attempt_id]
        return Posted(self._post(command))

    def _refusal(self, command: Command) -> ErrorCode | None:
        for account in (command.debit_account, command.credit_account):
            if account is not None and account not in self.accounts:
                return ErrorCode.NOT_FOUND
        if command.amount_problem is not None:
            return command.amount_problem
        assert command.amount_minor is not None
        paying = command.debit_account
        if paying is not None and self.accounts[paying].available < command.amount_minor:
            return ErrorCode.INSUFFICIENT_FUNDS
        return None

    def _post(self, command: Command) -> Record:
        amount = command.amount_minor
        assert amount is not None
        moves = [("debit", command.debit_account, -amount), ("credit", command.credit_account, amount)]
        return self.post(
            [(way, account, change) for way, account, change in moves if account is not None],
            kind=command.kind,
            transaction_id=command.transaction_id,
            attempt_id=command.attempt_id,
        )

    def post(
        self,
        moves: list[tuple[str, int, int]],
        *,
        kind: str = "transfer",
        transaction_id: str | None = None,
        attempt_id: str = "",
    ) -> Record:
        """Store a transaction that changes these accounts by these amounts, whoever asked for it."""
        sides = []
        for way, account_id, change in moves:
            state = self.accounts[account_id]
            balance, version = state.balance + change, state.version + 1
            self.accounts[account_id] = AccountState(
                account_id, state.user_id, state.currency, 2, balance, 0, balance, 0, version, "open", "then", "now"
            )
            sides.append(Side(account_id, state.user_id, way, version, balance, 0, balance, change, 0))
        named = {way: account for way, account, _ in moves}
        record = Record(
            transaction_id or str(UUID(int=next(_numbers))),
            kind,
            "posted",
            abs(moves[0][2]),
            "USD",
            2,
            named.get("debit"),
            named.get("credit"),
            tuple(sides),
            None,
            None,
            None,
            "now",
            ActorInfo(7, None, ("service",)),
        )
        self.records[record.transaction_id] = (record, attempt_id)
        self.commits.append(record)
        for side in sides:
            self.histories[side.account_id].append(record)
        return record

    def credit(self, account_id: int, amount: int = 100) -> Record:
        """Money from outside, committed by somebody else: nothing here is told."""
        return self.post([("credit", account_id, amount)], kind="credit")

    def move(self, source: int, destination: int, amount: int = 100) -> Record:
        """A transfer committed by somebody else."""
        return self.post([("debit", source, -amount), ("credit", destination, amount)])

    # -- the directory and the feed ------------------------------------------------------------------------------

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        """See ports.Directory."""
        self.directory_calls.append(list(refs))
        await self._reach(self.directory_delay_s)
        return [self._find(ref, currency) for ref, currency in refs]

    def _find(self, ref: AccountRef, currency: str) -> AccountFacts | None:
        transaction_id = ref.payer_of or ref.receiver_of
        if transaction_id is not None:
            if transaction_id not in self.records:
                return None
            record = self.records[transaction_id][0]
            sides = (record.debit_account, record.credit_account)
            first, second = sides if ref.payer_of is not None else reversed(sides)
            return self._find(AccountRef(account_id=first or second), "")
        if ref.wallet is not None:
            of_wallet = [state for state in self.accounts.values() if state.user_id == self.wallets.get(ref.wallet)]
            of_wallet.sort(key=lambda state: (state.currency != currency, state.account_id))
            return self._find(AccountRef(account_id=of_wallet[0].account_id), "") if of_wallet else None
        for state in self.accounts.values():
            if ref.account_id == state.account_id or (ref.user_id, currency) == (state.user_id, state.currency):
                return AccountFacts(state.account_id, state.user_id, state.currency, state.scale)
        return None

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        """See ports.Feed."""
        self.before_states()
        await self._reach(self.read_delay_s)
        return [self.accounts[account] for account in sorted(account_ids)]

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        """See ports.Feed."""
        self.reads.append((account_id, after_version, limit))
        await self._reach(self.read_delay_s)
        return self.histories[account_id][after_version : after_version + limit]

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        """See ports.Feed."""
        await self._reach(self.read_delay_s)
        return {account: self.accounts[account].version for account in account_ids}

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        """See ports.Feed."""
        await self._reach(self.read_delay_s)
        return [
            state for state in self.accounts.values() if state.user_id in user_ids and state.account_id not in known
        ]

    def _place(self, commits: int) -> Place:
        return Place(str(commits), str(commits if self.low_water is None else min(commits, self.low_water)))

    async def here(self) -> Place:
        """See ports.Feed."""
        await self._reach(self.read_delay_s)
        return self.now()

    def now(self) -> Place:
        """The present place, without a call."""
        return self._place(len(self.commits))

    async def place(self, position: str) -> Place | None:
        """See ports.Feed."""
        await self._reach(self.read_delay_s)
        known = position.isdigit() and int(position) <= len(self.commits)
        return Place(position, position) if known else None

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        """See ports.Feed."""
        self.stretches.append(place.exact)
        start = int(place.exact)
        records = self.commits[start : start + limit]
        end, more = self._place(start + len(records)), start + len(records) < len(self.commits)
        await self._reach(self.read_delay_s)
        return Stretch(records, end, more)

    async def _reach(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        if self.away:
            raise StorageUnavailable("away")


class FakeLane:
    """One connection to the fake ledger. A call takes ``call_s``."""

    def __init__(self, ledger: FakeLedger, name: str = "lane", call_s: float = 0.01) -> None:
        self.ledger = ledger
        self.name = name
        self.call_s = call_s
        self.faults: deque[Fault] = deque()

    async def post(self, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        """See ports.Lane."""
        ledger = self.ledger
        ledger.calls.append((self.name, [c.transaction_id for unit in units for c in unit.commands], resent))
        accounts = set().union(*(unit.accounts for unit in units))
        assert ledger.locked.isdisjoint(accounts), "another lane has one of these accounts in flight"
        ledger.locked |= accounts
        try:
            fault = self.faults.popleft() if self.faults else None
            if fault is Fault.AWAY:
                raise StorageUnavailable("away", applied=False)
            if fault is Fault.BUG:
                raise ZeroDivisionError
            await trio.sleep(self.call_s)
            if fault is Fault.LOST_BEFORE_COMMIT:
                raise StorageUnavailable("lost", applied=None)
            outcomes = ledger.apply(units)
            if fault is Fault.LOST_AFTER_COMMIT:
                raise StorageUnavailable("lost", applied=None)
            return outcomes
        finally:
            ledger.locked -= accounts


class FakeSink:
    """An outbox that has room, or has none, or is gone."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.room_for: int | None = None
        self.gone = False
        self._lot = trio.lowlevel.ParkingLot()

    def push(self, frame: bytes) -> bool:
        """See subscription.Sink."""
        if self.gone or self.room_for == 0:
            return False
        if self.room_for is not None:
            self.room_for -= 1
        self.frames.append(frame)
        return True

    async def room(self) -> None:
        """See subscription.Sink."""
        await trio.lowlevel.checkpoint()
        while not self.gone and self.room_for == 0:
            await self._lot.park()
        if self.gone:
            raise trio.ClosedResourceError

    def make_room(self, frames: int | None = None) -> None:
        """Let so many frames in, or all that come."""
        self.room_for = frames
        self._lot.unpark_all()

    def disconnect(self) -> None:
        """The connection is gone."""
        self.gone = True
        self._lot.unpark_all()

    def take(self) -> list[dict[str, Any]]:
        """The events since the last look."""
        frames, self.frames = self.frames, []
        return [json.loads(frame)["params"]["result"] for frame in frames]


async def settle() -> None:
    """Let everything that can happen at this moment of the fake clock happen, and a little time pass."""
    await trio.sleep(0.5)


class Engine:
    """All of the engine on a fake ledger."""

    def __init__(self, ledger: FakeLedger, config: Config, nursery: trio.Nursery) -> None:
        self.ledger = ledger
        self.config = config
        self.hub = Hub(config, ledger, lambda: ledger.epoch)
        self.committer = Committer(config, self.hub.publish)
        self.directory = AccountDirectory(ledger, config.directory_entries_max)
        self.router = Router(config, self.directory, self.committer, nursery)
        self.lanes: list[FakeLane] = []
        self._nursery = nursery

    def start_lane(self, name: str = "lane", call_s: float = 0.01, *faults: Fault) -> FakeLane:
        """One more lane, which is left when its connection is lost."""
        lane = FakeLane(self.ledger, name, call_s)
        lane.faults.extend(faults)
        self.lanes.append(lane)
        self._nursery.start_soon(self._run_lane, lane)
        return lane

    async def _run_lane(self, lane: FakeLane) -> None:
        with suppress(StorageUnavailable):
            await self.committer.run_lane(lane)

    async def send(self, *units: Asked) -> None:
        """Route the units in order; each has come as far as it can before the next one follows.

        Between users there is no order otherwise: Trio runs the workers of one moment in any order.
        """
        for unit in units:
            self.router.try_route(unit)
            await trio.testing.wait_all_tasks_blocked()

    async def answers(self, *units: Asked) -> None:
        """Wait until all are answered."""
        for unit in units:
            await unit.done.wait()

    def follow(
        self,
        sink: FakeSink,
        *accounts: int,
        channel: str = "balances",
        by: Principal = SERVICE,
        subscription_id: str = "sub_1",
        **options: Any,
    ) -> Subscription:
        """Subscribe to these accounts."""
        states = [self.ledger.accounts[account] for account in accounts]
        if accounts and "account_ids" not in options and "user_id" not in options and by.user_id is None:
            options["account_ids"] = list(accounts)
        here = self.ledger.now() if options.get("all") else None
        return self.hub.subscribe(sink, subscription_id, by, channel, SubscribeOptions(**options), states, here)


@asynccontextmanager
async def open_engine(ledger: FakeLedger, **settings: Any) -> AsyncIterator[Engine]:
    """An engine without lanes; everything ends with the block."""
    async with trio.open_nursery() as nursery:
        engine = Engine(ledger, Config(**settings), nursery)
        await nursery.start(engine.hub.run)
        nursery.start_soon(engine.committer.run_sweeper)
        yield engine
        nursery.cancel_scope.cancel()
