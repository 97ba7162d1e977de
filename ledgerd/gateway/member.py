"""One request of a message: what it must pass before it is executed, and how it is answered."""

from __future__ import annotations

import math
from typing import Any, Protocol

import structlog
import trio

from ledgerd.engine.commands import Principal
from ledgerd.gateway.access import check_scope
from ledgerd.gateway.authentication import network_of
from ledgerd.gateway.call import Caller, Desk, Plan
from ledgerd.gateway.orders import Orders
from ledgerd.logs import debugging
from ledgerd.metrics import REQUEST_SECONDS, REQUESTS
from ledgerd_protocol.codec import Request, encode_error, encode_result
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.methods import METHODS, Method

ENVELOPE_BYTES = len('{"jsonrpc":"2.0","id":,"result":},')

SERVED_WHILE_DRAINING = frozenset({"system_ping", "session_status", "ledger_unsubscribe"})

REQUEST_ID_MAX = 64
"""Characters of a request's id that are logged."""

UNKNOWN_METHOD = "unknown"
"""The label of requests whose method is none: clients must not be able to make up labels."""

log = structlog.get_logger(__name__)

_counters: dict[tuple[str, str], Any] = {}
_histograms: dict[str, Any] = {}


def count_answer(method: str, code: str, seconds: float) -> None:
    """Count an answer. Looking up a labelled metric costs more than counting, so they are kept."""
    counter = _counters.get((method, code))
    if counter is None:
        counter = _counters[method, code] = REQUESTS.labels(method, code)
    counter.inc()
    histogram = _histograms.get(method)
    if histogram is None:
        histogram = _histograms[method] = REQUEST_SECONDS.labels(method)
    histogram.observe(seconds)


class Session(Caller, Protocol):
    """A session, as the execution of its messages sees it."""

    desk: Desk
    orders: Orders

    @property
    def closed(self) -> bool:
        """Whether nothing can be answered any more."""

    def start_soon(self, run: Any, *args: Any) -> None:
        """Run a task in the session."""

    def send(self, reply: bytes) -> None:
        """Put a reply on its way."""

    def finished(self, message: Any) -> None:
        """The message is answered: the next one may begin."""

    def crashed(self, error: Exception) -> None:
        """End the session because of a bug that showed in somebody else's task."""


class Member:
    """One request with an id."""

    __slots__ = ("_slow_s", "_who", "arrived_at", "id", "method", "method_name", "params", "plan")

    def __init__(self, request: Request, arrived_at: float) -> None:
        assert request.id is not None
        self.id = request.id
        self.method_name = request.method
        self.params = request.params
        self.arrived_at = arrived_at
        self.method: Method | None = METHODS.get(request.method)
        self.plan: Plan | None = None  # of money commands, once there is one
        self._who: tuple[Principal | None, str] = (None, "")
        self._slow_s = math.inf

    def known(self) -> Method:
        """The method. Raises LedgerError ``method_not_found``."""
        if self.method is None:
            raise LedgerError(ErrorCode.METHOD_NOT_FOUND)
        return self.method

    def admit(self, desk: Desk, principal: Principal | None, address: str) -> Method:
        """Whether the request may be executed now. Raises LedgerError."""
        method = self.known()
        self._who = (principal, address)
        self._slow_s = desk.config.slow_call_s
        if desk.draining and method.name not in SERVED_WHILE_DRAINING:
            raise LedgerError(ErrorCode.SHUTTING_DOWN)
        check_scope(method, principal)
        if trio.current_time() > self.arrived_at + desk.config.command_ttl_s:
            raise LedgerError(ErrorCode.TIMEOUT)
        desk.requests.require(network_of(address) if principal is None else principal.token_id)
        return method

    def result_reply(self, result: Any, bytes_max: int) -> bytes:
        """The reply with a result; for a read that came out too large, the error instead."""
        reply = encode_result(self.id, result)
        if len(reply) > bytes_max and self.method is not None and not self.method.money:
            return self.error_reply(LedgerError(ErrorCode.RESPONSE_TOO_LARGE))
        self._count("ok")
        return reply

    def error_reply(self, error: LedgerError) -> bytes:
        """The reply with an error."""
        self._count(error.code.text)
        return encode_error(self.id, error)

    def _count(self, code: str) -> None:
        name = UNKNOWN_METHOD if self.method is None else self.method.name
        took_s = trio.current_time() - self.arrived_at
        count_answer(name, code, took_s)
        if took_s > self._slow_s:
            log.warning("request_slow", seconds=round(took_s, 3), method=name, code=code, **self._ids())
        elif debugging():
            if code == "ok":
                log.debug("request_answered", seconds=round(took_s, 6), method=name, **self._ids())
            else:
                log.debug("request_refused", seconds=round(took_s, 6), method=name, code=code, **self._ids())

    def _ids(self) -> dict[str, Any]:
        """What a log line about the request names it by; the id is the client's, and may be any text."""
        principal, address = self._who
        named: dict[str, Any] = {"request_id": self.id.decode("utf-8", "replace")[:REQUEST_ID_MAX], "address": address}
        if principal is not None:
            named |= principal.ids()
        if self.plan is not None and self.plan.commands:
            first = self.plan.commands[0]
            accounts = sorted({ref.account_id for ref in (first.debit, first.credit) if ref and ref.account_id})
            named |= {
                "transaction_id": first.transaction_id,
                "commands": len(self.plan.commands),
                "batch_id": self.plan.batch_id,
                "account_ids": accounts,
            }
        return {name: value for name, value in named.items() if value not in (None, "", [])}
