"""One connection that sends command after command without waiting, until it is lost. Nothing is ever sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from ledgerd_loadtest.chaos.desk import CALL_S, Desk, answered, refused
from ledgerd_loadtest.chaos.history import Operation
from ledgerd_loadtest.lean_socket import LeanSocket, connect
from ledgerd_loadtest.socket_client import ConnectionFailed
from ledgerd_protocol.codec import Reply, decode_reply, encode_request
from ledgerd_protocol.errors import LedgerError

DEPTH = 8
"""Commands under way at once."""

ROUNDS = 40
"""After so many times that depth the connection is left, for another daemon."""

BREATH_S = 0.25


async def send_in_order(
    desk: Desk, line: str, daemon: int, url: str, token: str, make: Callable[[], dict[str, Any]]
) -> None:
    """Open a connection and send transfers over it, several at a time; returns when it is lost or has done enough.

    ``make`` answers the parameters of the next transfer.
    """
    try:
        socket = await connect(url, token)
    except (ConnectionFailed, OSError):
        return
    try:
        for number in range(ROUNDS):
            if not await _one_round(desk, socket, line, daemon, make, number * DEPTH):
                return
            await trio.sleep(BREATH_S)
    except (ConnectionFailed, OSError):
        return
    finally:
        socket.close()


async def _one_round(
    desk: Desk, socket: LeanSocket, line: str, daemon: int, make: Callable[[], dict[str, Any]], first: int
) -> bool:
    waiting: dict[object, Operation] = {}
    with trio.move_on_after(CALL_S):
        for place in range(first, first + DEPTH):
            operation = desk.begin("orderly", line, daemon, "transfer", make())
            operation.in_order = place
            waiting[place] = operation
            await socket.send(encode_request(place, "transfer", operation.params))
        while waiting:
            for message in await socket.receive():
                reply = decode_reply(message)
                if isinstance(reply, Reply) and reply.id in waiting:
                    _settle(waiting.pop(reply.id), reply)
    return not waiting


def _settle(operation: Operation, reply: Reply) -> None:
    if reply.result is None:
        refused(operation, LedgerError.from_wire(reply.error or {}))
    else:
        answered(operation, msgspec.json.decode(reply.result))
