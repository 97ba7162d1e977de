"""Books and a directory of accounts in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import msgspec
import trio

from ledgerd.engine.commands import AccountFacts, AccountRef, ActorInfo, Principal, Record, Side
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.states import (
    AccountState,
    AdvanceState,
    AttemptState,
    BalanceState,
    LedgerFacts,
    Listing,
    MonitorState,
    Place,
    ReportItem,
    ReportPlace,
    ReportScope,
    ReportStretch,
    TokenState,
    UserState,
)
from ledgerd.gateway.authentication import new_secret, secret_hash
from ledgerd_protocol.errors import ErrorCode, LedgerError

NOW = "2026-11-20T12:00:00.000000Z"
SCALE = 2


def account(
    account_id: int, user_id: int, *, currency: str = "USD", version: int = 0, balance: int = 0
) -> AccountState:
    return AccountState(
        account_id=account_id,
        user_id=user_id,
        currency=currency,
        scale=SCALE,
        balance=balance,
        held=0,
        available=balance,
        overdraft_limit=0,
        version=version,
        status="open",
        created_at=NOW,
        updated_at=NOW,
    )


def record(transaction_id: str, sides: Sequence[Side], **changes: Any) -> Record:
    made = Record(
        transaction_id=transaction_id,
        kind="transfer",
        status="posted",
        amount=100,
        currency="USD",
        scale=SCALE,
        debit_account=next((side.account_id for side in sides if side.direction == "debit"), None),
        credit_account=next((side.account_id for side in sides if side.direction == "credit"), None),
        sides=tuple(sides),
        reference=None,
        reason=None,
        metadata=None,
        created_at=NOW,
        actor=ActorInfo(token_id=1, user_id=None, scopes=("service",)),
    )
    return msgspec.structs.replace(made, **changes)


def side(account_id: int, user_id: int, direction: str = "debit", version: int = 1) -> Side:
    return Side(
        account_id=account_id,
        user_id=user_id,
        direction=direction,
        version=version,
        balance=0,
        held=0,
        available=0,
        balance_change=-100 if direction == "debit" else 100,
        held_change=0,
    )


class FakeBooks:
    """Users 1 and 2 with account 11 and 12, user 1 also with 13 in EUR; a password for user 1."""

    def __init__(self) -> None:
        self.users = {
            number: UserState(number, f"user {number}", f"u{number}@example.org", "active", NOW) for number in (1, 2)
        }
        self.states = {11: account(11, 1), 12: account(12, 2), 13: account(13, 1, currency="EUR")}
        self.by_hash: dict[bytes, TokenState] = {}
        self.records: dict[str, Record] = {}
        self.listed: list[Record] = []
        self.edge: int | None = None
        self.reported: list[ReportItem] = []
        self.report_edges: list[str | None] = []
        self.asked: list[tuple[ReportScope, dict[str, Any]]] = []
        self.snapshot = b"snapshot"
        self.epoch = "e1"
        self.attempted: list[AttemptState] = []
        self.passwords: dict[str, str | None] = {}
        self.watched: dict[int, MonitorState] = {}
        self.advanced: dict[str, AdvanceState] = {}
        self.tries: Counter[str] = Counter()
        self.away = False
        self.reads = 0
        self.gate: trio.Event | None = None
        self._numbers = count(100)

    async def ask(self) -> None:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StorageUnavailable("the database is away")

    def token(
        self,
        *scopes: str,
        user_id: int | None = None,
        account_id: int | None = None,
        expires_at_s: float | None = None,
    ) -> str:
        """A token's secret."""
        secret = new_secret()
        self._add_token(secret_hash(secret), user_id, account_id, scopes, expires_at_s)
        return secret

    def _add_token(
        self,
        token_hash: bytes,
        user_id: int | None,
        account_id: int | None,
        scopes: Sequence[str],
        expires_at_s: float | None,
        label: str | None = None,
    ) -> TokenState:
        state = TokenState(
            token_id=next(self._numbers),
            user_id=user_id,
            account_id=account_id,
            scopes=tuple(scopes),
            label=label,
            created_at=NOW,
            expires_at=None if expires_at_s is None else NOW,
            expires_at_s=expires_at_s,
            revoked_at=None,
        )
        self.by_hash[token_hash] = state
        return state

    def revoke(self, secret: str) -> None:
        """Revoke behind the daemon's back, as another daemon would."""
        token_hash = secret_hash(secret)
        self.by_hash[token_hash] = msgspec.structs.replace(self.by_hash[token_hash], revoked_at=NOW)

    # -- what the gateway asks ----------------------------------------------------------------------------------------

    def facts(self) -> LedgerFacts:
        if self.away:
            raise StorageUnavailable("the database is away")
        return LedgerFacts(epoch=self.epoch, deployment=1, currencies={"USD": 2}, cursor_key=b"k" * 32)

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        await self.ask()
        return self.by_hash.get(token_hash)

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        await self.ask()
        good = {state.token_id for state in self.by_hash.values() if state.revoked_at is None}
        return [token_id for token_id in token_ids if token_id not in good]

    async def take_password_try(self, email: str | None, address: str | None, per_min: int) -> int:
        await self.ask()
        keys = [key for key in (email and email.lower(), address) if key is not None]
        if any(self.tries[key] >= per_min for key in keys):
            return 60_000 // per_min
        self.tries.update(keys)
        return 0

    async def return_password_try(self, email: str | None, address: str | None, per_min: int) -> None:
        await self.ask()
        self.tries.subtract(key for key in (email and email.lower(), address) if key is not None)

    async def login_material(self, email: str) -> tuple[UserState, str | None] | None:
        await self.ask()
        for user in self.users.values():
            if user.email == email.lower():
                return user, self.passwords.get(email.lower())
        return None

    async def open_session(self, *, user_id: int, password_hash: str, **given: Any) -> TokenState | None:
        await self.ask()
        if self.passwords[self.users[user_id].email or ""] != password_hash:
            return None
        return self._add_token(given["token_hash"], user_id, None, given["scopes"], given["expires_at_s"], "session")

    async def change_password(self, *, user_id: int, old_hash: str, new_hash: str, kept_token_id: int) -> int | None:
        await self.ask()
        email = self.users[user_id].email or ""
        if self.passwords[email] != old_hash:
            return None
        self.passwords[email] = new_hash
        others = [
            state.token_id
            for state in self.by_hash.values()
            if state.user_id == user_id and state.token_id != kept_token_id
        ]
        return sum([await self.revoke_tokens(token_id=token_id) for token_id in others])

    async def register_user(self, **given: Any) -> tuple[UserState, AccountState, TokenState]:
        await self.ask()
        if given["email"] is not None and given["email"] in {user.email for user in self.users.values()}:
            raise LedgerError(ErrorCode.ALREADY_EXISTS, resource="email")
        number = next(self._numbers)
        user = UserState(number, given["name"], given["email"], "active", NOW)
        opened = account(next(self._numbers), number, currency=given["currency"])
        self.users[number] = user
        self.states[opened.account_id] = opened
        self.passwords[given["email"]] = given["password_hash"]
        token = self._add_token(given["token_hash"], number, None, given["scopes"], given["expires_at_s"])
        return user, opened, token

    async def user(self, user_id: int) -> UserState | None:
        await self.ask()
        return self.users.get(user_id)

    async def users_after(self, after_user_id: int, limit: int) -> list[UserState]:
        await self.ask()
        return [user for number, user in sorted(self.users.items()) if number > after_user_id][:limit]

    async def update_user(self, user_id: int, *, name: str | None, email: str | None) -> UserState | None:
        await self.ask()
        if user_id not in self.users:
            return None
        if email is not None and any(user.email == email for key, user in self.users.items() if key != user_id):
            raise LedgerError(ErrorCode.ALREADY_EXISTS, resource="user")
        user = self.users[user_id]
        changed = msgspec.structs.replace(user, name=name or user.name, email=email or user.email)
        self.users[user_id] = changed
        return changed

    async def set_user_status(self, user_id: int, status: str) -> UserState | None:
        await self.ask()
        if user_id in self.users:
            self.users[user_id] = msgspec.structs.replace(self.users[user_id], status=status)
        return self.users.get(user_id)

    async def create_token(self, **given: Any) -> TokenState:
        await self.ask()
        return self._add_token(
            given["token_hash"],
            given["user_id"],
            given["account_id"],
            given["scopes"],
            given["expires_at_s"],
            given["label"],
        )

    async def tokens(self, user_id: int | None, after_token_id: int, limit: int) -> list[TokenState]:
        await self.ask()
        states = sorted(self.by_hash.values(), key=lambda state: state.token_id)
        return [state for state in states if state.token_id > after_token_id and user_id in (None, state.user_id)][
            :limit
        ]

    async def revoke_tokens(self, *, token_id: int | None = None, user_id: int | None = None) -> int:
        await self.ask()
        revoked = 0
        for token_hash, state in self.by_hash.items():
            if (state.token_id == token_id or (user_id is not None and state.user_id == user_id)) and (
                state.revoked_at is None
            ):
                self.by_hash[token_hash] = msgspec.structs.replace(state, revoked_at=NOW)
                revoked += 1
        return revoked

    async def token_state(self, token_id: int) -> TokenState | None:
        await self.ask()
        return next((state for state in self.by_hash.values() if state.token_id == token_id), None)

    async def set_monitor(self, *, account_id: int, per_account_max: int, **given: Any) -> MonitorState:
        await self.ask()
        mine = [state for state in self.watched.values() if state.account_id == account_id and not state.removed]
        for state in mine:
            if (state.direction, state.amount) == (given["direction"], given["amount"]):
                raise LedgerError(ErrorCode.ALREADY_EXISTS, resource="monitor", monitor_id=state.monitor_id)
        if len(mine) >= per_account_max:
            raise LedgerError(ErrorCode.LIMIT_EXCEEDED, resource="monitor")
        account, number = self.states[account_id], next(self._numbers)
        (setter,) = (state.user_id for state in self.by_hash.values() if state.token_id == given["token_id"])
        self.watched[number] = MonitorState(
            monitor_id=number,
            account_id=account_id,
            user_id=account.user_id,
            currency=account.currency,
            scale=account.scale,
            direction=given["direction"],
            amount=given["amount"],
            after_version=account.version,
            label=given["label"],
            set_by=setter,
            created_at=NOW,
            removed=False,
            revision=number,
        )
        return self.watched[number]

    async def monitor(self, monitor_id: int) -> MonitorState | None:
        await self.ask()
        return self.watched.get(monitor_id)

    async def monitors(
        self, user_id: int | None, account_id: int | None, after_monitor_id: int, limit: int
    ) -> list[MonitorState]:
        await self.ask()
        return [
            state
            for number, state in sorted(self.watched.items())
            if number > after_monitor_id
            and user_id in (None, state.user_id)
            and account_id in (None, state.account_id)
            and not state.removed
        ][:limit]

    async def remove_monitor(self, monitor_id: int) -> MonitorState | None:
        await self.ask()
        if self.watched[monitor_id].removed:
            return None
        self.watched[monitor_id] = msgspec.structs.replace(self.watched[monitor_id], removed=True)
        return self.watched[monitor_id]

    async def advance(self, advance_id: str, **given: Any) -> AdvanceState | None:
        await self.ask()
        return self.advanced.get(advance_id)

    async def advances(self, account_id: int, **given: Any) -> list[AdvanceState]:
        await self.ask()
        return [state for state in self.advanced.values() if state.account_id == account_id]

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        await self.ask()
        opened = account(next(self._numbers), user_id, currency=currency)
        self.states[opened.account_id] = opened
        return opened

    async def here(self) -> Place:
        await self.ask()
        return Place("here", "here")

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        await self.ask()
        return [self.states[number] for number in sorted(account_ids) if number in self.states]

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        await self.ask()
        return [
            state
            for number, state in sorted(self.states.items())
            if number > after_account_id and user_id in (None, state.user_id)
        ][:limit]

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        await self.ask()
        state = self.states[account_id]
        listed = (side.version for row in self.listed for side in row.sides if side.account_id == account_id)
        if version is not None and version > max(state.version, *listed, 0):
            return None
        return BalanceState(account_id, state.user_id, "USD", SCALE, 5, 0, 5, version or 0, at or NOW)

    async def transaction(self, transaction_id: str) -> Record | None:
        await self.ask()
        return self.records.get(transaction_id)

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        await self.ask()
        return self.attempted

    async def transactions(self, account_id: int, **given: Any) -> Listing:
        await self.ask()
        after = given["after_version"]
        rows = sorted(self.listed, key=lambda row: row.sides[0].version, reverse=given["newest_first"])
        if after is not None:
            newest_first = given["newest_first"]
            rows = [
                row for row in rows if (row.sides[0].version < after) == newest_first and row.sides[0].version != after
            ]
        return Listing(rows[: given["limit"]], self.edge)

    async def report(
        self, scope: ReportScope, *, after: ReportPlace | None, limit: int, count: bool, **given: Any
    ) -> ReportStretch:
        """What is in `reported`, whoever asks and whatever for: that is the database's."""
        await self.ask()
        self.asked.append((scope, {**given, "after": after, "count": count}))
        items = self.reported
        if after is not None and after.item_id is not None:
            ids = [getattr(item, "attempt_id", item.transaction_id) for item in items]
            items = items[ids.index(after.item_id) + 1 :]
        edge = self.report_edges.pop() if self.report_edges else None
        return ReportStretch(items[:limit], self.snapshot, edge, len(self.reported) if count else None)


