"""Bugs that the simulation must catch: each a patch of one place, as a careless change might leave it.

A mutation is a context manager; under it, some of the first seeds must fail. Those that belong to the SQL of the kernel
(a lock that is not taken, a read in the statement of its lock) are not here: the kernel is not in this simulation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import trio

from ledgerd.engine import committer
from ledgerd.engine.commands import Outcome, Posted, Unit
from ledgerd.engine.committer import Call, Committer
from ledgerd.engine.feed import SharedFeed
from ledgerd.engine.hub import Hub
from ledgerd.engine.subscription import AccountsSubscription, BalanceStream, LatestBalances, TransactionStream
from ledgerd.engine.user_worker import UserWorker
from ledgerd.gateway.stream import WireStream
from ledgerd_protocol.errors import ErrorCode
from tests.model import Refusal
from tests.simulation import nouns
from tests.simulation.books import StoreLane
from tests.simulation.chance import now_us
from tests.simulation.daemon import Hintways
from tests.simulation.store import Store

Mutation = Callable[[], AbstractContextManager[Any]]


def _nothing(*_given: Any, **_named: Any) -> None:
    """What is left of something that is not done."""


def _foretell(lane: StoreLane, units: list[Unit]) -> list[list[Outcome]]:
    """What a call will most likely be answered with."""
    ledger = copy.deepcopy(lane._store.ledger)
    answers = ledger.post([nouns.model_unit(unit) for unit in units], now=now_us())
    return [
        [
            nouns.refused(answer, command, now_us(), None, None)
            if isinstance(answer, Refusal)
            else Posted(nouns.record_of(answer.transaction, ledger))
            for command, answer in zip(unit.commands, of_unit, strict=True)
            if answer is not None
        ]
        for unit, of_unit in zip(units, answers, strict=True)
    ]


@contextmanager
def reply_before_commit() -> Iterator[None]:
    """The answer goes out with the call, not after it."""
    send = Committer._send

    async def early(self: Committer, lane: Any, call: Call) -> None:
        for unit, outcomes in zip(call.units, _foretell(lane, call.units), strict=True):
            if len(outcomes) == len(unit.commands) and all(isinstance(each, Posted) for each in outcomes):
                unit.answer(outcomes)
        await send(self, lane, call)

    with patch.object(Committer, "_send", early):
        yield


@contextmanager
def push_before_commit() -> Iterator[None]:
    """Subscribers are told when the call is sent."""
    send = Committer._send

    async def early(self: Committer, lane: Any, call: Call) -> None:
        for outcomes in _foretell(lane, call.units):
            for outcome in outcomes:
                if isinstance(outcome, Posted):
                    self._publish(outcome.record)
        await send(self, lane, call)

    with patch.object(Committer, "_send", early):
        yield


@contextmanager
def hints_lost_and_nobody_polls() -> Iterator[None]:
    """What another daemon commits is heard of by hints alone, and hints get lost."""

    async def idle(self: SharedFeed) -> None:
        await trio.sleep_forever()

    with patch.object(SharedFeed, "poll", idle), patch.object(Hintways, "say", _nothing):
        yield


def _recovering(change: Callable[[Call], None]) -> AbstractContextManager[Any]:
    recover = Committer._recover

    def mutated(self: Committer, call: Call, *, unknown: bool) -> None:
        recover(self, call, unknown=unknown)
        change(call)

    return patch.object(Committer, "_recover", mutated)


def resent_with_a_new_transaction_id() -> AbstractContextManager[Any]:
    """A lost call is sent again under new transaction ids."""

    def change(call: Call) -> None:
        for unit in call.units:
            for command in unit.commands:
                command.transaction_id = command.attempt_id

    return _recovering(change)


def resent_with_a_new_attempt_id() -> AbstractContextManager[Any]:
    """A lost call is sent again as new attempts."""

    def change(call: Call) -> None:
        for unit in call.units:
            for command in unit.commands:
                command.attempt_id = command.attempt_id[:-1] + ("1" if command.attempt_id[-1] == "0" else "0")

    return _recovering(change)


def resent_as_if_for_the_first_time() -> AbstractContextManager[Any]:
    """A lost call is sent again, and the database is not told that it was sent before."""

    def change(call: Call) -> None:
        call.lost = False

    return _recovering(change)


@contextmanager
def lost_calls_are_refused() -> Iterator[None]:
    """A call whose connection is lost is answered with "nothing happened"."""

    def refuse(self: Committer, call: Call, *, unknown: bool) -> None:
        for unit in call.units:
            self._refuse(unit, ErrorCode.UNAVAILABLE, applied=False)

    with patch.object(Committer, "_recover", refuse):
        yield


@contextmanager
def lost_calls_are_forgotten() -> Iterator[None]:
    """A call whose connection is lost is not sent again, and nobody is told."""
    with patch.object(Committer, "_recover", _nothing):
        yield


@contextmanager
def worker_turns_its_inbox_around() -> Iterator[None]:
    """The user's worker takes the newest command first."""
    take = UserWorker._take

    def backwards(self: UserWorker) -> None:
        self.inbox.reverse()
        take(self)

    with patch.object(UserWorker, "_take", backwards):
        yield


