"""Where engine and storage meet: the nouns both speak, and the small protocols that `daemon.py` joins.

All amounts in this file are integers in minor units of a currency; all times are RFC 3339 text in UTC with six digits
unless a name says otherwise. What a person reads (decimal text) is made at the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import force_setattr

from ledgerd_protocol.errors import ErrorCode

# -- who ----------------------------------------------------------------------------------------------------------


class ActorInfo(Struct, frozen=True):
    """Who posted a transaction, as stored."""

    token_id: int
    user_id: int | None
    scopes: tuple[str, ...]


class Principal(Struct, frozen=True):
    """Whom a connection acts for: a token, and with it a user, perhaps only one account, and scopes.

    ``expires_at_s`` is Unix time in seconds or None. ``user_id`` is None for service and operator tokens of no user.
    ``sees_all`` says whether objects of other users are visible. It and ``actor`` follow from the rest, and are made
    once because every command asks for them.
    """

    token_id: int
    user_id: int | None
    account_id: int | None
    scopes: frozenset[str]
    expires_at_s: float | None
    sees_all: bool = False
    actor: ActorInfo = ActorInfo(0, None, ())

    def __post_init__(self) -> None:
        sees_all = self.account_id is None and not self.scopes.isdisjoint(("service", "operator"))
        force_setattr(self, "sees_all", sees_all)
        force_setattr(self, "actor", ActorInfo(self.token_id, self.user_id, tuple(sorted(self.scopes))))


# -- commands on their way in -------------------------------------------------------------------------------------


class AccountRef(Struct, frozen=True):
    """How a command names an account: by account_id, or by user_id in the command's currency."""

    account_id: int | None = None
    user_id: int | None = None


class AccountFacts(Struct, frozen=True):
    """What never changes about an account, and may therefore be cached. ``scale`` is the currency's decimals."""

    account_id: int
    user_id: int
    currency: str
    scale: int


ABSENT = 0
"""Stands for an account that a command names and that does not exist; real account ids are positive."""


class Command(Struct):
    """One money command. The second half is filled in by the router from the accounts' facts.

    ``debit`` is where the money leaves and ``credit`` where it arrives, after `direction` is applied; None is the
    world, the outside of the ledger. ``amount`` is the client's decimal text, already matched against the grammar.
    ``currency`` is as stated, None if omitted. ``metadata`` is canonical JSON text. ``arrived_at`` is trio time.
    ``debit_account`` and ``credit_account`` are ids, ABSENT for a named account that does not exist, None for the
    world. For kind `limit`, ``debit`` is the account and ``amount`` the new limit; for `cancel`, ``debit`` is the
    account.
    """

    kind: str
    principal: Principal
    transaction_id: str
    attempt_id: str
    debit: AccountRef | None
    credit: AccountRef | None
    amount: str | None
    currency: str | None
    reference: str | None
    reason: str | None
    metadata: str | None
    arrived_at: float

    debit_account: int | None = None
    credit_account: int | None = None
    debit_facts: AccountFacts | None = None
    credit_facts: AccountFacts | None = None
    amount_minor: int | None = None
    amount_problem: ErrorCode | None = None

    @property
    def acting(self) -> AccountRef:
        """The account whose owner acts: the one the money leaves, or for a credit the one it reaches."""
        ref = self.debit or self.credit
        assert ref is not None
        return ref


class Unit:
    """Commands that travel together: one command, or a batch. Answered exactly once, by calling `answer`.

    ``atomic`` means all or none. ``deadline`` is trio time after which the unit must not be executed any more.
    ``passed_over`` counts how often a free lane took other units first. ``routed`` is the router's mark and ``turn``
    the committer's: units of one turn are sent in order.
    """

    __slots__ = (
        "_answer", "accounts", "answered", "atomic", "batch_id",
        "commands", "deadline", "passed_over", "routed", "turn",
    )  # fmt: skip

    def __init__(
        self,
        commands: list[Command],
        answer: Callable[[list[Outcome]], None],
        *,
        deadline: float,
        atomic: bool = False,
        batch_id: str | None = None,
    ) -> None:
        self.commands = commands
        self.atomic = atomic
        self.batch_id = batch_id
        self.deadline = deadline
        self.accounts: frozenset[int] = frozenset()
        self.passed_over = 0
        self.routed = False
        self.turn: object | None = None
        self.answered = False
        self._answer = answer

    def gather_accounts(self) -> None:
        """Set `accounts` from the commands, once their account ids are filled in."""
        accounts = set()
        for command in self.commands:
            # Neither the world (None) nor an absent account (0) is locked.
            if command.debit_account:
                accounts.add(command.debit_account)
            if command.credit_account:
                accounts.add(command.credit_account)
        self.accounts = frozenset(accounts)

    def answer(self, outcomes: list[Outcome]) -> None:
        """Give the outcomes, in the order of the commands. Only the first call counts: a unit is answered once."""
        if not self.answered:
            self.answered = True
            self._answer(outcomes)

    def refuse(self, code: ErrorCode, *, applied: bool | None = False) -> None:
        """Answer every command with the same refusal, which the database has not recorded."""
        self.answer([Refused(code=code, applied=applied) for _ in self.commands])


