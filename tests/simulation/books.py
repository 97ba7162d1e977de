"""What one daemon asks of the simulated database: reads that take time and fail, as the real ones do.

A read looks once, at one moment between its beginning and its end, and sees what was committed by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import trio

from ledgerd.engine.commands import AccountFacts, AccountRef, Outcome, Principal, Record, Unit
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import (
    AccountState,
    AttemptState,
    BalanceState,
    Collected,
    DueHold,
    LedgerFacts,
    MonitorState,
    Place,
    Stretch,
    TokenState,
)
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.model import REVERSIBLE
from tests.simulation.chance import now_us
from tests.simulation.nouns import SCALE, time_text
from tests.simulation.store import Commit, Connection, Store

T = TypeVar("T")


class StoreLane:
    """One connection that posts; see `ledgerd.engine.ports.Lane`."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self._store = store
        self._connection = connection

    async def post(self, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        return await self._store.post(self._connection, units, resent=resent)


class StoreBooks:
    """The part of `ledgerd.engine.ports.Books` that the simulated clients have use for.

    Not here are people, passwords, monitors, advances and reports: they have no part in the order of anything.
    """

    def __init__(self, store: Store, readers: int = 2) -> None:
        self._store = store
        self._limiter = trio.CapacityLimiter(readers)
        self._known = False
        self.connection: Connection | None = None
        """Of the present generation; None between two."""

    def attach(self, connection: Connection) -> None:
        """A generation begins."""
        self.connection = connection
        self._known = True

    def facts(self) -> LedgerFacts:
        if not self._known:
            raise StorageUnavailable("the database has not been reached yet")
        return LedgerFacts(self._store.epoch, 1, {"USD": SCALE, "EUR": SCALE}, b"k" * 32)

    async def read(self, look: Callable[[], T]) -> T:
        """One read. Raises StorageUnavailable."""
        weather = self._store.weather
        async with self._limiter:
            connection = self._usable()
            await trio.sleep(weather.read_takes_s())
            if self._usable() is not connection:
                raise StorageUnavailable("the connection was lost")
            if weather.read_fails():
                connection.closed = weather.rng.random() < 0.5
                raise StorageUnavailable("the connection was lost")
            seen = look()
            await trio.sleep(weather.read_takes_s())
            if self.connection is not connection or connection.closed:
                raise StorageUnavailable("the connection was lost")
            return seen

    def _usable(self) -> Connection:
        connection = self.connection
        if connection is None or connection.closed or self._store.away:
            raise StorageUnavailable("the database is not reachable")
        return connection

    async def ping(self) -> None:
        """One round trip."""
        await self.read(lambda: None)

    # -- directory ------------------------------------------------------------------------------------------------

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        return await self.read(lambda: [self._find(ref, currency) for ref, currency in refs])

    def _find(self, ref: AccountRef, currency: str) -> AccountFacts | None:
        ledger = self._store.ledger
        account = None
        if ref.account_id is not None:
            account = ledger.accounts.get(ref.account_id)
        elif ref.user_id is not None:
            of_user = (each for each in ledger.accounts.values() if each.user_id == ref.user_id)
            account = next((each for each in of_user if each.currency == currency), None)
        else:
            referred = ledger.transactions.get(ref.payer_of or ref.receiver_of or "")
            if referred is not None:
                sides = (referred.debit_account, referred.credit_account)
                first, second = sides if ref.payer_of is not None else reversed(sides)
                account = ledger.accounts[first or second or 0]
        if account is None:
            return None
        return AccountFacts(account.account_id, account.user_id, account.currency, SCALE)

    # -- feed -----------------------------------------------------------------------------------------------------

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        def look() -> list[AccountState]:
            known = self._store.ledger.accounts.keys() & set(account_ids)
            return [self._store.state(account_id) for account_id in sorted(known)]

        return await self.read(look)

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        def look() -> list[Record]:
            history = self._store.histories[account_id][after_version : after_version + limit]
            return [commit.record for commit in history]

        return await self.read(look)

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        def look() -> dict[int, int]:
            # Not before: what is rolled back leaves other accounts in the model, not the same ones as they were.
            accounts = self._store.ledger.accounts
            return {each: accounts[each].version for each in account_ids if each in accounts}

        return await self.read(look)

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        def look() -> list[AccountState]:
            found: list[AccountState] = []
            for user_id in user_ids:
                of_user = self._of_user(user_id)
                of_user.sort(key=lambda state: state.currency)
                found += [state for state in of_user[:limit] if state.account_id not in known]
            return sorted(found, key=lambda state: state.account_id)

        return await self.read(look)

    def _of_user(self, user_id: int | None) -> list[AccountState]:
        accounts = self._store.ledger.accounts.values()
        return [self._store.state(each.account_id) for each in accounts if user_id in (None, each.user_id)]

    def _place(self, commits: int) -> Place:
        return Place(exact=str(commits), position=str(1 + min(commits, self._store.low_water)))

    async def here(self) -> Place:
        return await self.read(lambda: self._place(len(self._store.commits)))

    async def place(self, position: str) -> Place | None:
        def look() -> Place | None:
            if not position.isdigit() or not 0 < int(position) <= 1 + len(self._store.commits):
                return None
            return Place(exact=str(int(position) - 1), position=position)

        return await self.read(look)

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        def look() -> Stretch:
            commits = self._store.commits
            start = int(place.exact)
            end = min(start + limit, len(commits))
            while end < len(commits) and self._one_call(commits[end - 1], commits[end]):
                end += 1
            records = [commit.record for commit in commits[start:end]]
            return Stretch(records, self._place(end), end < len(commits))

        return await self.read(look)

    def _one_call(self, one: Commit, other: Commit) -> bool:
        return one.at == other.at

    async def monitors_since(self, revision: int, limit: int, *, removed: bool) -> list[MonitorState]:
        return await self.read(list)

    # -- what daemons do by the clock -----------------------------------------------------------------------------

    async def expired_holds(self, limit: int) -> list[DueHold]:
        def look() -> list[DueHold]:
            now = self._store.clock_us()
            due = [(at, hold, account) for hold, (account, at) in self._store.pending.items() if at <= now]
            return [DueHold(hold, account) for _, hold, account in sorted(due)[:limit]]

        return await self.read(look)

    async def collect_due(self, limit: int) -> Collected:
        return await self.read(lambda: Collected([], 0, [], more=False))

    # -- what clients ask for -------------------------------------------------------------------------------------

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        return await self.read(lambda: self._store.tokens.get(token_hash))

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        def look() -> list[int]:
            tokens = self._store.ledger.tokens
            return [each for each in token_ids if each not in tokens or tokens[each].ended]

        return await self.read(look)

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        def look() -> list[AccountState]:
            found = [state for state in self._of_user(user_id) if state.account_id > after_account_id]
            return sorted(found, key=lambda state: state.account_id)[:limit]

        return await self.read(look)

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        def work() -> AccountState:
            if self._find(AccountRef(user_id=user_id), currency) is not None:
                raise LedgerError(ErrorCode.ALREADY_EXISTS, resource="account")
            return self._store.add_account(max(self._store.ledger.accounts) + 1, user_id, currency)

        return await self.read(work)

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        def look() -> BalanceState | None:
            store = self._store
            account = store.state(account_id)
            history = store.histories[account_id]
            wanted = version
            if at is not None:
                if at < account.created_at:
                    return None
                wanted = sum(commit.record.created_at <= at for commit in history)
            if not wanted:
                return _balance(account, 0, 0, 0, 0, account.created_at)
            if wanted > len(history):
                return None
            record = history[wanted - 1].record
            side = next(side for side in record.sides if side.account_id == account_id)
            return _balance(account, side.version, side.balance, side.held, side.available, record.created_at)

        return await self.read(look)

    async def transaction(self, transaction_id: str) -> Record | None:
        def look() -> Record | None:
            record = self._store.records.get(transaction_id)
            if record is None:
                return None
            ledger = self._store.ledger
            returned = ledger.reversed_amount(transaction_id) if record.kind in REVERSIBLE else None
            status = ledger.present_status(transaction_id)
            return msgspec.structs.replace(record, status=status, reversed_amount=returned)

        return await self.read(look)

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        def look() -> list[AttemptState]:
            found = []
            ledger = self._store.ledger
            for attempt_id in self._store.attempts.get(transaction_id, []):
                attempt = ledger.attempts[attempt_id]
                token = ledger.tokens.get(attempt.command.token_id)
                if token_ids_of.sees_all or (token is not None and token.user_id == token_ids_of.user_id):
                    found.append(AttemptState(attempt_id, attempt.refusal.code, time_text(now_us())))
            return found

        return await self.read(look)


def _balance(account: AccountState, version: int, balance: int, held: int, available: int, as_of: str) -> BalanceState:
    return BalanceState(
        account_id=account.account_id,
        user_id=account.user_id,
        currency=account.currency,
        scale=account.scale,
        balance=balance,
        held=held,
        available=available,
        version=version,
        as_of=as_of,
    )
