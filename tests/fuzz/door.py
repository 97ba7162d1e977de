"""Target of the handshake: whoever is let in was to be let in, and whoever is not is told so in HTTP.

Either the headers are made up of good and bad ones, and a second, simpler judge says what must come of them. Or the
request is whatever bytes there are, and must only be answered in a documented way. Both are sent twice, whole and in
pieces, and both must come to the same; only what comes too early, behind a request, may come early enough or not.
"""

from __future__ import annotations

import base64
import time
from functools import partial
from typing import Any

import trio
import trio.testing
from msgspec import Struct

from ledgerd.metrics import SESSION_CRASHES
from tests.fuzz import schedule
from tests.fuzz.books import FuzzDoor, open_fuzz_door
from tests.fuzz.oracle import read
from tests.fuzz.source import Source
from tests.gateway.fakes import frames_until_close, text_frame

NOTHING = 0
SWITCHED = 101
STATUSES = {NOTHING, SWITCHED, 400, 401, 403, 426}

CONFIG: dict[str, Any] = {"public_hosts": ("ledger.example",), "allowed_origins": ("https://app.example",)}

HOSTS = ("ledger.example", "LEDGER.EXAMPLE:443", "evil.example", "", "ledger.example.evil", "a" * 64, "\xff")
ORIGINS = ("https://app.example", "https://evil.example", "null", "http://app.example", "https://app.example:444")
OFFERS = ("ledgerd.v1", "graphql-ws", "ledgerd.v2", "ledgerd.bearer.!!", "")
SECRET = "{secret}"
EXPIRING = "{expiring}"
AUTHORIZATIONS = (f"Bearer {SECRET}", f"bearer  {SECRET} ", "Bearer lgd_nope", f"Basic {SECRET}", "", "\xff\xfe")
NEEDED = (
    ("Connection", ("Upgrade", "keep-alive, upgrade", "close")),
    ("Upgrade", ("websocket", "WebSocket", "h2c")),
    ("Sec-WebSocket-Version", ("13", "12", "x")),
    ("Sec-WebSocket-Key", ("dGhlIHNhbXBsZSBub25jZQ==", "short", "")),
)
OTHERS = (
    ("X-Forwarded-For", "192.0.2.1"),
    ("Forwarded", "for=192.0.2.1"),
    ("Cookie", "token=lgd_nope"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ("Content-Length", "0"),
    ("Transfer-Encoding", "chunked"),
    ("Expect", "100-continue"),
    ("X-Long", "x" * 3_000),
)


class Request(Struct):
    """A request line's target, and headers in order."""

    target: str
    headers: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key == name]


def door(data: bytes) -> None:
    """A handshake is answered in a documented way; nobody is let in who is not to be; nothing crashes."""
    schedule.run(partial(_knock_twice, Source(data)), data)


async def _knock_twice(source: Source) -> None:
    crashes = SESSION_CRASHES._value.get()
    pieces = Source(source.take(5)).pieces
    made_up = not source.one_in(4)
    request = request_of(source) if made_up else None
    async with open_fuzz_door(CONFIG) as door:
        spoken = _spelled(request, door) if request is not None else source.rest()
        whole = await _knock(door, [spoken] if spoken else [])
        cut = await _knock(door, pieces(spoken))
        if not spoken.partition(b"\r\n\r\n")[2]:
            assert whole == cut, (whole, cut)
        status, signed_in = whole
        assert status in STATUSES, status
        if request is not None:
            _judge(request, status, signed_in=signed_in)
        assert (await _knock(door, [_spelled(good_request(), door)])) == (SWITCHED, False), "others are let in"
        assert door.gateway.connections == 0
    assert SESSION_CRASHES._value.get() == crashes, "the session crashed"


# -- what is said -----------------------------------------------------------------------------------------------------


def good_request() -> Request:
    """A request that is let in, as nobody."""
    return Request("/", [("Host", HOSTS[0]), *((name, values[0]) for name, values in NEEDED)])


