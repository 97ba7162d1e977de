"""Methods about users and their tokens."""

from __future__ import annotations

import structlog
from msgspec import UNSET

from ledgerd.engine.commands import Principal
from ledgerd.engine.states import TokenState, UserState
from ledgerd.engine.views import account_view, token_view, user_view
from ledgerd.gateway.access import by, covers, currency_scale, invalid, managed_user, manages, not_found, seen_user
from ledgerd.gateway.authentication import new_secret, secret_hash
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.clock import now_s, parse_time
from ledgerd.gateway.methods.pages import number_in, page_of
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import (
    TokenCreate,
    TokenList,
    TokenRevoke,
    UserDisable,
    UserEnable,
    UserGet,
    UserList,
    UserRegister,
    UserUpdate,
)
from ledgerd_protocol.results import Page, Registered, Revoked, TokenInfo, User

# -- users ------------------------------------------------------------------------------------------------------------


log = structlog.get_logger(__name__)

TOKEN_TTL_S_MAX = 100 * 366 * 86_400
"""Seconds since 1970 are exact to the microsecond that far, and have a year of four digits."""


async def user_register(call: Call, params: UserRegister) -> Registered:
    """Answer `user_register`: for services and operators, and for anybody while sign-up is open."""
    desk, principal = call.desk, call.signed_in
    trusted = principal is not None and principal.sees_all
    if not trusted and not desk.config.open_sign_up:
        raise LedgerError(ErrorCode.UNAUTHENTICATED if principal is None else ErrorCode.PERMISSION_DENIED)
    if not trusted:
        _check_complete(params)
    elif (params.email is UNSET) != (params.password is UNSET):
        missing = "/email" if params.email is UNSET else "/password"
        raise invalid(missing, "An e-mail and a password belong together.")
    currency = desk.config.default_currency if params.currency is UNSET else params.currency
    scale = currency_scale(call, currency)
    secret = new_secret()
    user, account, _ = await desk.books.register_user(
        name=params.name,
        email=None if params.email is UNSET else params.email,
        password_hash=None if params.password is UNSET else await desk.passwords.hash(params.password),
        currency=currency,
        scale=scale,
        token_hash=secret_hash(secret),
        scopes=desk.config.sign_up_scopes,
        expires_at_s=None,
    )
    desk.hub.announce_account(account)
    log.info("user_registered", user_id=user.user_id, account_id=account.account_id, **by(principal))
    return Registered(user=user_view(user), account=account_view(account), token=secret)


def _check_complete(params: UserRegister) -> None:
    """Raises LedgerError with everything that somebody who signs up must give and has not."""
    missing = [name for name in ("email", "password") if getattr(params, name) is UNSET]
    if missing:
        errors = [{"pointer": f"/{name}", "detail": "This parameter is required."} for name in missing]
        raise LedgerError(ErrorCode.INVALID_PARAMS, "E-mail and password are required.", errors=errors)


async def user_get(call: Call, params: UserGet) -> User:
    """Answer `user_get`."""
    return _found(await call.desk.books.user(seen_user(call.principal, params.user_id)))


async def user_list(call: Call, params: UserList) -> Page:
    """Answer `user_list`."""
    principal, books = call.principal, call.desk.books
    if not principal.sees_all:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token of one account may not list users.")
    return await page_of(
        call,
        "user_list",
        [],
        params.cursor,
        limit=params.limit,
        read=lambda after, limit: books.users(number_in(after), limit),
        view=user_view,
        key=lambda row: [row.user_id],
    )


async def user_update(call: Call, params: UserUpdate) -> User:
    """Answer `user_update`: the user as it is afterwards."""
    principal = call.principal
    user_id = managed_user(principal, params.user_id)
    if principal.account_id is not None:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token of one account may not change its user.")
    name, email = (None if value is UNSET else value for value in (params.name, params.email))
    return _found(await call.desk.books.update_user(user_id, name=name, email=email))


async def user_disable(call: Call, params: UserDisable) -> User:
    """Answer `user_disable`. Once answered, no daemon posts a debit, hold, bet or advance of the user any more."""
    return await _set_status(call, params.user_id, "disabled")


async def user_enable(call: Call, params: UserEnable) -> User:
    """Answer `user_enable`."""
    return await _set_status(call, params.user_id, "active")


async def _set_status(call: Call, user_id: int, status: str) -> User:
    if not manages(call.principal):
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token of one account may not disable or enable users.")
    user = _found(await call.desk.books.set_user_status(user_id, status))
    log.info("user_status_set", user_id=user_id, status=status, **by(call.principal))
    return user


def _found(user: UserState | None) -> User:
    """The user as the caller sees it. Raises LedgerError ``not_found``."""
    if user is None:
        raise not_found("user")
    return user_view(user)