# -- outcomes on their way out ------------------------------------------------------------------------------------


class Side(Struct, frozen=True):
    """How a transaction changed one account, and the account after it. ``user_id`` owns the account."""

    account_id: int
    user_id: int
    direction: str
    version: int
    balance: int
    held: int
    available: int
    balance_change: int
    held_change: int


class Record(Struct, frozen=True):
    """A stored transaction. ``sides`` has one element per account that took a version; the world takes none.

    An account id is None where the side is the world.
    """

    transaction_id: str
    kind: str
    status: str
    amount: int
    currency: str
    scale: int
    debit_account: int | None
    credit_account: int | None
    sides: tuple[Side, ...]
    reference: str | None
    reason: str | None
    metadata: str | None
    created_at: str
    actor: ActorInfo


class Posted(Struct, frozen=True):
    """The command is applied; ``replayed`` when it had been before."""

    record: Record
    replayed: bool = False


class Refused(Struct, frozen=True):
    """The command changed nothing (``applied`` False), or nobody knows (None).

    ``data`` holds the further members of error.data, amounts still in minor units under the names in
    `AMOUNT_MEMBERS` with ``scale`` to write them. ``record`` is the transaction a refused cancel ran into, if the
    caller may see it. ``attempt_id`` and ``created_at`` are None when the refusal was not recorded in the database.
    ``index`` is the member of an atomic batch that was refused first.
    """

    code: ErrorCode
    applied: bool | None = False
    data: dict[str, object] | None = None
    scale: int = 0
    attempt_id: str | None = None
    created_at: str | None = None
    record: Record | None = None
    index: int | None = None
    detail: str | None = None


AMOUNT_MEMBERS = frozenset({"available", "requested", "remaining"})

Outcome = Posted | Refused


# -- what the storage offers --------------------------------------------------------------------------------------


class StorageUnavailable(Exception):
    """The database cannot be reached, or the connection was lost while it worked.

    ``applied`` is False when the statement surely did not run, None when its outcome is unknown.
    """

    def __init__(self, message: str, *, applied: bool | None = False) -> None:
        super().__init__(message)
        self.applied = applied


class CallRefused(Exception):
    """The database refused a whole call for a reason that sending it again will not mend. Nothing was applied."""


class AccountState(Struct, frozen=True):
    """An account as it is. ``available`` = balance - held + overdraft_limit."""

    account_id: int
    user_id: int
    currency: str
    scale: int
    balance: int
    held: int
    available: int
    overdraft_limit: int
    version: int
    status: str
    created_at: str
    updated_at: str


class BalanceState(Struct, frozen=True):
    """A balance as it was after ``version``, which was reached at ``as_of``."""

    account_id: int
    user_id: int
    currency: str
    scale: int
    balance: int
    held: int
    available: int
    version: int
    as_of: str


class UserState(Struct, frozen=True):
    """A user as it is."""

    user_id: int
    name: str
    email: str | None
    status: str
    created_at: str


class TokenState(Struct, frozen=True):
    """A token as it is, without its secret."""

    token_id: int
    user_id: int | None
    account_id: int | None
    scopes: tuple[str, ...]
    label: str | None
    created_at: str
    expires_at: str | None
    expires_at_s: float | None
    revoked_at: str | None


class AttemptState(Struct, frozen=True):
    """A refused attempt at a transaction_id."""

    attempt_id: str
    code: ErrorCode
    created_at: str


class LedgerFacts(Struct, frozen=True):
    """What a daemon needs to know about its database before it serves. ``currencies`` maps code to scale.

    ``cursor_key`` is a secret of the database with which the cursors of lists are signed, so that every daemon on it
    takes the others' cursors.
    """

    epoch: str
    deployment: int
    currencies: dict[str, int]
    cursor_key: bytes


class Place(Struct, frozen=True):
    """A point in the order in which transactions were committed.

    ``exact`` is for reading on from it. ``position`` is for clients to keep: short, opaque, and at or before that
    point; it lags while somebody keeps a transaction open. Neither means anything to the engine.
    """

    exact: str
    position: str


