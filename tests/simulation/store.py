"""The database of a simulated world: the pure model behind connections that wait, fail and die like real ones.

Theory of operation. Every call of a lane runs in a *backend*: a task of the database, not of the daemon, so that a
daemon that crashes or loses its connection leaves behind what a real one does: a call that goes on, holds its locks and
commits. A backend takes the lock of every account, in order, waiting for whoever has it, whatever daemon that serves;
then it reads the clock; then it works for a while; then it commits, which is one step: the model judges and applies the
call, and what it posted is visible to readers from there on. Under the locks nothing that the judgement looks at can
change in between, so that judging at the commit is the same as judging at the lock. (Two calls with one id on different
accounts are the exception. In PostgreSQL the second violates a unique key and is run again; here it finds the first.)

`commits` is the order of commits, which is what the checkers know the truth by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import trio
from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.commands import Command, Outcome, Posted, Record, Unit
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.engine.states import AccountState, TokenState
from tests.model import HOLD_ENDS, Account, Ledger, Refusal, Token
from tests.model import Posted as ModelPosted
from tests.simulation import nouns
from tests.simulation.chance import now_us
from tests.simulation.faults import Fault, Weather
from tests.simulation.trace import Trace

POISON = "poison"
"""A command with this reason makes the database refuse the whole call, as one does with text it cannot store."""


class Commit(Struct, frozen=True):
    """A transaction that was posted: when, and by which daemon."""

    record: Record
    at: float
    daemon: str


class Connection:
    """What one generation of a daemon has of the database. When one call is lost, no other begins."""

    def __init__(self, daemon: str) -> None:
        self.daemon = daemon
        self.closed = False
        self.backends: dict[Backend, None] = {}

    def lose(self) -> None:
        """The daemon's side is gone: nobody hears what becomes of its calls."""
        self.closed = True
        for backend in list(self.backends):
            backend.finish(None, StorageUnavailable("the connection was lost", applied=None))


class Backend:
    """One call as the database sees it."""

    def __init__(self, connection: Connection, units: Sequence[Unit], fault: Fault, *, resent: bool) -> None:
        self.connection = connection
        self.units = units
        self.fault = fault
        self.resent = resent
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.outcomes: list[list[Outcome]] | None = None
        self.failure: Exception | None = None

    def finish(self, outcomes: list[list[Outcome]] | None, failure: Exception | None = None) -> None:
        """The daemon is told, if it still listens. Only the first word counts."""
        if not self.done.is_set():
            self.outcomes, self.failure = outcomes, failure
            self.done.set()


