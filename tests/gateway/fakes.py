"""A gateway with everything behind it made of memory, and clients that speak to it over memory streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from ledgerd.config import Config
from ledgerd.engine.commands import Command, Outcome, Posted, Principal, Unit
from ledgerd.engine.states import AccountState, MonitorState, Place
from ledgerd.gateway.server import Gateway
from ledgerd.gateway.tls import ServerTls
from ledgerd_protocol.messages import SubscribeOptions
from tests.gateway.fake_books import FakeBooks, FakeDirectory, record, side

HOST = "localhost:8710"

Pair = trio.StapledStream[Any, Any]


def posted(command: Command) -> Posted:
    """What the kernel would say to a command that it applies."""
    sides = [
        side(ref.account_id or 11, 1, direction)
        for ref, direction in ((command.debit, "debit"), (command.credit, "credit"))
        if ref is not None
    ]
    return Posted(
        record(
            command.transaction_id,
            sides,
            kind=command.kind,
            reference=command.reference,
            reason=command.reason,
            metadata=command.metadata,
        )
    )


class FakeRouter:
    """Keeps the units it is given, in order; answers each at once unless ``holding``."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.holding = False
        self.knows_facts = True
        self.gate: trio.Event | None = None
        self.outcome: Callable[[Command], Outcome] = posted

    @property
    def commands(self) -> list[Command]:
        return [command for unit in self.units for command in unit.commands]

    def try_route(self, unit: Unit) -> bool:
        if not self.knows_facts:
            return False
        self._take(unit)
        return True

    async def route(self, unit: Unit) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        self._take(unit)

    def _take(self, unit: Unit) -> None:
        self.units.append(unit)
        if not self.holding:
            self.answer(unit)

    def answer(self, unit: Unit) -> None:
        unit.answer([self.outcome(command) for command in unit.commands])

    async def taken(self, number: int) -> None:
        """Return when so many units have arrived."""
        await eventually(lambda: len(self.units) >= number)


class FakeSubscription:
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False


class FakeHub:
    """Remembers who subscribed to what; pushes one event at once, as a snapshot would come."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, tuple[Any, SubscribeOptions, list[AccountState]]] = {}
        self.made: list[FakeSubscription] = []
        self.ended: list[str] = []
        self.announced: list[AccountState] = []
        self.monitors: list[MonitorState] = []
        self.monitors_fit = True

    def subscribe(
        self,
        sink: Any,
        subscription_id: str,
        principal: Principal,
        channel: str,
        options: SubscribeOptions,
        accounts: list[AccountState],
        here: Place | None = None,
    ) -> FakeSubscription:
        self.subscriptions[subscription_id] = (sink, options, accounts)
        self.made.append(FakeSubscription(subscription_id))
        sink.push(event(subscription_id, {"type": "start"}))
        return self.made[-1]

    def unsubscribe(self, subscription: FakeSubscription) -> None:
        subscription.closed = True
        self.ended.append(subscription.name)

    def announce_account(self, state: AccountState) -> None:
        self.announced.append(state)

    def learn_monitor(self, state: MonitorState) -> None:
        self.monitors.append(state)

    def has_room_for_monitor(self) -> bool:
        return self.monitors_fit


def event(subscription_id: str, result: Any) -> bytes:
    return json.dumps(
        {
            "jsonrpc": "2.0",
            "method": "ledger_subscription",
            "params": {"subscription": subscription_id, "result": result},
        }
    ).encode()


async def eventually(condition: Callable[[], bool]) -> None:
    """Let everybody else run until the condition holds. Does not pass time."""
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it never came true")


# -- connections ------------------------------------------------------------------------------------------------------


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the streams that tests connect."""

    def __init__(self) -> None:
        self._connect, self._accept = trio.open_memory_channel[trio.abc.Stream](100)
        self.closed = False

    async def accept(self) -> trio.abc.Stream:
        return await self._accept.receive()

    async def aclose(self) -> None:
        self.closed = True
        self._accept.close()
        await trio.lowlevel.checkpoint()

    def connect(self) -> Pair:
        client, server = trio.testing.memory_stream_pair()
        self._connect.send_nowait(server)
        return client

    def connect_through(self, server: trio.abc.Stream) -> None:
        self._connect.send_nowait(server)


