"""A message with many requests: executed strictly in order, independently, answered as one array.

Before anything is executed the largest possible answer is added up: if it could exceed what may be sent in one frame,
the whole batch is refused, because the answer to a money command must never get lost. Lists take what room is left.

Money commands next to one another travel as one unit. A batch that does more than move money holds a turn in the
connection's order of money commands until its last one is routed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from ledgerd.engine.commands import Outcome
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.gateway.call import Call, Desk, Money, Now, Plan, Read
from ledgerd.gateway.member import ENVELOPE_BYTES, Member, Session
from ledgerd.gateway.methods import HANDLERS
from ledgerd.gateway.methods.sizes import result_bytes_max
from ledgerd.gateway.orders import Turn
from ledgerd.metrics import NOTIFICATIONS_IGNORED
from ledgerd_protocol.codec import Invalid, Request, decode_params, encode_batch, encode_error
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Params
from ledgerd_protocol.methods import BATCHABLE

_ERROR_BYTES_MAX = 512
"""Of an error that a read may end with."""

_LIST_BYTES_MIN = 16_384
"""Room that a list in a batch must have: an item or two of the largest kind."""

_JOINED = BATCHABLE | {"transaction_cancel", "wallet_bet", "wallet_win", "wallet_rollback"}
"""Methods that plan one command and nothing else: neighbours of these become one unit."""


class _Entry:
    """One member: answered already (``reply``), or still to be executed."""

    __slots__ = ("bytes_max", "call", "member", "params", "reply")

    def __init__(self, member: Member | None, params: Params | None, reply: bytes | None) -> None:
        self.member = member
        self.params = params
        self.reply = reply
        self.bytes_max: int | None = None  # of the encoded result; None is a list, which takes what room there is
        self.call: Call | None = None  # of money commands, once planned: who acts is not asked again afterwards


class Batch:
    """One batch on its way through a session."""

    def __init__(self, session: Session, members: list[Request | Invalid], arrived_at: float) -> None:
        self._session = session
        self._arrived_at = arrived_at
        self._entries: list[_Entry] = []
        for member in members:
            if isinstance(member, Request) and member.id is None:
                NOTIFICATIONS_IGNORED.inc()
            else:
                self._entries.append(self._entry(member))

    @property
    def alone(self) -> bool:
        """Whether nothing that arrived later may begin before this is answered."""
        return any(
            isinstance(handler, Read) and handler.alone for entry in self._left() for handler in (_handler(entry),)
        )

    def begin(self) -> None:
        """Answer at once, or start what leads to the answer."""
        if not self._fits():
            self._refuse_all()
        left = self._left()
        if not left:
            self._finish()
        elif all(_joins(entry) for entry in left):
            self._place(left, self._finish)
        else:
            moves = any(isinstance(_handler(entry), Money) for entry in left)
            self._session.start_soon(self._run, self._session.orders.hold() if moves else None)

    # -- before anything is executed ----------------------------------------------------------------------------------

    def _entry(self, request: Request | Invalid) -> _Entry:
        if isinstance(request, Invalid):
            return _Entry(None, None, encode_error(request.id, request.error))
        member = Member(request, self._arrived_at)
        if member.method_name == "ledger_subscribe":
            error = LedgerError(ErrorCode.INVALID_REQUEST, "Subscribe in a message of its own.")
            return _Entry(member, None, member.error_reply(error))
        try:
            method = member.known()
            return _Entry(member, decode_params(method, member.params), None)
        except LedgerError as refusal:
            return _Entry(member, None, member.error_reply(refusal))

    def _left(self) -> list[_Entry]:
        return [entry for entry in self._entries if entry.reply is None]

    def _fits(self) -> bool:
        """Whether the largest possible answer fits into one frame; gives every member its room."""
        principal = self._session.principal
        operator = principal is not None and "operator" in principal.scopes
        room = self._session.desk.config.frame_out_bytes_max - 2
        lists: list[_Entry] = []
        for entry in self._entries:
            if entry.reply is not None:
                room -= len(entry.reply) + 1
                continue
            assert entry.member is not None
            assert entry.params is not None
            room -= ENVELOPE_BYTES + len(entry.member.id)
            handler = _handler(entry)
            if isinstance(handler, Money):
                entry.bytes_max = result_bytes_max(entry.params, operator=operator)
            elif handler.result_bytes_max is not None:
                entry.bytes_max = max(handler.result_bytes_max, _ERROR_BYTES_MAX)
            else:
                lists.append(entry)
                continue
            room -= entry.bytes_max
        if lists:
            share = room // len(lists)
            if share < _LIST_BYTES_MIN:
                return False
            for entry in lists:
                entry.bytes_max = share
        return room >= 0

    def _refuse_all(self) -> None:
        error = LedgerError(ErrorCode.BATCH_TOO_LARGE, "The answer could be larger than a message may be.")
        for entry in self._entries:
            if entry.member is not None:
                entry.reply = entry.member.error_reply(error)

    # -- executing ----------------------------------------------------------------------------------------------------

    async def _run(self, turn: Turn | None) -> None:
        left = self._left()
        last_money = max((at for at, entry in enumerate(left) if isinstance(_handler(entry), Money)), default=-1)
        at = 0
        while at < len(left):
            joined = at
            while joined < len(left) and _joins(left[joined]):
                joined += 1
            if joined > at:
                await self._run_money(left[at:joined], turn if joined > last_money else None, turn)
                at = joined
                continue
            entry = left[at]
            if isinstance(_handler(entry), Money):
                await self._run_money([entry], turn if at == last_money else None, turn)
            else:
                await self._run_read(entry)
            at += 1
        if turn is not None:
            turn.over.set()
        self._finish()

    async def _run_money(self, entries: list[_Entry], release: Turn | None, turn: Turn | None) -> None:
        """Execute money members as one unit; ``release`` is set over as soon as the unit is routed."""
        assert turn is not None
        await turn.come.wait()
        plans = self._plans(entries)
        answered = trio.Event()
        if plans:
            await self._session.orders.place_in_turn(_together(plans), partial(self._concluded, plans, answered.set))
        if release is not None:
            release.over.set()
        if plans:
            await answered.wait()
        for entry, plan in plans:
            if plan.afterwards is not None and entry.reply is None:
                await self._run_after(entry, plan)

    async def _run_after(self, entry: _Entry, plan: Plan) -> None:
        assert plan.afterwards is not None
        assert entry.call is not None
        try:
            self._reply(entry, await plan.afterwards(entry.call))
        except (LedgerError, StorageUnavailable) as error:
            self._refuse(entry, error, applied=None)

    async def _run_read(self, entry: _Entry) -> None:
        handler = _handler(entry)
        assert not isinstance(handler, Money)
        try:
            self._admit(entry)
            result = handler.answer(self._call(entry), entry.params)
            self._reply(entry, result if isinstance(handler, Now) else await result)
        except (LedgerError, StorageUnavailable) as error:
            self._refuse(entry, error)

    # -- money --------------------------------------------------------------------------------------------------------

    def _place(self, entries: list[_Entry], then: Any) -> None:
        """Send members that each are one command to the router as one unit."""
        plans = self._plans(entries)
        if plans:
            self._session.orders.place(_together(plans), partial(self._concluded, plans, then))
        else:
            then()

    def _plans(self, entries: list[_Entry]) -> list[tuple[_Entry, Plan]]:
        """The plans of the members that may be executed; the others are answered."""
        plans: list[tuple[_Entry, Plan]] = []
        for entry in entries:
            handler = _handler(entry)
            assert entry.member is not None
            assert isinstance(handler, Money)
            try:
                self._admit(entry)
                entry.call = self._call(entry)
                plan = handler.plan(entry.call, entry.params)
                entry.member.plan = plan
                plans.append((entry, plan))
            except LedgerError as error:
                self._refuse(entry, error)
        return plans

    def _concluded(self, plans: list[tuple[_Entry, Plan]], then: Any, outcomes: list[Outcome]) -> None:
        """Answer the members; called by the engine, whose task must not pay for a bug here."""
        try:
            if not self._session.closed:
                self._conclude(plans, outcomes)
            then()
        except Exception as error:  # noqa: BLE001 - handed to the session's boundary
            self._session.crashed(error)

    def _conclude(self, plans: list[tuple[_Entry, Plan]], outcomes: list[Outcome]) -> None:
        start = 0
        for entry, plan in plans:
            end = start + len(plan.commands)
            try:
                result = plan.conclude(outcomes[start:end])
                if plan.afterwards is None:
                    self._reply(entry, result)
            except LedgerError as error:
                self._refuse(entry, error)
            start = end

    # -- answering ----------------------------------------------------------------------------------------------------

    def _admit(self, entry: _Entry) -> None:
        session = self._session
        assert entry.member is not None
        entry.member.admit(session.desk, session.principal, session.address)

    def _call(self, entry: _Entry) -> Call:
        assert entry.bytes_max is not None
        session = self._session
        return Call(session.desk, session, session.principal, self._arrived_at, entry.bytes_max)

    def _reply(self, entry: _Entry, result: Any) -> None:
        assert entry.member is not None
        assert entry.bytes_max is not None
        entry.reply = entry.member.result_reply(result, entry.bytes_max + ENVELOPE_BYTES + len(entry.member.id))

    def _refuse(self, entry: _Entry, error: LedgerError | StorageUnavailable, *, applied: bool | None = False) -> None:
        assert entry.member is not None
        if isinstance(error, StorageUnavailable):
            error = LedgerError(ErrorCode.UNAVAILABLE, applied=applied if applied is None else error.applied)
        entry.reply = entry.member.error_reply(error)

    def _finish(self) -> None:
        if not self._session.closed and self._entries:
            replies = [entry.reply for entry in self._entries]
            self._session.send(encode_batch([reply for reply in replies if reply is not None]))
        self._session.finished(self)


def _handler(entry: _Entry) -> Now | Read | Money:
    assert entry.member is not None
    return HANDLERS[entry.member.method_name]


def _joins(entry: _Entry) -> bool:
    assert entry.member is not None
    return entry.member.method_name in _JOINED


def _together(plans: list[tuple[_Entry, Plan]]) -> Plan:
    """One plan of several that are independent; a single plan is itself, perhaps atomic."""
    if len(plans) == 1:
        return plans[0][1]
    commands = [command for _, plan in plans for command in plan.commands]
    prepares = [plan.prepare for _, plan in plans if plan.prepare is not None]
    return Plan(commands, lambda outcomes: outcomes, prepare=partial(_prepare, prepares) if prepares else None)


async def _prepare(prepares: list[Callable[[Desk], Awaitable[None]]], desk: Desk) -> None:
    for prepare in prepares:
        await prepare(desk)
