"""Every error of the protocol: one integer, one stable string, whether a retry may help, one sentence.

The table is the contract. Integers and strings never change and are never used again for something else.
Negative integers belong to JSON-RPC 2.0; positive ones are ours, outside its reserved range.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ErrorCode(IntEnum):
    """What went wrong. ``name.lower()`` is ``error.data.code``; the value is ``error.code``."""

    retryable: bool
    sentence: str

    def __new__(cls, value: int, retryable: bool, sentence: str) -> ErrorCode:
        """Build a member that carries its retry rule and its sentence."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.retryable = retryable
        member.sentence = sentence
        return member

    PARSE_ERROR = -32700, False, "The message is not valid JSON."
    INVALID_REQUEST = -32600, False, "The message is not a valid JSON-RPC 2.0 request."
    METHOD_NOT_FOUND = -32601, False, "There is no such method."
    INVALID_PARAMS = -32602, False, "The parameters are not valid; see data.errors."
    INTERNAL_ERROR = -32603, True, "The daemon has a bug here; it is in the daemon's log under this request."

    UNAUTHENTICATED = 1001, False, "Sign in first: session_login or session_authenticate."
    INVALID_CREDENTIALS = 1002, False, "The credentials are not valid."
    SESSION_EXPIRED = 1003, False, "The token has expired or was revoked."
    PERMISSION_DENIED = 1004, False, "The token's scopes do not allow this."
    USER_DISABLED = 1005, False, "The user is disabled."

    NOT_FOUND = 2001, False, "There is no such thing, or it is not yours to see."
    ALREADY_EXISTS = 2002, False, "It exists already."
    ACCOUNT_CLOSED = 2003, False, "The account is closed."
    ACCOUNT_NOT_EMPTY = 2004, False, "The account is not empty."
    ACCOUNT_FROZEN = 2005, False, "The account is frozen."
    INVALID_CURSOR = 2010, False, "The cursor is not one of this list; start from the first page."

    INSUFFICIENT_FUNDS = 3001, True, "The available balance is too small."
    CURRENCY_MISMATCH = 3002, False, "The currency is not the account's."
    AMOUNT_PRECISION = 3003, False, "The amount has more decimals than the currency."
    AMOUNT_OUT_OF_RANGE = (
        3004,
        False,
        "The amount must be above zero, below 10^18 minor units, and no more than there is to take.",
    )
    SAME_ACCOUNT = 3005, False, "Source and destination are the same account."
    LIMIT_EXCEEDED = 3006, True, "A limit of the account would be exceeded."
    ALREADY_REVERSED = 3007, False, "Not so much of the transaction is left to reverse."
    REFERENCE_NOT_FOUND = 3008, True, "The referenced transaction does not exist."
    HOLD_NOT_ACTIVE = 3009, False, "The hold is not pending any more."
    NOT_REVERSIBLE = 3010, False, "A transaction of this kind cannot be reversed."

    TRANSACTION_ID_REUSED = 4001, False, "The transaction_id was used for a different command."
    ALREADY_POSTED = 4002, False, "The transaction was posted before it could be cancelled."
    TRANSACTION_ID_CANCELLED = 4003, False, "The transaction_id was cancelled; it can never be posted."

    ADVANCE_NOT_ACTIVE = 6001, False, "The advance is not running any more."

    SUBSCRIPTION_NOT_FOUND = 7001, False, "This connection has no such subscription."
    TOO_MANY_SUBSCRIPTIONS = 7002, False, "The connection has as many subscriptions or accounts as it may."

    RATE_LIMITED = 8001, True, "Too many requests; wait data.retry_after_ms."
    BATCH_TOO_LARGE = (
        8002,
        False,
        "The batch has too many members, locks too many accounts, or its answer would be too large.",
    )
    RESPONSE_TOO_LARGE = 8003, False, "The answer would be too large; ask for less."
    OVERLOADED = 8004, True, "The daemon has too much waiting; try again."
    TIMEOUT = 8005, True, "The command waited too long and was dropped."
    SHUTTING_DOWN = 8007, True, "The daemon is stopping; reconnect."
    UNAVAILABLE = 8008, True, "The database is not reachable right now."

    @property
    def text(self) -> str:
        """The stable string that ``error.data.code`` carries."""
        return self.name.lower()

    @classmethod
    def of_wire(cls, value: int, text: str, *, retryable: bool, sentence: str) -> ErrorCode:
        """The code of this value; for one the table does not know, a code made of what the daemon said about it.

        A newer daemon may answer codes that an older client has never heard of.
        """
        known = cls._value2member_map_.get(value)
        if isinstance(known, cls):
            return known
        member = int.__new__(cls, value)
        member._name_ = text.upper()
        member._value_ = value
        member.retryable = retryable
        member.sentence = sentence
        return member


ERROR_CODES: dict[int, ErrorCode] = {int(code): code for code in ErrorCode}
"""Every error by its integer."""


class LedgerError(Exception):
    """An error of the protocol, raised by a client's call and inside the daemon for a request that cannot be served.

    ``applied`` is False when nothing happened and nothing will, None when the outcome is unknown (send the same
    transaction_id again, or cancel it). ``data`` holds the further members of ``error.data``.
    """

    def __init__(
        self, code: ErrorCode, detail: str | None = None, *, applied: bool | None = False, **data: Any
    ) -> None:
        super().__init__(detail or code.sentence)
        self.code = code
        self.detail = detail or code.sentence
        self.applied = applied
        self.data = data

    def __str__(self) -> str:
        return f"{self.code.text} ({int(self.code)}): {self.detail}"

    def to_wire(self) -> dict[str, Any]:
        """The JSON-RPC error object."""
        return {
            "code": int(self.code),
            "message": self.code.sentence,
            "data": {
                "code": self.code.text,
                "retryable": self.code.retryable,
                "applied": self.applied,
                "detail": self.detail,
                **self.data,
            },
        }

    @classmethod
    def from_wire(cls, error: dict[str, Any]) -> LedgerError:
        """The error in a JSON-RPC error object, whatever a daemon of another version or another make put into it."""
        raw = error.get("data")
        data = dict(raw) if isinstance(raw, dict) else {}
        value, text, applied = error.get("code"), data.pop("code", None), data.pop("applied", False)
        message = str(error.get("message") or "The daemon gave no reason.")
        code = ErrorCode.of_wire(
            value if isinstance(value, int) else 0,
            text if isinstance(text, str) else "unknown_error",
            retryable=data.pop("retryable", False) is True,
            sentence=message,
        )
        detail = data.pop("detail", None)
        made = cls(code, detail if isinstance(detail, str) else message, applied=False if applied is False else None)
        made.data = data
        return made
