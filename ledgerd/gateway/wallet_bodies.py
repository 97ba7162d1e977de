"""The bodies of the betting wallet: reading them without refusing, and what is answered to what.

Rules of this file; nothing here waits or knows a daemon:

- A supplier's body is judged in the profile's order, not in ours, so reading never fails: what cannot be read as it
  should be is a `Status` to answer when its turn comes.
- ``null`` is the same as a member that is not there.
- Numbers are judged as raw text. ``10.0``, ``1e2`` and ``"10"`` are no integers.
"""

from __future__ import annotations

import re
import uuid

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.fields import is_transaction_id
from ledgerd_protocol.messages import WalletBalance, WalletBet, WalletRequest, WalletRollback, WalletWin
from ledgerd_protocol.metadata import canonical_metadata
from ledgerd_protocol.money import to_text
from ledgerd_protocol.results import WalletStatus as Status

TEXT_LENGTH_MAX = 255
"""Of a wallet name, a round, a game code, and of what is said back."""

CURRENCY_LENGTH_MAX = 12

NAMES_MAX = 1_000
"""Of one wallet_create_users."""

NO_CURRENCY = ""
"""Stands for a currency that was not given or is none: no account is in it."""

_ANSWER_BYTES = 160 + 36
"""Of an answer without what is said back: status, currency, balance, the names of all members, a stored uuid."""

ANSWER_BYTES_MAX = _ANSWER_BYTES + 2 * TEXT_LENGTH_MAX * len("\\u0000")

_UNITS_DIGITS_MAX = 26
"""Of an amount: 10^18 minor units, counted in eight more decimals."""

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_TEXT = msgspec.json.Decoder(str)
_NAMES = msgspec.json.Decoder(list[Raw])

_KEPT = (
    "round_closed", "supplier_user", "supplier_transaction_id", "is_free", "is_aggregated", "reward_uuid", "bet",
    "meta",
)  # fmt: skip
"""Members that are kept with a transaction beside its first request_uuid. The token is not among them."""

STATUSES: dict[ErrorCode, Status] = {
    ErrorCode.TRANSACTION_ID_REUSED: "RS_ERROR_DUPLICATE_TRANSACTION",
    ErrorCode.TRANSACTION_ID_CANCELLED: "RS_ERROR_DUPLICATE_TRANSACTION",
    ErrorCode.CURRENCY_MISMATCH: "RS_ERROR_WRONG_CURRENCY",
    ErrorCode.USER_DISABLED: "RS_ERROR_USER_DISABLED",
    ErrorCode.ACCOUNT_CLOSED: "RS_ERROR_USER_DISABLED",
    ErrorCode.ACCOUNT_FROZEN: "RS_ERROR_USER_DISABLED",
    ErrorCode.INSUFFICIENT_FUNDS: "RS_ERROR_NOT_ENOUGH_MONEY",
    ErrorCode.AMOUNT_PRECISION: "RS_ERROR_WRONG_TYPES",
    ErrorCode.REFERENCE_NOT_FOUND: "RS_ERROR_TRANSACTION_DOES_NOT_EXIST",
    ErrorCode.NOT_FOUND: "RS_ERROR_UNKNOWN",
    ErrorCode.AMOUNT_OUT_OF_RANGE: "RS_ERROR_UNKNOWN",
    ErrorCode.LIMIT_EXCEEDED: "RS_ERROR_UNKNOWN",
    ErrorCode.ALREADY_REVERSED: "RS_ERROR_UNKNOWN",
    ErrorCode.NOT_REVERSIBLE: "RS_ERROR_UNKNOWN",
}
"""What the kernel's refusals are called here. What is not in this table is about the daemon, not about the request."""


class Body(Struct, frozen=True):
    """What a bet, win or rollback says.

    ``user`` is None where it can be nobody's name, and then there is nothing to ask the kernel. ``units`` is None for a
    rollback. ``transaction_id`` and ``refers_to`` are fresh where the body's are missing or malformed: nobody can have
    seen those. ``late`` is what is wrong when nothing else is. ``odd`` says that round or game_code cannot be stored,
    so that no stored transaction has them.
    """

    user: str | None
    said_user: str | UnsetType
    request_uuid: str | UnsetType
    transaction_id: str
    currency: str
    units: int | None
    refers_to: str | None
    round: str | None
    game_code: str | None
    late: Status | None
    odd: bool


def read(body: WalletRequest) -> Body | Status:
    """The body, or what is answered before anything else is looked at: the amount's mistakes come first of all."""
    units = None
    if isinstance(body, WalletBet | WalletWin):
        found = _units(body.amount)
        if isinstance(found, str):
            return found
        units = found
    said_user = said(body.user)
    request_uuid = said(body.request_uuid)
    transaction_id, late = _uuid(body.transaction_uuid, None)
    _, late = _uuid(body.request_uuid, late)
    refers_to = None
    if isinstance(body, WalletRollback):
        refers_to, late = _uuid(body.reference_transaction_uuid, late)
    elif isinstance(body, WalletWin):
        # To a win, a reference that cannot be is a bet that does not exist.
        refers_to, _ = _uuid(body.reference_transaction_uuid, None)
    game_round, odd_round = _optional_text(body.round)
    game_code, odd_code = _optional_text(body.game_code)
    odd = odd_round or odd_code
    return Body(
        user=said_user or None,
        said_user=said_user,
        request_uuid=request_uuid,
        transaction_id=transaction_id or str(uuid.uuid4()),
        currency=currency_of(body.currency),
        units=units,
        refers_to=None if isinstance(body, WalletBet) else refers_to or str(uuid.uuid4()),
        round=game_round,
        game_code=game_code,
        late=late or ("RS_ERROR_WRONG_TYPES" if odd else None),
        odd=odd,
    )


