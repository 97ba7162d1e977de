"""What the gateway and the hub ask of the database: one method per question, each one crossing.

Lives as long as the daemon. Between two generations every method raises StorageUnavailable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

import asyncpg
import structlog
import trio

from ledgerd.engine.commands import AccountFacts, AccountRef, Principal, Record
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.engine.states import (
    AccountState,
    AdvanceEvent,
    AdvanceHead,
    AdvanceState,
    AdvanceStretch,
    AttemptState,
    Audited,
    BalanceState,
    Collected,
    DueHold,
    LedgerFacts,
    Listing,
    MonitorState,
    Place,
    ReportPlace,
    ReportScope,
    ReportStretch,
    Stretch,
    TokenState,
    UserState,
)
from ledgerd.storage import commit_order, reports, rows
from ledgerd.storage.connection import Crossing
from ledgerd.storage.failures import CURRENCY_SCALE, FIRST_CREDIT_REFUSED, WALLET_UNIT, Failure, classify
from ledgerd.storage.identity import Memory
from ledgerd.storage.leftovers import Leftovers
from ledgerd.storage.queries import AUDIT, QUERIES
from ledgerd.times import time_text
from ledgerd_protocol.errors import ERROR_CODES, ErrorCode, LedgerError

T = TypeVar("T")

LOOK_FILTERED = 50_000
"""Versions of an account that one page of a filtered list looks at."""

_SCALE_HINT = (
    "The daemons on this database are configured differently: give `currencies` the same decimals in all of them."
)

_UNIT_HINT = "Give wallet_unit_decimals the value it had when the first wallet user was created; it cannot change."

log = structlog.get_logger(__name__)


class Readers:
    """A few connections of one generation for everything but money. Whoever asks waits for a free one."""

    def __init__(self, crossing: Crossing, connections: Sequence[asyncpg.Connection]) -> None:
        self._crossing = crossing
        self._free = list(connections)
        self._limiter = trio.CapacityLimiter(len(connections))

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run one unit of work on a free connection."""
        async with self._limiter:
            connection = self._free.pop()
            try:
                return await self._crossing.run(lambda: work(connection), connection)
            finally:
                self._free.append(connection)