class FakeDirectory:
    """Knows what the books know, but remembers only what it was asked for or taught."""

    def __init__(self, books: FakeBooks) -> None:
        self._books = books
        self.remembered: dict[tuple[int | None, int | None, str], AccountFacts] = {}
        self.gate: trio.Event | None = None

    def known(self, ref: AccountRef, currency: str) -> AccountFacts | None:
        return self.remembered.get((ref.account_id, ref.user_id, "" if ref.account_id else currency))

    def learn(self) -> None:
        """Remember every account."""
        for state in self._books.states.values():
            for ref in (AccountRef(account_id=state.account_id), AccountRef(user_id=state.user_id)):
                self._remember(ref, state)

    def _remember(self, ref: AccountRef, state: AccountState) -> AccountFacts:
        facts = AccountFacts(state.account_id, state.user_id, state.currency, state.scale)
        self.remembered[ref.account_id, ref.user_id, "" if ref.account_id else state.currency] = facts
        return facts

    async def find(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        await self._books.ask()
        if self.gate is not None:
            await self.gate.wait()
        found: list[AccountFacts | None] = []
        for ref, currency in refs:
            state = next(
                (
                    state
                    for state in self._books.states.values()
                    if state.account_id == ref.account_id
                    or (state.user_id == ref.user_id and state.currency == currency)
                ),
                None,
            )
            found.append(None if state is None else self._remember(ref, state))
        return found
