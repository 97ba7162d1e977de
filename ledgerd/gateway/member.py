"""One request of a message: what it must pass before it is executed, and how it is answered."""

from __future__ import annotations

from typing import Any, Protocol

import trio

from ledgerd.engine.commands import Principal
from ledgerd.gateway.access import check_scope
from ledgerd.gateway.call import Caller, Desk
from ledgerd.gateway.orders import Orders
from ledgerd.metrics import REQUEST_SECONDS, REQUESTS
from ledgerd_protocol.codec import Request, encode_error, encode_result
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.methods import METHODS, Method

ENVELOPE_BYTES = len('{"jsonrpc":"2.0","id":,"result":},')

SERVED_WHILE_DRAINING = frozenset({"system_ping", "session_status", "ledger_unsubscribe"})

UNKNOWN_METHOD = "unknown"
"""The label of requests whose method is none: clients must not be able to make up labels."""

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

    __slots__ = ("arrived_at", "id", "method", "method_name", "params")

    def __init__(self, request: Request, arrived_at: float) -> None:
        assert request.id is not None
        self.id = request.id
        self.method_name = request.method
        self.params = request.params
        self.arrived_at = arrived_at
        self.method: Method | None = METHODS.get(request.method)

    def known(self) -> Method:
        """The method. Raises LedgerError ``method_not_found``."""
        if self.method is None:
            raise LedgerError(ErrorCode.METHOD_NOT_FOUND)
        return self.method

    def admit(self, desk: Desk, principal: Principal | None, address: str) -> Method:
        """Whether the request may be executed now. Raises LedgerError."""
        method = self.known()
        if desk.draining and method.name not in SERVED_WHILE_DRAINING:
            raise LedgerError(ErrorCode.SHUTTING_DOWN)
        check_scope(method, principal)
        if trio.current_time() > self.arrived_at + desk.config.command_ttl_s:
            raise LedgerError(ErrorCode.TIMEOUT)
        desk.requests.require(address if principal is None else principal.token_id)
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
        count_answer(name, code, trio.current_time() - self.arrived_at)