def request_of(source: Source) -> Request:
    """A request of which nearly everything is as it should be."""
    request = Request(source.pick(["/", "/any/path?token=lgd_nope", "*", "http://ledger.example/"]), [])
    for name, values in (("Host", HOSTS), *NEEDED):
        for _ in range(source.pick([1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 2])):
            request.headers.append((name, source.pick(values) if source.one_in(6) else values[0]))
    for name, values in (
        ("Origin", ORIGINS),
        ("Authorization", AUTHORIZATIONS),
        ("Sec-WebSocket-Protocol", (*OFFERS, f"ledgerd.bearer.{EXPIRING}", f"ledgerd.bearer.{SECRET}")),
    ):
        for _ in range(source.pick([0, 1, 1, 2])):
            value = source.mostly(values)
            if name == "Sec-WebSocket-Protocol" and source.one_in(2):
                value = f"{value}, {source.mostly([f'ledgerd.bearer.{EXPIRING}', *OFFERS])}"
            request.headers.append((name, value))
    if source.one_in(4):
        request.headers.insert(source.below(9), source.pick(OTHERS))
    return request


def _spelled(request: Request, door: FuzzDoor) -> bytes:
    secret = door.token("service")
    expiring = door.books.token("service", expires_at_s=time.time() + 600)
    lines = [f"GET {request.target} HTTP/1.1"]
    for name, value in request.headers:
        in_protocol = name == "Sec-WebSocket-Protocol"
        forms = [base64.urlsafe_b64encode(one.encode()).decode().rstrip("=") for one in (secret, expiring)]
        given = forms if in_protocol else [secret, expiring]
        lines.append(f"{name}: {value.replace(SECRET, given[0]).replace(EXPIRING, given[1])}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# -- what comes of it -------------------------------------------------------------------------------------------------


async def _knock(door: FuzzDoor, pieces: list[bytes]) -> tuple[int, bool]:
    """The status, and whether the client is somebody then."""
    stream = door.listener.connect()
    heard = bytearray()
    for piece in pieces:
        await trio.testing.wait_all_tasks_blocked()
        try:
            await stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            break
    with trio.move_on_after(60):
        while b"\r\n\r\n" not in heard:
            more = await _heard(stream)
            if not more:
                break
            heard += more
    status = int(heard.split()[1]) if heard else NOTHING
    signed_in = status == SWITCHED and await _signed_in(stream)
    await trio.aclose_forcefully(stream)
    await trio.testing.wait_all_tasks_blocked()
    return status, signed_in


async def _heard(stream: Any) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def _signed_in(stream: Any) -> bool:
    await stream.send_all(text_frame(b'{"jsonrpc":"2.0","id":1,"method":"session_status"}'))
    await stream.send_all(text_frame(b"\x03\xe8", opcode=8))
    texts, _ = await frames_until_close(stream)
    return bool(read(texts[0].decode()).get("result").get("authenticated"))


def _judge(request: Request, status: int, *, signed_in: bool) -> None:
    """By the specification: section "Connecting", and who may sign in how."""
    hosts = [host.lower() for host in request.values("Host")]
    offers = [offer.strip() for line in request.values("Sec-WebSocket-Protocol") for offer in line.split(",")]
    bearers = [offer.removeprefix("ledgerd.bearer.") for offer in offers if offer.startswith("ledgerd.bearer.")]
    tokens = request.values("Authorization") + bearers
    right = {f"Bearer {SECRET}", f"bearer  {SECRET} ", EXPIRING}
    welcome = (
        hosts in (["ledger.example"], ["ledger.example:443"])
        and set(request.values("Origin")) <= {"https://app.example"}
        and (not any(offers) or "ledgerd.v1" in offers)
        and len(tokens) <= 1
        and set(tokens) <= right
    )
    if not welcome:
        assert status != SWITCHED, request
        assert status >= 400 or not _is_usual(request), request
    if status == SWITCHED:
        assert signed_in == bool(tokens), request
        return
    assert not (welcome and _is_usual(request)), (status, request)


def _is_usual(request: Request) -> bool:
    """Whether nothing is wrong with the request as HTTP and as a request for a WebSocket."""
    usual = {
        name: [values[0], values[1]] if name in ("Connection", "Upgrade") else [values[0]] for name, values in NEEDED
    }
    needed = all(len(given := request.values(name)) == 1 and given[0] in usual[name] for name in usual)
    names = {name for name, _ in OTHERS[4:]}
    plain = all(value.isascii() for _, value in request.headers) and "" not in request.values("Sec-WebSocket-Protocol")
    empty = any("" in (part.strip() for part in line.split(",")) for line in request.values("Sec-WebSocket-Protocol"))
    hosts = request.values("Host")
    return (
        needed
        and plain
        and not empty
        and len(hosts) == 1
        and len(hosts[0]) < 64
        and not names & {name for name, _ in request.headers}
    )