@contextmanager
def answers_change_places() -> Iterator[None]:
    """The units of one call get each other's answers."""
    finish = Committer._finish

    def swapped(self: Committer, call: Call, outcomes: list[list[Outcome]]) -> None:
        if len({len(each) for each in outcomes}) == 1:
            outcomes = outcomes[::-1]
        finish(self, call, outcomes)

    with patch.object(Committer, "_finish", swapped):
        yield


@contextmanager
def lanes_do_not_look_at_each_other() -> Iterator[None]:
    """A lane takes units whose account, or whose turn, another one has in flight."""
    with patch.object(committer._Bars, "stop", _nothing):
        yield


@contextmanager
def publish_forgets_one_of_seven() -> Iterator[None]:
    """Some changes are not pushed, and who follows is taken to have got them."""
    publish = Hub.publish
    numbers = iter(range(10**9))

    def forgetful(self: Hub, record: Any) -> None:
        if next(numbers) % 7:
            publish(self, record)
        else:
            for side in record.sides:
                for follower in self._followers.get(side.account_id, ()):
                    follower.positions[side.account_id] = side.version

    with patch.object(Hub, "publish", forgetful):
        yield


@contextmanager
def streams_take_any_version() -> Iterator[None]:
    """A change is pushed although one before it is missing."""
    offer = BalanceStream.offer

    def careless(self: BalanceStream, shown: Any, side: Any) -> bool:
        if self.live:
            self.positions[side.account_id] = max(self.positions[side.account_id], side.version - 1)
        return offer(self, shown, side)

    with patch.object(BalanceStream, "offer", careless):
        yield


@contextmanager
def transactions_come_again() -> Iterator[None]:
    """A subscription that is behind delivers from one version too early."""
    deliver = TransactionStream._go_live

    def again(self: TransactionStream) -> bool:
        live = deliver(self)
        for account in self.positions:
            self.positions[account] = max(0, self.positions[account] - 1)
        return live

    with patch.object(TransactionStream, "_go_live", again):
        yield


@contextmanager
def skipped_is_not_counted() -> Iterator[None]:
    """`latest` says that it skipped nothing."""

    def show(self: LatestBalances, shown: Any, side: Any) -> bool:
        if side.version > self.positions[side.account_id]:
            if not self._push(shown.update(side, self.id, 0)):
                return False
            self.positions[side.account_id] = side.version
        return True

    with patch.object(LatestBalances, "_show", show):
        yield


@contextmanager
def resume_begins_one_late() -> Iterator[None]:
    """Who resumes after version 7 is told from version 9 on."""
    resume = AccountsSubscription._resume_from

    def late(self: AccountsSubscription, state: Any, epoch: str) -> Any:
        asked, reason = resume(self, state, epoch)
        return (None if asked is None else min(asked + 1, state.version)), reason

    with patch.object(AccountsSubscription, "_resume_from", late):
        yield


@contextmanager
def unsubscribing_does_nothing() -> Iterator[None]:
    """Events go on after the answer to `ledger_unsubscribe`."""
    with patch.object(Hub, "unsubscribe", _nothing):
        yield


@contextmanager
def deduplicated_in_memory_only() -> Iterator[None]:
    """An id is recognised by the daemon that posted it, and by no other."""
    judge = Store._judge

    def forgetful(self: Store, backend: Any, clock: int) -> Any:
        ids = {command.transaction_id for unit in backend.units for command in unit.commands}
        mine = {commit.record.transaction_id for commit in self.commits if commit.daemon == backend.connection.daemon}
        forgotten = {each: self.ledger.transactions.pop(each) for each in sorted(ids - mine) if each in self.records}
        try:
            return judge(self, backend, clock)
        finally:
            self.ledger.transactions = {**forgotten, **self.ledger.transactions}

    with patch.object(Store, "_judge", forgetful):
        yield


@contextmanager
def leftovers_are_left() -> Iterator[None]:
    """What a lost generation sent may be run after the next one has sent it again."""
    with patch.object(Store, "end_leftovers", _nothing):
        yield


@contextmanager
def nobody_sweeps() -> Iterator[None]:
    """What waits while the database is away waits until it is back."""
    with patch.object(Committer, "_sweep", _nothing):
        yield


@contextmanager
def short_cut_loses_what_is_split() -> Iterator[None]:
    """The part of a frame that has arrived is thrown away."""
    deliver = WireStream._deliver

    def careless(self: WireStream, receiver: Any) -> bytes:
        passed = deliver(self, receiver)
        if self._short_cut and not passed:
            self._pending = b""
        return passed

    with patch.object(WireStream, "_deliver", careless):
        yield


MUTATIONS: list[Mutation] = [
    reply_before_commit,
    push_before_commit,
    hints_lost_and_nobody_polls,
    resent_with_a_new_transaction_id,
    resent_with_a_new_attempt_id,
    resent_as_if_for_the_first_time,
    lost_calls_are_refused,
    lost_calls_are_forgotten,
    worker_turns_its_inbox_around,
    answers_change_places,
    lanes_do_not_look_at_each_other,
    publish_forgets_one_of_seven,
    streams_take_any_version,
    transactions_come_again,
    skipped_is_not_counted,
    resume_begins_one_late,
    unsubscribing_does_nothing,
    deduplicated_in_memory_only,
    leftovers_are_left,
    nobody_sweeps,
    short_cut_loses_what_is_split,
]