class Stretch(Struct, frozen=True):
    """Transactions that were committed after a place, in an order that respects the versions of every account.

    ``end`` is the place after them; ``more`` says that there was more to read when this was read.
    """

    records: list[Record]
    end: Place
    more: bool


class Lane(Protocol):
    """One database connection that posts money commands, one call at a time."""

    async def post(self, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        """Judge and post the units in order, in one transaction; outcomes per unit, per command.

        ``resent`` says that an earlier call with the same commands may have been applied.
        Raises StorageUnavailable (send the same call again), CallRefused (do not).
        """


class Directory(Protocol):
    """Finds accounts."""

    async def find_accounts(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        """Facts of each named account, None where there is none; the text is the currency for refs by user_id.

        Raises StorageUnavailable.
        """


class Feed(Protocol):
    """Reads what subscriptions deliver."""

    async def account_states(self, account_ids: Sequence[int]) -> list[AccountState]:
        """The accounts as they are, in one snapshot, in order of account_id. Raises StorageUnavailable."""

    async def history(self, account_id: int, after_version: int, limit: int) -> list[Record]:
        """Records that gave the account versions above ``after_version``, ascending, without a hole.

        Raises StorageUnavailable.
        """

    async def heads(self, account_ids: Sequence[int]) -> dict[int, int]:
        """The newest version of each account. Raises StorageUnavailable."""

    async def unknown_accounts(self, user_ids: Sequence[int], known: Sequence[int], limit: int) -> list[AccountState]:
        """Accounts of the users, of each at most ``limit``, that are not among ``known``, by account_id.

        Raises StorageUnavailable.
        """

    async def here(self) -> Place:
        """The present place: all that was committed before this call comes before it. Raises StorageUnavailable."""

    async def place(self, position: str) -> Place | None:
        """Where a client stopped; None if that is no position of this data. Raises StorageUnavailable."""

    async def committed_since(self, place: Place, limit: int) -> Stretch:
        """What was committed after a place, by any daemon: about ``limit`` transactions, more where one call made them.

        Waits for nobody: what is not committed yet comes when it is. Only a reading of ``more`` may repeat a few
        transactions of an earlier one. Raises StorageUnavailable.
        """


class Books(Directory, Feed, Protocol):
    """Everything else the gateway asks of the database. Every method raises StorageUnavailable.

    Methods that create raise LedgerError (already_exists, not_found) where the database says so.
    """

    async def token_by_hash(self, token_hash: bytes) -> TokenState | None:
        """The token with this SHA-256, whatever its state."""

    async def login_material(self, email: str) -> tuple[UserState, str | None] | None:
        """The user with this e-mail (case does not matter) and the argon2 hash of the password."""

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
        """Create user, account and token in one transaction. Raises LedgerError already_exists (e-mail)."""

    async def user(self, user_id: int) -> UserState | None:
        """A user."""

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
        """Create a token. Raises LedgerError not_found (user)."""

    async def tokens(self, user_id: int | None, after_token_id: int, limit: int) -> list[TokenState]:
        """Tokens of a user (of everybody when None) with ids above ``after_token_id``, ascending."""

    async def token(self, token_id: int) -> TokenState | None:
        """A token by its number."""

    async def revoked_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Those of the tokens (at most 1,000) that are revoked, or do not exist. Open sessions ask this every few s."""

    async def revoke_tokens(self, *, token_id: int | None = None, user_id: int | None = None) -> int:
        """Revoke one token, or all of a user; how many were not revoked before."""

    async def open_account(self, *, user_id: int, currency: str, scale: int) -> AccountState:
        """Open an account. Raises LedgerError already_exists, not_found (user)."""

    async def accounts(self, user_id: int | None, after_account_id: int, limit: int) -> list[AccountState]:
        """Accounts of a user (of everybody when None) with ids above ``after_account_id``, ascending."""

    async def balance_at(
        self, account_id: int, *, version: int | None = None, at: str | None = None
    ) -> BalanceState | None:
        """The balance after a version or at a time; None if the account is younger or the version is not there yet."""

    async def transaction(self, transaction_id: str) -> Record | None:
        """A stored transaction (tombstones included)."""

    async def attempts(self, transaction_id: str, token_ids_of: Principal) -> list[AttemptState]:
        """Refused attempts at an id that this principal may see: its own user's, or all for operators."""

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
    ) -> list[Record]:
        """Records of an account in version order, beyond ``after_version`` in the direction of travel."""

    def facts(self) -> LedgerFacts:
        """Epoch and currencies, as read when the daemon connected. Raises StorageUnavailable before the first time."""