def kept(body: WalletRequest, request_uuid: str | UnsetType) -> str | None:
    """What is stored with the transaction: its first request_uuid, and what else the supplier said if that is small."""
    if request_uuid is UNSET:
        return None
    members = {name: value for name in _KEPT if (value := getattr(body, name)) is not UNSET}
    if not members:
        return f'{{"request_uuid":{msgspec.json.encode(request_uuid).decode()}}}'
    whole = {"request_uuid": request_uuid, **members}
    for without in ((), ("meta",), _KEPT):
        try:
            chosen = {name: value for name, value in whole.items() if name not in without}
            return canonical_metadata(msgspec.json.encode(chosen))
        except ValueError:
            continue
    return None


def answer_bytes_max(body: WalletRequest) -> int:
    """The most that the answer may take, encoded."""
    return _ANSWER_BYTES + sum(len(msgspec.json.encode(said(raw) or "")) for raw in (body.user, body.request_uuid))


def first_request_uuid(metadata: str | None) -> str | UnsetType:
    """The request_uuid that `kept` has stored."""
    if metadata is None:
        return UNSET
    found: str | UnsetType = msgspec.json.decode(metadata, type=_Kept).request_uuid
    return found


class _Kept(Struct):
    request_uuid: str | UnsetType = UNSET


def read_names(raw: Raw | UnsetType) -> list[str] | Status:
    """The names of new users. Empty ones are left out."""
    if _absent(raw):
        return "RS_ERROR_WRONG_SYNTAX"
    assert raw is not UNSET
    try:
        names = [_TEXT.decode(name) for name in _NAMES.decode(raw)]
    except (msgspec.MsgspecError, RecursionError):
        return "RS_ERROR_WRONG_TYPES"
    if len(names) > NAMES_MAX or any(len(name) > TEXT_LENGTH_MAX for name in names):
        return "RS_ERROR_WRONG_TYPES"
    return [name for name in names if name]


def stated_currency(body: WalletBalance) -> str | None:
    """The currency whose balance is asked for, None if none is stated."""
    return None if _absent(body.currency) else currency_of(body.currency)


def late_of_balance(body: WalletBalance) -> Status | None:
    """What is wrong with a question for a balance when nothing else is. Its request_uuid may be missing."""
    late: Status | None = None
    if not _absent(body.request_uuid):
        _, late = _uuid(body.request_uuid, None)
    return late


# -- members -------------------------------------------------------------------------------------------------------


def _absent(raw: Raw | UnsetType) -> bool:
    return raw is UNSET or bytes(raw) == b"null"


def text_of(raw: Raw | UnsetType) -> str | None:
    """A member that is a string, else None."""
    if raw is UNSET:
        return None
    data = bytes(raw)
    return _TEXT.decode(data) if data[:1] == b'"' else None


def said(raw: Raw | UnsetType) -> str | UnsetType:
    """A member as it is said back in the answer: a string that is not too long, else nothing."""
    text = text_of(raw)
    return UNSET if text is None or len(text) > TEXT_LENGTH_MAX else text


def currency_of(raw: Raw | UnsetType) -> str:
    """The stated currency; `NO_CURRENCY` if there is none that an account could be in."""
    text = text_of(raw)
    return NO_CURRENCY if text is None or len(text) > CURRENCY_LENGTH_MAX else text


def _units(raw: Raw | UnsetType) -> int | Status:
    data = b"" if raw is UNSET else bytes(raw)
    if _INTEGER.fullmatch(data) is None:
        return "RS_ERROR_WRONG_TYPES"
    if data[:1] in (b"-", b"0") or len(data) > _UNITS_DIGITS_MAX:
        return "RS_ERROR_UNKNOWN"
    return int(data)


def _uuid(raw: Raw | UnsetType, late: Status | None) -> tuple[str | None, Status | None]:
    """A UUID in lower case, None if it is missing or malformed, and what of that is to be answered late.

    Something that is missing is answered before something that is malformed, so ``late`` only ever becomes that.
    """
    text = text_of(raw)
    if text is not None:
        text = text.lower()
        if is_transaction_id(text):
            return text, late
    elif _absent(raw):
        return None, "RS_ERROR_WRONG_SYNTAX"
    return None, late or "RS_ERROR_WRONG_TYPES"


def _optional_text(raw: Raw | UnsetType) -> tuple[str | None, bool]:
    """A text that may be stored; and whether there is something that may not."""
    if _absent(raw):
        return None, False
    text = text_of(raw)
    if text is None or len(text) > TEXT_LENGTH_MAX:
        return None, True
    return text, False


# -- amounts -------------------------------------------------------------------------------------------------------


def amount_of(units: int, decimals: int) -> str:
    """Decimal text of so many units, without zeros at its end: how many decimals matter is for the currency to say."""
    text = to_text(units, decimals)
    return text.rstrip("0").rstrip(".") if decimals else text


def units_of(minor: int, scale: int, decimals: int) -> int:
    """Minor units of a currency of ``scale`` decimals in the wallet's unit. What is smaller than one is left out."""
    return int(minor * 10 ** (decimals - scale)) if decimals >= scale else minor // 10 ** (scale - decimals)
