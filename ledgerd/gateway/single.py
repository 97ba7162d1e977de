"""A message with one request, from its decoding to its answer."""

from __future__ import annotations

from typing import Any

from ledgerd.engine.commands import Outcome
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.gateway.call import Call, Money, Now, Plan, Read, Reply
from ledgerd.gateway.member import ENVELOPE_BYTES, Member, Session
from ledgerd.gateway.methods import HANDLERS
from ledgerd_protocol.codec import Request, decode_params
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Params


class Single:
    """One request on its way through a session. Answers exactly once, and then says `finished`."""

    __slots__ = ("_bytes_max", "_call", "_member", "_plan", "_session")

    def __init__(self, session: Session, request: Request, arrived_at: float) -> None:
        member = Member(request, arrived_at)
        self._session = session
        self._member = member
        self._bytes_max = session.desk.config.frame_out_bytes_max
        self._call = Call(
            session.desk, session, session.principal, arrived_at, self._bytes_max - ENVELOPE_BYTES - len(member.id)
        )
        self._plan: Plan | None = None

    @property
    def alone(self) -> bool:
        """Whether nothing that arrived later may begin before this is answered."""
        handler = HANDLERS.get(self._member.method_name)
        return isinstance(handler, Read) and handler.alone

    def begin(self) -> None:
        """Answer at once, or start what leads to the answer. Money is on its way in order when this returns."""
        session, member = self._session, self._member
        try:
            method = member.admit(session.desk, session.principal, session.address)
            params = decode_params(method, member.params)
            handler = HANDLERS[method.name]
            if isinstance(handler, Money):
                self._plan = member.plan = plan = handler.plan(self._call, params)
                session.orders.place(plan, self._concluded)
                return
            if isinstance(handler, Now):
                self._answer(handler.answer(self._call, params))
                return
        except (LedgerError, StorageUnavailable) as error:
            self._refuse(error)
            return
        session.start_soon(self._read, handler, params)

    async def _read(self, handler: Read, params: Params) -> None:
        try:
            result = await handler.answer(self._call, params)
        except (LedgerError, StorageUnavailable) as error:
            self._refuse(error)
        else:
            self._answer(result)

    def _concluded(self, outcomes: list[Outcome]) -> None:
        """Answer with the outcomes; called by the engine, whose task must not pay for a bug here."""
        try:
            self._conclude(outcomes)
        except Exception as error:  # noqa: BLE001 - handed to the session's boundary
            self._session.crashed(error)

    def _conclude(self, outcomes: list[Outcome]) -> None:
        plan = self._plan
        assert plan is not None
        if self._session.closed:
            return
        try:
            result = plan.conclude(outcomes)
        except LedgerError as error:
            self._refuse(error)
            return
        if plan.afterwards is None:
            self._answer(result)
        else:
            self._session.start_soon(self._after, plan.afterwards)

    async def _after(self, afterwards: Any) -> None:
        try:
            result = await afterwards(self._call)
        except (LedgerError, StorageUnavailable) as error:
            self._refuse(error, applied=None)
        else:
            self._answer(result)

    def _answer(self, result: Any) -> None:
        session = self._session
        if isinstance(result, Reply):
            session.send(self._member.result_reply(result.result, self._bytes_max))
            if not session.closed:
                result.then()
        else:
            session.send(self._member.result_reply(result, self._bytes_max))
        session.finished(self)

    def _refuse(self, error: LedgerError | StorageUnavailable, *, applied: bool | None = False) -> None:
        if isinstance(error, StorageUnavailable):
            error = LedgerError(ErrorCode.UNAVAILABLE, applied=applied if applied is None else error.applied)
        self._session.send(self._member.error_reply(error))
        self._session.finished(self)
