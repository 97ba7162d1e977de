"""Methods about who the connection acts for."""

from __future__ import annotations

import structlog
from msgspec import UNSET, UnsetType

from ledgerd.engine.commands import Principal
from ledgerd.engine.views import user_view
from ledgerd.gateway.access import by
from ledgerd.gateway.authentication import new_secret, principal_of, secret_hash
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.clock import now_s, text_of
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import Nothing, SessionAuthenticate, SessionChangePassword, SessionLogin, SessionLogout
from ledgerd_protocol.results import Revoked, Session

log = structlog.get_logger(__name__)

_NOBODY = Session(authenticated=False, user=None, account_id=None, scopes=[], expires_at=None)


async def session_login(call: Call, params: SessionLogin) -> Session:
    """Answer `session_login`. The same error, after the same work, for an unknown user and a wrong password.

    A disabled user may sign in: it cannot spend, and it may see what it has.
    """
    desk = call.desk
    identified = await desk.credentials.check(params.email, params.password, call.caller.address)
    secret = new_secret()
    state = await desk.books.open_session(
        token_hash=secret_hash(secret),
        user_id=identified.user.user_id,
        password_hash=identified.password_hash,
        scopes=desk.config.sign_up_scopes,
        expires_at_s=now_s() + desk.config.session_ttl_s,
    )
    if state is None:
        raise LedgerError(ErrorCode.INVALID_CREDENTIALS)
    principal = principal_of(state)
    log.info("signed_in", address=call.caller.address, **principal.ids())
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
    log.info("tokens_revoked", tokens=revoked, **by(principal))
    call.caller.sign_out()
    return Revoked(revoked=revoked)


async def session_change_password(call: Call, params: SessionChangePassword) -> Revoked:
    """Answer `session_change_password`: how many other tokens of the user were revoked.

    All of them, because who changes a password may do it for fear that somebody else has signed in. The one in use
    stays, or the answer would be the last thing that its owner hears.
    """
    desk, principal = call.desk, call.principal
    if principal.user_id is None or principal.account_id is not None:
        raise LedgerError(ErrorCode.PERMISSION_DENIED, "Only a token of the whole user may change its password.")
    user = await desk.books.user(principal.user_id)
    email = None if user is None else user.email
    identified = await desk.credentials.check(email, params.password, call.caller.address)
    revoked = None
    if identified.user.user_id == principal.user_id:
        revoked = await desk.books.change_password(
            user_id=principal.user_id,
            old_hash=identified.password_hash,
            new_hash=await desk.passwords.hash(params.new_password),
            kept_token_id=principal.token_id,
        )
    if revoked is None:
        # The e-mail or the password has become another in the meantime.
        raise LedgerError(ErrorCode.INVALID_CREDENTIALS)
    desk.tokens.forget()
    log.info("password_changed", tokens=revoked, **by(principal))
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
    "session_change_password": Read(session_change_password, 64),
}
