"""Methods about who the connection acts for."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from ledgerd.engine.ports import Principal
from ledgerd.engine.views import user_view
from ledgerd.gateway.authentication import new_secret, principal_of, secret_hash
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.clock import now_s, text_of
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Nothing, SessionAuthenticate, SessionLogin, SessionLogout
from ledgerd_protocol.results import Revoked, Session

_NOBODY = Session(authenticated=False, user=None, account_id=None, scopes=[], expires_at=None)


async def session_login(call: Call, params: SessionLogin) -> Session:
    """Answer `session_login`. The same error, after the same work, for an unknown user and a wrong password."""
    desk = call.desk
    keys = (("email", params.email.casefold()), ("address", call.caller.address))
    wait_s = max(desk.login_failures.wait_s(key) for key in keys)
    if wait_s > 0:
        raise LedgerError(ErrorCode.RATE_LIMITED, retry_after_ms=int(wait_s * 1000) + 1)
    material = await desk.books.login_material(params.email)
    if not await desk.passwords.matches(None if material is None else material[1], params.password) or not material:
        for key in keys:
            desk.login_failures.take(key)
        raise LedgerError(ErrorCode.INVALID_CREDENTIALS)
    user = material[0]
    if user.status == "disabled":
        raise LedgerError(ErrorCode.USER_DISABLED)
    secret = new_secret()
    state = await desk.books.create_token(
        token_hash=secret_hash(secret),
        user_id=user.user_id,
        account_id=None,
        scopes=desk.config.sign_up_scopes,
        expires_at_s=now_s() + desk.config.session_ttl_s,
        label="session",
    )
    principal = principal_of(state)
    call.caller.sign_in(principal)
    return await _session(call, principal, secret)


async def session_authenticate(call: Call, params: SessionAuthenticate) -> Session:
    """Answer `session_authenticate`."""
    principal = await call.desk.tokens.principal(params.token)
    call.caller.sign_in(principal)
    return await _session(call, principal)


async def session_status(call: Call, params: Nothing) -> Session:  # noqa: ARG001
    """Answer `session_status`."""
    principal = call.signed_in
    return _NOBODY if principal is None else await _session(call, principal)


async def session_logout(call: Call, params: SessionLogout) -> Revoked:
    """Answer `session_logout`: the token is revoked, or all of its user's; the connection acts for nobody."""
    principal = call.signed_in
    if principal is None:
        raise LedgerError(ErrorCode.UNAUTHENTICATED)
    books = call.desk.books
    if params.all and principal.account_id is None and principal.user_id is not None:
        revoked = await books.revoke_tokens(user_id=principal.user_id)
    elif params.all:
        # A token of one account is no wider than that account, and a token of no user stands alone.
        raise LedgerError(ErrorCode.PERMISSION_DENIED)
    else:
        revoked = await books.revoke_tokens(token_id=principal.token_id)
    call.desk.tokens.forget()
    call.caller.sign_out()
    return Revoked(revoked=revoked)


async def _session(call: Call, principal: Principal, secret: str | UnsetType = UNSET) -> Session:
    user = None if principal.user_id is None else await call.desk.books.user(principal.user_id)
    return Session(
        authenticated=True,
        user=None if user is None else user_view(user),
        account_id=principal.account_id,
        scopes=sorted(principal.scopes),
        expires_at=None if principal.expires_at_s is None else text_of(principal.expires_at_s),
        token=secret,
    )


SESSION_BYTES_MAX = 4_096

METHODS = {
    "session_login": Read(session_login, SESSION_BYTES_MAX, alone=True),
    "session_authenticate": Read(session_authenticate, SESSION_BYTES_MAX, alone=True),
    "session_status": Read(session_status, SESSION_BYTES_MAX),
    "session_logout": Read(session_logout, 64, alone=True),
}