class Store:
    """One database, for all daemons of a world."""

    def __init__(self, config: Config, weather: Weather, trace: Trace, nursery: trio.Nursery) -> None:
        self.config = config
        self.weather = weather
        self.trace = trace
        # The daemon's own token has no secret.
        self.ledger = Ledger([], [Token(0, frozenset({"operator"}))])
        self.commits: list[Commit] = []
        self.records: dict[str, Record] = {}
        self.histories: dict[int, list[Commit]] = {}
        self.attempts: dict[str, list[str]] = {}  # attempt ids by transaction id, in the order of judgement
        self.judged: dict[str, int] = {}  # when in the order of judgements a transaction id was first judged
        self.pending: dict[str, tuple[int, int]] = {}  # account and expiry of each hold
        self.tokens: dict[bytes, TokenState] = {}
        self.opened_us: dict[int, int] = {}
        self.epoch = "e1"
        self.away = False
        self.ahead_us = 0
        """How much its clock is ahead of the simulated time."""
        self.counts: Counter[str] = Counter()
        """Faults by kind, and how often a call had to wait for a lock that another one held."""
        self.on_commit: Callable[[Commit], None] = lambda _: None
        self._rng = weather.rng
        self._nursery = nursery
        self._backends: dict[Backend, int] = {}
        self._locks: dict[int, trio.Lock] = {}

    # -- calls ----------------------------------------------------------------------------------------------------

    async def post(self, connection: Connection, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        """One call of a lane; see `ledgerd.engine.ports.Lane`."""
        fault = self.weather.of_call()
        self.counts[f"call {fault.name.lower()}"] += fault is not Fault.NONE
        if connection.closed or self.away or fault is Fault.BEFORE:
            connection.closed = True
            raise StorageUnavailable("the connection was lost before the call", applied=False)
        backend = Backend(connection, units, fault, resent=resent)
        self._backends[backend] = len(self.commits)
        connection.backends[backend] = None
        self._nursery.start_soon(self._run, backend)
        # Like a real lane's: nothing but time ends it. A call that lost a race is another statement, and its silence
        # begins anew.
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.config.call_timeout_s + self.config.lock_timeout_s):
                await backend.done.wait()
        del connection.backends[backend]
        failure = backend.failure
        if failure is None and backend.outcomes is None:
            failure = StorageUnavailable("no answer in time", applied=None)
        if failure is not None:
            connection.closed = connection.closed or not isinstance(failure, CallRefused)
            raise failure
        assert backend.outcomes is not None
        return backend.outcomes

    async def _run(self, backend: Backend) -> None:
        try:
            with backend.scope:
                await self._execute(backend)
            if backend.scope.cancelled_caught:
                backend.finish(None, StorageUnavailable("the server went away", applied=None))
        finally:
            del self._backends[backend]

    async def _execute(self, backend: Backend) -> None:
        fault, rng = backend.fault, self._rng
        if fault in (Fault.CUT, Fault.LATE):
            backend.finish(None, StorageUnavailable("the connection was lost", applied=None))
        if fault is Fault.LATE:
            await trio.sleep(rng.choice((0.1, 1.0, 6.0)))
        await trio.sleep(rng.choice((0.0, 0.0003, 0.002)))
        if any(command.reason == POISON for unit in backend.units for command in unit.commands):
            backend.finish(None, CallRefused("poison"))
            return
        started = trio.current_time()
        reruns = 1 if fault is Fault.DEADLOCK else 0
        while True:
            locked = self._accounts_of(backend.units)
            with trio.move_on_after(self.config.lock_timeout_s) as patience:
                held = await self._lock(locked)
            if patience.cancelled_caught:
                if trio.current_time() - started > self.config.statement_timeout_s:
                    backend.finish(None, StorageUnavailable("the call lost every race it ran", applied=False))
                    return
                continue
            try:
                clock, locked_at = self.clock_us(), trio.current_time()
                await trio.sleep(2.0 if fault is Fault.SLOW else rng.choice((0.0002, 0.001, 0.01)))
                if reruns:
                    reruns -= 1
                    continue
                if fault is Fault.LOST_BEFORE_COMMIT:
                    backend.finish(None, StorageUnavailable("the connection was lost", applied=None))
                    return
                if fault is Fault.STALLED:
                    await trio.sleep(rng.choice((1.0, 4.0, 7.0)))
                if not locked.issuperset(self._accounts_of(backend.units)):
                    continue  # something it refers to has been posted since: it is on other accounts than was known
                outcomes = self._commit(backend, clock, locked_at)
            finally:
                for lock in held:
                    lock.release()
            break
        if fault is Fault.LOST_AFTER_COMMIT:
            backend.finish(None, StorageUnavailable("the connection was lost", applied=None))
        await trio.sleep(rng.choice((0.0001, 0.001)))
        backend.finish(outcomes)

    async def _lock(self, accounts: set[int]) -> list[trio.Lock]:
        """The locks of all accounts that the call may change, taken in one order by everybody."""
        held: list[trio.Lock] = []
        try:
            for account in sorted(accounts):
                lock = self._locks.setdefault(account, trio.Lock())
                self.counts["waits"] += lock.locked()
                await lock.acquire()
                held.append(lock)
        except trio.Cancelled:
            for lock in held:
                lock.release()
            raise
        return held

    def _accounts_of(self, units: Iterable[Unit]) -> set[int]:
        """The accounts that are named, and those of what is referred to: posted, or earlier in the same call."""
        accounts: set[int] = set()
        of_call: dict[str, set[int]] = {}
        for unit in units:
            for command in unit.commands:
                named = {account for account in (command.debit_account, command.credit_account) if account}
                if command.refers_to is not None:
                    referred = self.ledger.transactions.get(command.refers_to)
                    named |= of_call.get(command.refers_to, set()) if referred is None else referred.accounts
                of_call.setdefault(command.transaction_id, named)
                accounts |= named
        return accounts

    def _commit(self, backend: Backend, clock: int, locked_at: float) -> list[list[Outcome]]:
        """Judge and apply the call: from here on everybody sees it."""
        ttl_s = self.config.command_ttl_s
        for unit in backend.units:
            surely = not backend.resent and not backend.done.is_set()  # of others nobody knows the outcome
            if surely and locked_at > unit.commands[0].arrived_at + ttl_s:
                self.trace.fail(f"{unit.commands[0].transaction_id} was executed {locked_at:.3f} s, too late")
        answers = self._judge(backend, clock)
        outcomes: list[list[Outcome]] = []
        for unit, of_unit in zip(backend.units, answers, strict=True):
            told: list[Outcome] = []
            for index, (command, answer) in enumerate(zip(unit.commands, of_unit, strict=True)):
                if isinstance(answer, ModelPosted):
                    if not answer.replayed:
                        self._note_posted(backend, command, answer)
                    told.append(Posted(self.records[command.transaction_id], replayed=answer.replayed))
                elif isinstance(answer, Refusal):
                    self._note_refused(backend, command, answer)
                    where = index if unit.atomic else None
                    stored = self.records.get(command.transaction_id)
                    told.append(nouns.refused(answer, command, clock, stored, where))
            if unit.atomic and len(told) < len(unit.commands):
                told = told[-1:] * len(unit.commands)  # the one that was refused speaks for all
            outcomes.append(told)
        return outcomes

    def _judge(self, backend: Backend, clock: int) -> list[list[ModelPosted | Refusal | None]]:
        units = [nouns.model_unit(unit) for unit in backend.units]
        return self.ledger.post(units, now=clock, resent=backend.resent)

    def _note_posted(self, backend: Backend, command: Command, answer: ModelPosted) -> None:
        transaction = answer.transaction
        record = nouns.record_of(transaction, self.ledger)
        commit = Commit(record, trio.current_time(), backend.connection.daemon)
        self.records[record.transaction_id] = record
        self.commits.append(commit)
        for side in record.sides:
            self.histories[side.account_id].append(commit)
        self.judged.setdefault(record.transaction_id, len(self.judged))
        if transaction.kind == "hold":
            self.pending[transaction.transaction_id] = (transaction.debit_account or 0, transaction.expires_at)
        elif transaction.kind in HOLD_ENDS:
            self.pending.pop(transaction.refers_to or "", None)
        versions = " ".join(f"{side.account_id}:{side.version}" for side in record.sides)
        self.trace.note(backend.connection.daemon, "committed", record.kind, record.transaction_id, versions)
        self.on_commit(commit)

    def _note_refused(self, backend: Backend, command: Command, answer: Refusal) -> None:
        known = self.attempts.setdefault(command.transaction_id, [])
        if command.attempt_id in known:
            if not backend.resent:
                self.trace.fail(f"attempt {command.attempt_id} at {command.transaction_id} was judged anew")
        else:
            known.append(command.attempt_id)
            self.judged.setdefault(command.transaction_id, len(self.judged))
            self.trace.note(
                backend.connection.daemon, "refused", command.kind, command.transaction_id, answer.code.text
            )

    # -- what daemons do ------------------------------------------------------------------------------------------

    def end_leftovers(self, connection: Connection) -> None:
        """End what is left of a generation, before the next one posts anything; see `ledgerd.storage.leftovers`."""
        for backend in self._backends:
            if backend.connection is connection:
                backend.scope.cancel()

    # -- what the nemesis does ------------------------------------------------------------------------------------

    def go_away(self) -> None:
        """All connections are lost, and what was not committed is rolled back."""
        self.away = True
        for backend in self._backends:
            backend.scope.cancel()

    def revoke(self, token_hash: bytes) -> None:
        """A token is good no more."""
        state = self.tokens[token_hash]
        self.ledger.tokens[state.token_id].ended = True
        self.tokens[token_hash] = msgspec.structs.replace(state, revoked_at=nouns.time_text(now_us()))

    def come_back(self) -> None:
        """Whoever connects anew is served."""
        self.away = False

    @property
    def low_water(self) -> int:
        """How much had been committed before the oldest call that is under way began."""
        return min(self._backends.values(), default=len(self.commits))

    # -- what is there --------------------------------------------------------------------------------------------

    def post_before(self, commands: Sequence[Command], ago_s: float) -> None:
        """Post what was there before the world began, as long ago as said."""
        units = [Unit([command], lambda _: None, deadline=0) for command in commands]
        backend = Backend(Connection("before"), units, Fault.NONE, resent=True)
        outcomes = self._commit(backend, now_us() - round(ago_s * 1_000_000), trio.current_time())
        assert all(isinstance(outcome, Posted) for each in outcomes for outcome in each)

    def add_account(self, account_id: int, user_id: int, currency: str = "USD") -> AccountState:
        """A new account, empty."""
        self.ledger.accounts[account_id] = Account(account_id, user_id, currency)
        self.histories[account_id] = []
        self.opened_us[account_id] = now_us()
        return self.state(account_id)

    def add_token(
        self, token_hash: bytes, user_id: int | None, *scopes: str, token_id: int | None = None
    ) -> TokenState:
        """A new token of a user, or of nobody."""
        token_id = token_id or 100 + len(self.tokens)
        self.ledger.tokens[token_id] = Token(token_id, frozenset(scopes), user_id)
        state = TokenState(
            token_id=token_id,
            user_id=user_id,
            account_id=None,
            scopes=scopes,
            label=None,
            created_at=nouns.time_text(now_us()),
            expires_at=None,
            expires_at_s=None,
            revoked_at=None,
        )
        self.tokens[token_hash] = state
        return state

    def clock_us(self) -> int:
        """The time of transactions and holds."""
        return now_us() + self.ahead_us

    def state(self, account_id: int) -> AccountState:
        """An account as it is now."""
        opened = self.opened_us[account_id]
        history = self.histories[account_id]
        updated = opened
        if history:
            updated = self.ledger.transactions[history[-1].record.transaction_id].created_at
        return nouns.account_state(self.ledger.accounts[account_id], opened, updated)

    def version_at(self, account_id: int, at: float) -> int:
        """The account's newest version that was committed by a trio time."""
        return sum(commit.at <= at for commit in self.histories[account_id])
