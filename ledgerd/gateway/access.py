"""Whom a call may name. Scopes are checked once, here; so is what lies outside the caller's view.

The kernel judges money commands again, under its locks. Here they are judged first so that the answer is right and a
stranger's command costs nobody a lock. What is outside the view and what does not exist are answered alike.
"""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from ledgerd.engine.commands import AccountFacts, AccountRef, Principal, Refused
from ledgerd.engine.views import visible
from ledgerd.gateway.authentication import expired
from ledgerd.gateway.call import Call
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.methods import Method
from ledgerd_protocol.money import iso_scale

STRANGE_ACCOUNT = Refused(code=ErrorCode.NOT_FOUND, data={"resource": "account"})

_IMPLIED = {
    "operator": frozenset({"operator", "service", "topup", "user", "read"}),
    "service": frozenset({"service", "topup", "user", "read"}),
    "user": frozenset({"user", "read"}),
}
"""What a scope is at least as wide as, besides itself."""


def by(principal: Principal | None) -> dict[str, int | None]:
    """Who did it, for a log line; empty for somebody who has not signed in."""
    return {} if principal is None else {"by_token_id": principal.token_id, "by_user_id": principal.user_id}


def check_scope(method: Method, principal: Principal | None) -> None:
    """Whether the caller may use the method at all.

    Raises LedgerError ``unauthenticated``, ``session_expired`` or ``permission_denied``.
    """
    if not method.scopes:
        return
    if principal is None:
        raise LedgerError(ErrorCode.UNAUTHENTICATED)
    if expired(principal):
        raise LedgerError(ErrorCode.SESSION_EXPIRED)
    if method.scopes.isdisjoint(principal.scopes):
        raise LedgerError(ErrorCode.PERMISSION_DENIED)


def covers(principal: Principal, scopes: set[str]) -> bool:
    """Whether the caller's scopes are at least as wide."""
    allowed = set(principal.scopes)
    for scope in principal.scopes:
        allowed |= _IMPLIED.get(scope, frozenset())
    return scopes <= allowed


def not_found(resource: str) -> LedgerError:
    """There is no such thing, or it is not the caller's to see."""
    return LedgerError(ErrorCode.NOT_FOUND, resource=resource)


def invalid(pointer: str, detail: str) -> LedgerError:
    """One parameter is not valid."""
    return LedgerError(
        ErrorCode.INVALID_PARAMS, f"{pointer}: {detail}", errors=[{"pointer": pointer, "detail": detail}]
    )


# -- accounts ---------------------------------------------------------------------------------------------------------


def own_ref(
    principal: Principal, account_id: int | UnsetType, user_id: int | UnsetType, pointer: str = "/account_id"
) -> AccountRef:
    """The account that is named, or the caller's own when none is.

    A token of one account means that account when it names its own user. Raises LedgerError ``invalid_params``.
    """
    if account_id is not UNSET:
        return AccountRef(account_id=account_id)
    if principal.account_id is not None and (user_id is UNSET or user_id == principal.user_id):
        return AccountRef(account_id=principal.account_id)
    if user_id is not UNSET:
        return AccountRef(user_id=user_id)
    if principal.user_id is not None:
        return AccountRef(user_id=principal.user_id)
    raise invalid(pointer, "Name the account by its account_id or its user_id.")


def other_ref(account_id: int | UnsetType, user_id: int | UnsetType, pointer: str) -> AccountRef:
    """The account that is named; there is no default. Raises LedgerError ``invalid_params``."""
    if account_id is not UNSET:
        return AccountRef(account_id=account_id)
    if user_id is not UNSET:
        return AccountRef(user_id=user_id)
    raise invalid(pointer, "Name the account by its account_id or its user_id.")


def owns_ref(principal: Principal, ref: AccountRef) -> bool | None:
    """Whether the caller may act for, or see, the account; None if that takes the account's facts."""
    if principal.sees_all:
        return True
    if ref.wallet is not None:
        return None
    if principal.account_id is not None:
        return ref.account_id == principal.account_id
    if principal.user_id is None:
        return False
    if ref.user_id is not None:
        return ref.user_id == principal.user_id
    return None


def owns(principal: Principal, facts: AccountFacts | None) -> bool:
    """Whether the account exists and the caller may act for it, or see it."""
    return facts is not None and visible(principal, facts)


async def seen_account(call: Call, ref: AccountRef, currency: str | UnsetType) -> AccountFacts:
    """The facts of an account that a read names. Raises LedgerError ``not_found``, ``currency_mismatch``."""
    principal = call.principal
    if owns_ref(principal, ref) is False:
        raise not_found("account")
    desk = call.desk
    wanted = desk.config.default_currency if currency is UNSET else currency
    facts = desk.directory.known(ref, wanted)
    if facts is None:
        (facts,) = await desk.directory.find([(ref, wanted)])
    if facts is None or not owns(principal, facts):
        raise not_found("account")
    if currency is not UNSET and facts.currency != currency:
        raise LedgerError(ErrorCode.CURRENCY_MISMATCH)
    return facts


# -- users ------------------------------------------------------------------------------------------------------------


def manages(principal: Principal) -> bool:
    """Whether the caller may manage what belongs to other users: their tokens, their list of accounts."""
    return principal.account_id is None and "operator" in principal.scopes


def seen_user(principal: Principal, user_id: int | UnsetType) -> int:
    """The user that a read names, or the caller's own. Raises LedgerError ``not_found`` or ``invalid_params``."""
    return _user(principal, user_id, others=principal.sees_all)


def managed_user(principal: Principal, user_id: int | UnsetType) -> int:
    """The user for whom the caller changes something, or its own. Raises LedgerError like `seen_user`."""
    return _user(principal, user_id, others=manages(principal))


def _user(principal: Principal, user_id: int | UnsetType, *, others: bool) -> int:
    if user_id is not UNSET:
        if not others and user_id != principal.user_id:
            raise not_found("user")
        return user_id
    if principal.user_id is None:
        raise invalid("/user_id", "The token is of no user: name one.")
    return principal.user_id


def currency_scale(call: Call, currency: str) -> int:
    """The decimals of a currency: as the database knows it, as configured, or as ISO 4217 says.

    Raises LedgerError ``invalid_params`` if it is none of these, and StorageUnavailable.
    """
    scale = call.desk.books.facts().currencies.get(currency)
    if scale is None:
        scale = call.desk.config.currencies.get(currency)
    if scale is None:
        scale = iso_scale(currency)
    if scale is None:
        raise invalid("/currency", "There is no such currency here.")
    return scale
