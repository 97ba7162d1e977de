"""The types of parameters: what a field of a command may hold, with its limits.

The patterns go into the OpenRPC document as they are, so they hold to what every dialect of regular expressions knows.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Raw

ID_MAX = 2**63 - 1

AccountId = Annotated[int, Meta(ge=1, le=ID_MAX, description="An account's number.")]
UserId = Annotated[int, Meta(ge=1, le=ID_MAX, description="A user's number.")]
Version = Annotated[int, Meta(ge=0, le=ID_MAX, description="Changes of the account so far; 0 is its opening.")]
_END = r"$(?!\n)"
"""The end of the text in every dialect of patterns: in Python's, ``$`` alone also matches before a last newline."""
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NOT_NIL_NOR_MAX = r"(?!00000000-0000-0000-0000-000000000000)(?!ffffffff-ffff-ffff-ffff-ffffffffffff)"
TransactionId = Annotated[
    str,
    Meta(
        pattern=f"^{_NOT_NIL_NOR_MAX}{_UUID}{_END}",
        max_length=36,
        description="A UUID in lower case chosen by the client; version 7 is best.",
    ),
]
CurrencyCode = Annotated[
    str, Meta(pattern=f"^[A-Z][A-Z0-9]{{2,11}}{_END}", max_length=12, description="A currency code of ISO 4217.")
]
Text255 = Annotated[str, Meta(max_length=255)]
_CONTROLS = r"\x00-\x1f\x7f"
Name = Annotated[
    str,
    Meta(
        pattern=rf"^[^\s{_CONTROLS}]([^{_CONTROLS}]*[^\s{_CONTROLS}])?{_END}",
        min_length=1,
        max_length=200,
        description="A name on one line, without spaces around it.",
    ),
]
Email = Annotated[
    str,
    Meta(
        pattern=rf"^[^@\s{_CONTROLS}]{{1,64}}@[^@\s.{_CONTROLS}]+(\.[^@\s.{_CONTROLS}]+)+{_END}",
        max_length=254,
        description="An e-mail address.",
    ),
]
Password = Annotated[str, Meta(min_length=8, max_length=1024)]
Time = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
        + _END,
        max_length=35,
        description="A time as in RFC 3339, with its offset.",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=1000, description="Items per page.")]
HOLD_EXPIRES_IN_S_MIN = 60
HOLD_EXPIRES_IN_S_MAX = 31 * 86_400
HOLD_EXPIRES_IN_S_DEFAULT = 7 * 86_400
ExpiresIn = Annotated[
    int,
    Meta(
        ge=HOLD_EXPIRES_IN_S_MIN,
        le=HOLD_EXPIRES_IN_S_MAX,
        description="For how many seconds the money is held back, unless the hold is captured or released before.",
    ),
]
INSTALLMENTS_MAX = 1_000
INTERVAL_DAYS_MAX = 366
Installments = Annotated[
    int, Meta(ge=1, le=INSTALLMENTS_MAX, description="How many payments; a daemon may allow fewer, see system_info.")
]
IntervalDays = Annotated[
    int,
    Meta(
        ge=1,
        le=INTERVAL_DAYS_MAX,
        description="Days of 24 hours between two payments; a daemon may allow fewer, see system_info.",
    ),
]
Scope = Literal["read", "user", "topup", "service", "operator"]
Amount = Annotated[
    Raw,
    Meta(
        description="Decimal text with at most the currency's decimals, as a string or a number.",
        examples=["10.00"],
        extra={"rule": "amount"},
        extra_json_schema={"type": ["string", "number"], "pattern": r"^(0|[1-9][0-9]{0,17})(\.[0-9]{1,8})?$"},
    ),
]
"""Decimal text as a JSON string or number; see `ledgerd_protocol.money`. Kept raw so that it is judged as text."""
Metadata = Annotated[
    Raw,
    Meta(
        description="An object of the client's own, at most 4096 bytes and 4 levels.",
        extra={"rule": "metadata"},
        extra_json_schema={"type": "object"},
    ),
]
"""Kept raw so that numbers keep their spelling; see `ledgerd_protocol.metadata`."""

WalletText = Annotated[Raw, Meta(extra_json_schema={"type": "string"})]
WalletFlag = Annotated[Raw, Meta(extra_json_schema={"type": "boolean"})]
WalletAmount = Annotated[
    Raw, Meta(description="In units of the betting wallet.", extra_json_schema={"type": "integer", "minimum": 1})
]
WalletNames = Annotated[Raw, Meta(extra_json_schema={"type": "array", "items": {"type": "string"}})]
WalletAnything = Annotated[Raw, Meta(description="The supplier's own.")]
"""What members of the betting wallet's bodies should be. They are kept raw: no wrong type is refused while reading."""

TransactionKind = Literal[
    "credit", "debit", "transfer", "hold", "capture", "release", "expiry", "reversal", "bet", "win", "rollback",
    "advance", "advance_payment", "limit", "freeze", "unfreeze", "close", "cancel",
]  # fmt: skip
TransactionStatus = Literal["posted", "pending", "captured", "released", "expired", "failed", "cancelled"]


def is_transaction_id(text: str) -> bool:
    """Whether the text is a transaction_id as the protocol wants it."""
    return re.fullmatch(_NOT_NIL_NOR_MAX + _UUID, text) is not None
