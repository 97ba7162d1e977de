"""One request of a client, from its first sending to its answer, and which requests may be sent twice. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import uuid_utils
from msgspec import Raw

from ledgerd_protocol import methods
from ledgerd_protocol.codec import encode_request
from ledgerd_protocol.errors import ErrorCode

PASSING = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.OVERLOADED,
        ErrorCode.TIMEOUT,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.UNAVAILABLE,
    }
)
"""Refusals that say nothing about the command; the client asks again."""

SENDS_MAX = 10
"""Sendings of one command across reconnections: a command that kills every connection must not do so for ever."""

READ_SUFFIXES = ("_get", "_list", "_report", "_balance")


class OutcomeUnknown(Exception):
    """The connection was lost before the answer to a command came, and it was not sent again.

    For money, send the same ``transaction_id`` again or cancel it. It is None for other methods: look whether it
    happened before repeating it.
    """

    def __init__(self, method: str, transaction_id: str | None) -> None:
        super().__init__(f"the outcome of {method} is unknown: the connection was lost before its answer came")
        self.method = method
        self.transaction_id = transaction_id


class Lost(Exception):
    """A request that belongs to one connection went away with it."""


class Call:
    """One request. `settle` is called with each answer, by the task that reads the connection."""

    __slots__ = (
        "bound",
        "id",
        "in_flight",
        "method",
        "repeatable",
        "sends",
        "settle",
        "text",
        "transaction_id",
        "uncertain",
    )

    def __init__(
        self,
        number: int,
        method: str,
        params: Mapping[str, Any],
        settle: Callable[[Raw | Exception], None],
        *,
        bound: bool = False,
    ) -> None:
        self.id = number
        self.method = method
        self.settle = settle
        self.bound = bound  # to one connection: means nothing on the next
        self.transaction_id: str | None = params.get(id_name(method))
        self.repeatable = self.transaction_id is not None or is_read(method)
        self.sends = 0
        self.in_flight = False  # sent on the present connection, and not answered
        self.uncertain = False  # an earlier sending may be carried out, or have been
        self.text = encode_request(number, method, params)


def is_read(method: str) -> bool:
    """Whether a method only looks, so that sending it twice changes nothing."""
    return (
        method.endswith(READ_SUFFIXES) or method.startswith("system_") or method in {"session_status", "rpc.discover"}
    )


def id_name(method: str) -> str:
    """The parameter that makes a command of this method safe to send twice."""
    if method == "transaction_batch":
        return "batch_id"
    return "transaction_uuid" if method.startswith("wallet_") else "transaction_id"


def with_id(method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a command with the id that makes it safe to send twice; chosen here if the caller did not."""
    known = methods.METHODS.get(method)
    name = id_name(method)
    if known is None or not known.money or method == "transaction_cancel" or params.get(name) is not None:
        return params
    return {**params, name: str(uuid_utils.uuid7())}