class Client:
    """A real WebSocket client."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self._ids = count(1)

    async def send(self, message: Any) -> None:
        await self.connection.send_message(message if isinstance(message, str | bytes) else json.dumps(message))

    async def receive(self) -> Any:
        return json.loads(await self.connection.get_message())

    async def ask(self, method: str, params: Any = None) -> int:
        """Send a request and return its id."""
        number = next(self._ids)
        request = {"jsonrpc": "2.0", "id": number, "method": method}
        await self.send(request if params is None else {**request, "params": params})
        return number

    async def call(self, method: str, params: Any = None) -> Any:
        """The result; raises Answered with the error."""
        number = await self.ask(method, params)
        reply = await self.receive()
        assert reply["id"] == number, reply
        if "error" in reply:
            raise Answered(reply["error"])
        return reply["result"]

    async def refused(self, method: str, params: Any = None) -> Any:
        """The error of a call that must fail."""
        try:
            result = await self.call(method, params)
        except Answered as answered:
            return answered.error
        raise AssertionError(f"it was answered with {result}")

    async def closed(self) -> tuple[int, str | None]:
        """How the daemon closes the connection, skipping what it says before."""
        try:
            while True:
                await self.connection.get_message()
        except ConnectionClosed as closed:
            return (0, None) if closed.reason is None else (closed.reason.code, closed.reason.reason)


async def open_client(nursery: trio.Nursery, stream: Any, **given: Any) -> Client:
    """A client on a stream. trio-websocket takes any stream, but says it takes sockets only."""
    return Client(await wrap_client_stream(nursery, stream, HOST, "/", **given))


class Answered(Exception):
    def __init__(self, error: Any) -> None:
        super().__init__(error)
        self.error = error


def text_frame(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    """A frame as a client would send it, masked with zeros."""
    length = len(payload)
    first = (0x80 if fin else 0) | opcode
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65_536:
        head = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


class Door:
    """A gateway that serves, and what is behind it."""

    def __init__(self, config: Config, nursery: trio.Nursery, tls: ServerTls | None = None) -> None:
        self.config = config
        self.tls = tls
        self.nursery = nursery
        self.books = FakeBooks()
        self.directory = FakeDirectory(self.books)
        self.router = FakeRouter()
        self.hub = FakeHub()
        self.listener = MemoryListener()
        self.gateway = Gateway(
            config,
            books=_Books(self.books),
            router=self.router,
            hub=self.hub,
            directory=self.directory,
            tls=tls,
        )

    async def client(self, secret: str | None = None, stream: trio.abc.Stream | None = None) -> Client:
        """A client, signed in with a header if a secret is given."""
        headers = [] if secret is None else [(b"Authorization", b"Bearer " + secret.encode())]
        return await open_client(self.nursery, stream or self.listener.connect(), extra_headers=headers)

    async def service(self) -> Client:
        return await self.client(self.books.token("service"))

    async def user(self, user_id: int = 1, *scopes: str, **given: Any) -> Client:
        return await self.client(self.books.token(*(scopes or ("user",)), user_id=user_id, **given))

    async def raw(self, secret: str | None = None) -> Pair:
        """A stream on which the handshake is done."""
        stream = self.listener.connect()
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        status, _ = await handshake(stream, headers)
        assert status == 101
        return stream


class _Books:
    """The fake books under the names of the real ones: `token` is a factory of the fakes and a method of the books."""

    def __init__(self, books: FakeBooks) -> None:
        self._books = books

    def __getattr__(self, name: str) -> Any:
        return getattr(self._books, {"token": "token_state", "users": "users_after"}.get(name, name))


async def handshake(stream: trio.abc.Stream, headers: Mapping[str, str | None]) -> tuple[int, dict[str, str]]:
    """Send a handshake by hand; the status and the headers of the answer. A header that is None is left out."""
    wanted: dict[str, str | None] = {
        "Host": HOST,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    lines = [f"{name}: {value}" for name, value in wanted.items() if value is not None]
    await stream.send_all(("GET / HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    return await read_answer(stream)


async def read_answer(stream: trio.abc.Stream) -> tuple[int, dict[str, str]]:
    """The status and the headers of an HTTP answer; 0 if the stream ended without one."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = await stream.receive_some()
        if not data:
            return 0, {}
        answer += data
    head, *rest = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    named = dict(line.split(": ", 1) for line in rest)
    return int(head.split()[1]), {name.lower(): value for name, value in named.items()}


async def frames_until_close(stream: trio.abc.Stream) -> tuple[list[bytes], int | None]:
    """The text messages that come, and the code of the close frame; None if the stream ends without one."""
    data = bytearray()
    texts: list[bytes] = []
    while True:
        try:
            more = await stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            more = b""
        data += more
        while len(data) >= 2:
            length, start = data[1] & 0x7F, 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(data[2:10], "big"), 10
            if len(data) < start + length:
                break
            payload = bytes(data[start : start + length])
            opcode = data[0] & 0x0F
            del data[: start + length]
            if opcode == 8:
                return texts, int.from_bytes(payload[:2], "big")
            if opcode == 1:
                texts.append(payload)
        if not more:
            return texts, None


@asynccontextmanager
async def open_door(**settings: Any) -> AsyncIterator[Door]:
    """A gateway that serves memory streams; everything ends with the block."""
    async with trio.open_nursery() as nursery:
        door = Door(Config(**settings), nursery)
        await nursery.start(door.gateway.serve, [door.listener])
        yield door
        nursery.cancel_scope.cancel()