# -- tokens -----------------------------------------------------------------------------------------------------------


async def token_create(call: Call, params: TokenCreate) -> TokenInfo:
    """Answer `token_create`: a token no wider than the caller's in scopes, user, account and time."""
    principal, scopes = call.principal, {str(scope) for scope in params.scopes}
    if not covers(principal, scopes):
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token may not have scopes that its maker has not.")
    expires_at_s = _expiry(principal, params)
    account_id = principal.account_id if params.account_id is UNSET else params.account_id
    user_id = principal.user_id if params.user_id is UNSET else managed_user(principal, params.user_id)
    if account_id is not None:
        user_id = await _owner(call, account_id, None if params.user_id is UNSET else params.user_id)
    if user_id is None and scopes.isdisjoint(("service", "operator")):
        raise invalid("/user_id", "A token with these scopes acts for a user: name one.")
    secret = new_secret()
    state = await call.desk.books.create_token(
        token_hash=secret_hash(secret),
        user_id=user_id,
        account_id=account_id,
        scopes=sorted(scopes),
        expires_at_s=expires_at_s,
        label=None if params.label is UNSET else params.label,
    )
    log.info(
        "token_created",
        token_id=state.token_id,
        user_id=user_id,
        account_id=account_id,
        scopes=sorted(scopes),
        **by(principal),
    )
    return token_view(state, secret)


def _expiry(principal: Principal, params: TokenCreate) -> float | None:
    """When the new token expires, in Unix seconds: as asked, but not after its maker."""
    if params.expires_at is UNSET:
        return principal.expires_at_s
    expires_at_s = parse_time(params.expires_at, "/expires_at").timestamp()
    if expires_at_s <= now_s():
        raise invalid("/expires_at", "This time has passed.")
    if expires_at_s > now_s() + TOKEN_TTL_S_MAX:
        raise invalid("/expires_at", "A token lasts 100 years at most; leave it out for one that does not expire.")
    if principal.expires_at_s is not None and expires_at_s > principal.expires_at_s:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "A token may not outlive its maker.")
    return expires_at_s


async def _owner(call: Call, account_id: int, user_id: int | None) -> int:
    """The owner of the account a token is to be limited to. Raises LedgerError ``not_found``."""
    principal = call.principal
    if principal.account_id is not None and account_id != principal.account_id:
        raise not_found("account")
    states = await call.desk.books.account_states([account_id])
    if user_id is None and not manages(principal):
        user_id = principal.user_id
    if not states or (user_id is not None and states[0].user_id != user_id):
        raise not_found("account")
    return states[0].user_id


async def token_list(call: Call, params: TokenList) -> Page:
    """Answer `token_list`. Who sees everything lists everybody's by leaving user_id out."""
    principal, books = call.principal, call.desk.books
    everybody = manages(principal) and params.user_id is UNSET
    user_id = None if everybody else managed_user(principal, params.user_id)
    return await page_of(
        call,
        "token_list",
        [user_id, principal.account_id],
        params.cursor,
        limit=params.limit,
        read=lambda after, limit: books.tokens(user_id, number_in(after), limit),
        view=lambda row: token_view(row) if _seen_token(principal, row) else None,
        key=lambda row: [row.token_id],
    )


def _seen_token(principal: Principal, state: TokenState) -> bool:
    """Whether the caller may know of a token: its user's, and with a token of one account only that account's.

    A token of no user knows only itself.
    """
    if manages(principal):
        return True
    if principal.account_id is not None and state.account_id != principal.account_id:
        return False
    if principal.user_id is None:
        return state.token_id == principal.token_id
    return state.user_id == principal.user_id


async def token_revoke(call: Call, params: TokenRevoke) -> Revoked:
    """Answer `token_revoke`."""
    books = call.desk.books
    state = await books.token(params.token_id)
    if state is None or not _seen_token(call.principal, state):
        raise not_found("token")
    revoked = await books.revoke_tokens(token_id=state.token_id)
    call.desk.tokens.forget()
    if revoked:
        log.info("token_revoked", token_id=state.token_id, user_id=state.user_id, **by(call.principal))
    return Revoked(revoked=revoked)


USER_BYTES_MAX = 3_072

METHODS = {
    "user_register": Read(user_register, 4_096),
    "user_get": Read(user_get, USER_BYTES_MAX),
    "user_list": Read(user_list, None),
    "user_update": Read(user_update, USER_BYTES_MAX),
    "user_disable": Read(user_disable, USER_BYTES_MAX),
    "user_enable": Read(user_enable, USER_BYTES_MAX),
    "token_create": Read(token_create, 3_072),
    "token_list": Read(token_list, None),
    "token_revoke": Read(token_revoke, 64),
}