class PostgresBooks:
    """See `ledgerd.engine.ports.Books` for what each method answers and raises."""

    def __init__(self) -> None:
        self._readers: Readers | None = None
        self._facts: LedgerFacts | None = None
        self.memory = Memory()
        self.leftovers = Leftovers()
        """What the daemon saw of its data, from one generation to the next."""
        self._wallet_unit = ""
        self._wallet_unit_is_ours = False

    @property
    def connected(self) -> bool:
        """Whether a generation is running."""
        return self._readers is not None

    def attach(self, readers: Readers, facts: LedgerFacts, wallet_unit: str) -> None:
        """A generation begins. ``wallet_unit`` is how this daemon's betting wallet counts."""
        self._readers = readers
        self._facts = facts
        self._wallet_unit = wallet_unit
        self._wallet_unit_is_ours = False

    def detach(self) -> None:
        """The generation is over; its facts stay known."""
        self._readers = None

    def facts(self) -> LedgerFacts:
        """Epoch and currencies, as read when the daemon connected, and the currencies met since."""
        if self._facts is None:
            raise StorageUnavailable("the database has not been reached yet")
        return self._facts

    def _learn(self, currency: str, scale: int) -> None:
        """A currency of an account, perhaps the first in it. Its scale never changes."""
        if self._facts is not None:
            self._facts.currencies[currency] = scale

    async def _run(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        if self._readers is None:
            raise StorageUnavailable("the database is not reachable")
        try:
            return await self._readers.run(work)
        except asyncpg.UniqueViolationError:
            raise  # for whoever knows what there must not be two of
        except asyncpg.PostgresError as error:
            if classify(error) is Failure.RERUN:
                raise StorageUnavailable("others were at work on the same rows for too long") from error
            if error.sqlstate == CURRENCY_SCALE:
                log.exception("currency_scale_differs", hint=_SCALE_HINT)
                raise StorageUnavailable("another daemon gave this currency other decimals") from error
            raise

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._run(lambda connection: connection.fetch(QUERIES[query], *arguments))

    async def _row(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        return await self._run(lambda connection: connection.fetchrow(QUERIES[query], *arguments))

    async def ping(self) -> None:
        """One round trip, that sees whether this is still the data it was. Raises StorageUnavailable if not."""
        self.memory.notice(await self._row("alive"))

    # -- directory and feed ---------------------------------------------------------------------------------------

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        found: list[AccountFacts | None] = [None] * len(refs)
        for row in await self._fetch(
            "find_accounts",
            [ref.account_id for ref, _ in refs],
            [ref.user_id for ref, _ in refs],
            [currency for _, currency in refs],
            [ref.wallet for ref, _ in refs],
            [ref.payer_of for ref, _ in refs],
            [ref.receiver_of for ref, _ in refs],
        ):
            found[row["n"] - 1] = AccountFacts(row["account_id"], row["user_id"], row["currency"], row["scale"])
            self._learn(row["currency"], row["scale"])
        if any(ref.wallet is not None for ref, _ in refs) and not await self._counts_in_wallet_unit():
            found = [None if ref.wallet is not None else facts for (ref, _), facts in zip(refs, found, strict=True)]
        return found

    async def _counts_in_wallet_unit(self) -> bool:
        """Whether this daemon counts in the database's wallet unit; asked once it is fixed, and then remembered.

        Asked after a wallet was found: whoever made the first wallet has fixed the unit before.
        """
        if not self._wallet_unit_is_ours:
            row = await self._row("wallet_unit")
            if row is None or row["wallet_unit"] != self._wallet_unit:
                if row is not None and row["wallet_unit"] is not None:
                    log.error(
                        "wallet_unit_differs", database=row["wallet_unit"], ours=self._wallet_unit, hint=_UNIT_HINT
                    )
                return False
            self._wallet_unit_is_ours = True
        return True

    async def create_wallet_users(
        self, names: Sequence[str], *, token_id: int, currency: str, scale: int, amount: int
    ) -> int:
        try:
            row = await self._row(
                "create_wallet_users", token_id, list(names), self._wallet_unit, currency, scale, amount
            )
        except asyncpg.PostgresError as error:
            if error.sqlstate == WALLET_UNIT:
                log.exception("wallet_unit_differs", ours=self._wallet_unit, hint=_UNIT_HINT)
                raise StorageUnavailable("another daemon counts in another wallet unit") from error
            if error.sqlstate == FIRST_CREDIT_REFUSED:
                raise LedgerError(ERROR_CODES[int(error.detail or 0)]) from error
            raise
        assert row is not None
        return int(row["created"])

    async def expired_holds(self, limit: int) -> list[DueHold]:
        return [DueHold(str(row["hold_id"]), row["account_id"]) for row in await self._fetch("expired_holds", limit)]

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        return list(map(rows.account_state, await self._fetch("account_states", list(account_ids))))

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        return list(map(rows.record, await self._fetch("history", account_id, after_version, limit)))

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        return {row["account_id"]: row["version"] for row in await self._fetch("heads", list(account_ids))}

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        found = await self._fetch("unknown_accounts", list(user_ids), list(known), limit)
        return list(map(rows.account_state, found))

    async def here(self) -> Place:
        row = await self._row("snapshot")
        assert row is not None
        return commit_order.parse(row["now"]).place

    async def place(self, position: str) -> Place | None:
        snapshot = commit_order.low_water(position)
        row = await self._row("snapshot")
        assert row is not None
        if snapshot is None or snapshot.next > commit_order.parse(row["now"]).next:
            return None
        return snapshot.place

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        async def work(connection: asyncpg.Connection) -> Stretch:
            found = await connection.fetch(QUERIES["committed_since"], place.exact, limit)
            now = commit_order.parse(found[0]["now"])
            if found[0]["xact"] is None:
                return Stretch([], now.place, more=False)
            records = list(map(rows.record, found))
            if len(found) < limit:
                return Stretch(commit_order.in_order(records), now.place, more=False)
            # A transaction that had its id before it waited for a lock comes after one with a higher id, which may
            # be beyond this page: then that one is delivered first, and again with its own page.
            last = found[-1]["xact_text"]
            ids = [row["transaction_id"] for row in found]
            earlier = await connection.fetch(QUERIES["committed_before"], ids, last, str(now.next))
            end = commit_order.page_end(commit_order.parse(place.exact), now, int(last))
            return Stretch(commit_order.in_order([*records, *map(rows.record, earlier)]), end.place, more=True)

        return await self._run(work)

    async def monitors_since(self, revision: int, limit: int, *, removed: bool) -> list[MonitorState]:
        return list(map(rows.monitor_state, await self._fetch("monitors_since", revision, limit, removed)))

    # -- users and tokens -----------------------------------------------------------------------------------------

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
            token_id = await connection.fetchval(QUERIES["token_id_by_hash"], token_hash)
            return None if token_id is None else await connection.fetchrow(QUERIES["token"], token_id)

        row = await self._run(work)
        return None if row is None else rows.token_state(row)

    async def take_password_try(self, email: str | None, address: str | None, per_min: int) -> int:
        row = await self._row("take_password_try", email, address, per_min)
        assert row is not None
        return int(row["wait_ms"])

    async def return_password_try(self, email: str | None, address: str | None, per_min: int) -> None:
        await self._row("return_password_try", email, address, per_min)

    async def login_material(self, email: str) -> tuple[UserState, str | None] | None:
        row = await self._row("login_material", email)
        if row is None or row["user_id"] is None:
            return None
        return rows.user_state(row), row["password_hash"]

    async def open_session(
        self, *, token_hash: bytes, user_id: int, password_hash: str, scopes: Sequence[str], expires_at_s: float | None
    ) -> TokenState | None:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
            arguments = (token_hash, user_id, password_hash, list(scopes), _time(expires_at_s))
            token_id = await connection.fetchval(QUERIES["open_session"], *arguments)
            return None if token_id is None else await connection.fetchrow(QUERIES["token"], token_id)

        row = await self._run(work)
        return None if row is None else rows.token_state(row)

    async def change_password(self, *, user_id: int, old_hash: str, new_hash: str, kept_token_id: int) -> int | None:
        row = await self._row("change_password", user_id, old_hash, new_hash, kept_token_id)
        assert row is not None
        revoked: int | None = row["revoked"]
        return revoked

    async def register_user(
        self,
        *,
        name: str,
        email: str | None,
        password_hash: str | None,
        currency: str,
        scale: int,
        token_hash: bytes,
        scopes: Sequence[str],
        expires_at_s: float | None,
    ) -> tuple[UserState, AccountState, TokenState]:
        async def work(connection: asyncpg.Connection) -> tuple[UserState, AccountState, TokenState]:
            made = await connection.fetchrow(
                QUERIES["register_user"],
                name,
                email,
                password_hash,
                currency,
                scale,
                token_hash,
                list(scopes),
                _time(expires_at_s),
            )
            user = await connection.fetchrow(QUERIES["user"], made["user_id"])
            account = await connection.fetchrow(QUERIES["account_states"], [made["account_id"]])
            token = await connection.fetchrow(QUERIES["token"], made["token_id"])
            self._learn(currency, scale)
            return rows.user_state(user), rows.account_state(account), rows.token_state(token)

        try:
            return await self._run(work)
        except asyncpg.UniqueViolationError as error:
            raise _taken_email() from error

    async def user(self, user_id: int) -> UserState | None:
        row = await self._row("user", user_id)
        return None if row is None else rows.user_state(row)

    async def users(self, after_user_id: int, limit: int) -> list[UserState]:
        return list(map(rows.user_state, await self._fetch("users", after_user_id, limit)))

    async def update_user(self, user_id: int, *, name: str | None, email: str | None) -> UserState | None:
        try:
            await self._row("update_user", user_id, name, email)
        except asyncpg.UniqueViolationError as error:
            raise _taken_email() from error
        return await self.user(user_id)

    async def set_user_status(self, user_id: int, status: str) -> UserState | None:
        await self._row("set_user_status", user_id, status)
        return await self.user(user_id)

    async def create_token(
        self,
        *,
        token_hash: bytes,
        user_id: int | None,
        account_id: int | None,
        scopes: Sequence[str],
        expires_at_s: float | None,
        label: str | None,
    ) -> TokenState:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record:
            token_id = await connection.fetchval(
                QUERIES["create_token"], token_hash, user_id, account_id, list(scopes), _time(expires_at_s), label
            )
            return await connection.fetchrow(QUERIES["token"], token_id)

        try:
            return rows.token_state(await self._run(work))
        except asyncpg.ForeignKeyViolationError as error:
            raise LedgerError(ErrorCode.NOT_FOUND, resource="user or account") from error

    async def tokens(self, user_id: int | None, after_token_id: int, limit: int) -> list[TokenState]:
        return list(map(rows.token_state, await self._fetch("tokens", user_id, after_token_id, limit)))

    async def token(self, token_id: int) -> TokenState | None:
        row = await self._row("token", token_id)
        return None if row is None else rows.token_state(row)

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        return [row["token_id"] for row in await self._fetch("revoked_tokens", list(token_ids))]

    async def revoke_tokens(self, *, token_id: int | None = None, user_id: int | None = None) -> int:
        row = await self._row("revoke_tokens", token_id, user_id)
        assert row is not None
        return int(row["revoked"])

    # -- accounts and transactions --------------------------------------------------------------------------------

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record:
            account_id = await connection.fetchval(QUERIES["open_account"], user_id, currency, scale)
            return await connection.fetchrow(QUERIES["account_states"], [account_id])

        try:
            account = rows.account_state(await self._run(work))
        except asyncpg.UniqueViolationError as error:
            raise LedgerError(
                ErrorCode.ALREADY_EXISTS, f"The user has an account in {currency} already.", resource="account"
            ) from error
        except asyncpg.ForeignKeyViolationError as error:
            raise LedgerError(ErrorCode.NOT_FOUND, resource="user") from error
        self._learn(currency, scale)
        return account

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        return list(map(rows.account_state, await self._fetch("accounts", user_id, after_account_id, limit)))

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        async def work(connection: asyncpg.Connection) -> BalanceState | None:
            row = await connection.fetchrow(QUERIES["account_states"], [account_id])
            if row is None:
                return None
            account = rows.account_state(row)
            wanted = version
            if at is not None:
                moment = datetime.fromisoformat(at)
                if moment < row["created_at"]:
                    return None
                wanted = await connection.fetchval(QUERIES["version_at"], account_id, moment)
            if not wanted:
                return _balance(account, 0, 0, 0, 0, account.created_at)
            found = await connection.fetch(QUERIES["history"], account_id, wanted - 1, 1)
            if not found:
                return None
            record = rows.record(found[0])
            side = next(side for side in record.sides if side.account_id == account_id)
            return _balance(account, side.version, side.balance, side.held, side.available, record.created_at)

        return await self._run(work)

    async def transaction(self, transaction_id: str) -> Record | None:
        row = await self._row("present_record", transaction_id)
        return None if row is None else rows.present_record(row)

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        return [
            AttemptState(str(row["attempt_id"]), ERROR_CODES[row["code"]], time_text(row["created_at"]))
            for row in await self._fetch("attempts", transaction_id, token_ids_of.sees_all, token_ids_of.user_id)
        ]

    async def transactions(
        self,
        account_id: int,
        *,
        newest_first: bool,
        after_version: int | None,
        limit: int,
        kind: str | None,
        status: str | None,
        reference: str | None,
        created_from: str | None,
        created_before: str | None,
    ) -> Listing:
        filtered = kind is not None or status is not None or reference is not None
        found = await self._fetch(
            "transactions_newest_first" if newest_first else "transactions_oldest_first",
            account_id,
            after_version,
            limit,
            kind,
            status,
            reference,
            _moment(created_from),
            _moment(created_before),
            LOOK_FILTERED if filtered else limit,
        )
        records = [rows.present_record(row) for row in found if row["position"] is not None]
        return Listing(records, found[0]["edge"])

    async def report(
        self,
        scope: ReportScope,
        *,
        created_from: str,
        created_before: str | None,
        after: ReportPlace | None,
        snapshot: bytes | None,
        status: str | None,
        limit: int,
        count: bool,
    ) -> ReportStretch:
        return await self._run(
            lambda connection: reports.read(
                connection,
                scope,
                created_from=created_from,
                created_before=created_before,
                after=after,
                snapshot=snapshot,
                status=status,
                limit=limit,
                count=count,
            )
        )

    # -- advances -------------------------------------------------------------------------------------------------

    async def collect_due(self, limit: int) -> Collected:
        async def work(connection: asyncpg.Connection) -> Collected:
            row = await connection.fetchrow(QUERIES["collect_due"], limit)
            # Committed by now. If this read is lost, the feed finds them as it finds what other daemons collect.
            found = await connection.fetch(QUERIES["records"], row["collected"]) if row["collected"] else []
            records = {record.transaction_id: record for record in map(rows.record, found)}
            in_order = [records[str(transaction_id)] for transaction_id in row["collected"]]
            return Collected(in_order, row["failed"], [str(number) for number in row["advances"]], row["more"])

        try:
            return await self._run(work)
        except asyncpg.UniqueViolationError as error:
            raise StorageUnavailable("others posted on the same accounts at the same time") from error
        except asyncpg.PostgresError as error:
            raise CallRefused(type(error).__name__) from error

    async def audit_advances(self, first_id: str | None, limit: int) -> Audited:
        async def work(connection: asyncpg.Connection) -> Audited:
            first = UUID(int=0) if first_id is None else UUID(first_id)
            ids = [row["advance_id"] for row in await connection.fetch(AUDIT["next_advances"], first, limit + 1)]
            wrong: dict[str, str] = {}
            if ids:
                # One statement, and so one snapshot: nobody's change is seen by half.
                for row in await connection.fetch(AUDIT["advances"], ids[0], ids[:limit][-1]):
                    advance_id = str(row["advance_id"])
                    before = f"{wrong[advance_id]}; " if advance_id in wrong else ""
                    wrong[advance_id] = before + row["detail"]
            return Audited(wrong, str(ids[limit]) if len(ids) > limit else None)

        return await self._run(work)

    async def advance_heads(
        self, account_ids: Sequence[int], advance_ids: Sequence[str], *, everything: bool = False
    ) -> list[AdvanceHead]:
        found = await self._fetch("advance_heads", list(account_ids), list(advance_ids), everything)
        return list(map(rows.advance_head, found))

    async def advance_events(self, advance_id: str, after_event: int, limit: int) -> list[AdvanceEvent]:
        return list(map(rows.advance_event, await self._fetch("advance_events", advance_id, after_event, limit)))

    async def advance_events_since(self, place: Place, limit: int) -> AdvanceStretch:
        found = await self._fetch("advance_events_since", place.exact, limit)
        now = commit_order.parse(found[0]["now"])
        if found[0]["xact"] is None:
            return AdvanceStretch([], now.place, more=False)
        events = list(map(rows.advance_event, found))
        if len(found) < limit:
            return AdvanceStretch(events, now.place, more=False)
        end = commit_order.page_end(commit_order.parse(place.exact), now, int(found[-1]["xact_text"]))
        return AdvanceStretch(events, end.place, more=True)

    async def advance(self, advance_id: str, *, payments_max: int, events_max: int) -> AdvanceState | None:
        row = await self._row("advance_states", [advance_id], payments_max, events_max)
        return None if row is None else rows.advance_state(row)

    async def advances(
        self,
        account_id: int,
        *,
        running: bool | None,
        before: tuple[str, str] | None,
        limit: int,
        payments_max: int,
    ) -> list[AdvanceState]:
        created_at, advance_id = before or (None, None)

        async def work(connection: asyncpg.Connection) -> list[AdvanceState]:
            arguments = (account_id, running, _moment(created_at), advance_id, limit)
            listed = [row["advance_id"] for row in await connection.fetch(QUERIES["advances"], *arguments)]
            found = await connection.fetch(QUERIES["advance_states"], listed, payments_max, 0)
            states = {row["advance_id"]: rows.advance_state(row) for row in found}
            return [states[number] for number in listed]

        return await self._run(work)

    # -- monitors -------------------------------------------------------------------------------------------------

    async def set_monitor(
        self,
        *,
        account_id: int,
        direction: Literal["below", "above"],
        amount: int,
        label: str | None,
        token_id: int,
        per_account_max: int,
    ) -> MonitorState:
        async def work(connection: asyncpg.Connection) -> tuple[str, asyncpg.Record | None]:
            arguments = (account_id, direction, amount, label, token_id, per_account_max)
            made = await connection.fetchrow(QUERIES["set_monitor"], *arguments)
            return made["outcome"], await connection.fetchrow(QUERIES["monitor"], made["monitor_id"])

        outcome, row = await self._run(work)
        if outcome == "absent":
            raise LedgerError(ErrorCode.NOT_FOUND, resource="account")
        if outcome == "full":
            detail = f"An account may have {per_account_max} monitors."
            raise LedgerError(ErrorCode.LIMIT_EXCEEDED, detail, resource="monitor")
        state = rows.monitor_state(row)
        if outcome == "exists":
            detail = "The account has this monitor already."
            raise LedgerError(ErrorCode.ALREADY_EXISTS, detail, resource="monitor", monitor_id=state.monitor_id)
        return state

    async def monitor(self, monitor_id: int) -> MonitorState | None:
        row = await self._row("monitor", monitor_id)
        return None if row is None else rows.monitor_state(row)

    async def monitors(
        self, user_id: int | None, account_id: int | None, after_monitor_id: int, limit: int
    ) -> list[MonitorState]:
        found = await self._fetch("monitors", user_id, account_id, after_monitor_id, limit)
        return list(map(rows.monitor_state, found))

    async def remove_monitor(self, monitor_id: int) -> MonitorState | None:
        async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
            removed = await connection.fetchval(QUERIES["remove_monitor"], monitor_id)
            return await connection.fetchrow(QUERIES["monitor"], monitor_id) if removed else None

        row = await self._run(work)
        return None if row is None else rows.monitor_state(row)


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


def _taken_email() -> LedgerError:
    return LedgerError(ErrorCode.ALREADY_EXISTS, "A user with this e-mail exists already.", resource="user")


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
