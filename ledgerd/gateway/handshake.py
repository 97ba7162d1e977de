"""What a client must say to be let in: Host, Origin, subprotocols, a token.

A browser sends Origin and cannot send Authorization, so a page of somebody else's site is refused by its Origin, and a
name that somebody else points at this address is refused by its Host. Tokens come in a header or, for browsers, in a
subprotocol; never in the URL, which ends up in logs, and never in a cookie, which browsers send unasked.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

from msgspec import Struct
from trio_websocket import WebSocketRequest

from ledgerd.config import Config
from ledgerd.engine.commands import Principal
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.gateway.authentication import Tokens
from ledgerd.gateway.clock import now_s
from ledgerd.gateway.places import Reason
from ledgerd_protocol.errors import LedgerError

SUBPROTOCOL = "ledgerd.v1"
BEARER_SUBPROTOCOL = "ledgerd.bearer."

BROWSER_TOKEN_TTL_MAX_S = 86_400.0
"""A token in a subprotocol may have been seen by whatever logs headers: it must expire this soon."""

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Refusal(Exception):
    """The handshake is answered with an HTTP error: ``status`` and one line of ``text``. ``reason`` is for counting."""

    def __init__(
        self, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = (), *, reason: Reason = "handshake"
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.text = text
        self.headers = list(headers)


class Admission(Struct, frozen=True):
    """What the handshake is answered with, and whom the connection acts for."""

    subprotocol: str | None
    principal: Principal | None


class Doorkeeper:
    """Judges handshakes."""

    def __init__(self, config: Config, tokens: Tokens) -> None:
        self._tokens = tokens
        self._own_hosts = {*_LOOPBACK_NAMES, config.listen.lower(), config.listen.lower().rpartition(":")[0]}
        self._own_origins: set[str] = set()
        self.allow_origin(f"http://{config.http}")
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Go by these settings from now on."""
        self._hosts = {host.lower() for host in config.public_hosts} or self._own_hosts
        self._origins = {origin.rstrip("/") for origin in config.allowed_origins}

    def allow_host(self, host: str) -> None:
        """Serve under this name, ``HOST:PORT``, unless public_hosts says which: an address that was handed over."""
        self._own_hosts |= {host.lower(), host.lower().rpartition(":")[0]}

    def allow_origin(self, origin: str) -> None:
        """Let pages of this origin connect; the daemon's own HTTP door is told here once its port is known."""
        self._own_origins.add(origin)
        scheme, _, place = origin.partition("://")
        host, _, port = place.rpartition(":")
        if host in _LOOPBACK_NAMES:
            self._own_origins |= {f"{scheme}://{name}:{port}" for name in _LOOPBACK_NAMES}

    async def judge(self, request: WebSocketRequest, host: str) -> Admission:
        """Let the client in, or raise Refusal. ``host`` is the Host header, which the request does not show."""
        self._check_host(host)
        self._check_origin(_values(request.headers, b"origin"))
        offers = request.proposed_subprotocols
        if offers and SUBPROTOCOL not in offers:
            raise Refusal(400, f"offer the subprotocol {SUBPROTOCOL}, or none")
        principal = await self._principal(_values(request.headers, b"authorization"), offers)
        return Admission(SUBPROTOCOL if offers else None, principal)

    def _check_host(self, host: str) -> None:
        named = host.lower()
        name, colon, port = named.rpartition(":")
        if not colon or not port.isdigit():
            name = named
        if named not in self._hosts and name not in self._hosts:
            raise Refusal(403, "this host name is not served here; see public_hosts")

    def _check_origin(self, origins: list[bytes]) -> None:
        for origin in origins:
            if origin.decode("latin-1") not in self._origins | self._own_origins:
                raise Refusal(403, "this origin may not connect; see allowed_origins")

    async def _principal(self, headers: list[bytes], offers: Iterable[str]) -> Principal | None:
        bearers = [offer.removeprefix(BEARER_SUBPROTOCOL) for offer in offers if offer.startswith(BEARER_SUBPROTOCOL)]
        if len(headers) + len(bearers) > 1:
            raise Refusal(400, "give one token")
        if headers:
            return await self._known(_from_header(headers[0]))
        if not bearers:
            return None
        principal = await self._known(_from_subprotocol(bearers[0]))
        if principal.expires_at_s is None or principal.expires_at_s > now_s() + BROWSER_TOKEN_TTL_MAX_S:
            raise _unauthorized("a token in a subprotocol must expire within 24 hours")
        return principal

    async def _known(self, secret: str) -> Principal:
        try:
            return await self._tokens.principal(secret)
        except LedgerError as error:
            raise _unauthorized(error.code.text) from None
        except StorageUnavailable:
            raise Refusal(503, "the database is not reachable right now", [(b"Retry-After", b"1")]) from None


def forwarded_for(request: WebSocketRequest) -> list[bytes]:
    """The values of all X-Forwarded-For headers, in order."""
    return _values(request.headers, b"x-forwarded-for")


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]


def _from_header(value: bytes) -> str:
    scheme, _, secret = value.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("the scheme of Authorization is Bearer")
    return secret.strip()


def _from_subprotocol(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise _unauthorized("the token of the subprotocol is not base64url") from None


def _unauthorized(text: str) -> Refusal:
    return Refusal(401, text, [(b"WWW-Authenticate", b"Bearer")])
