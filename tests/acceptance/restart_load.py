"""Clients that come, move money and stay while a daemon is restarted. A script: it runs on the machine of the daemon.

    python restart_load.py ws://127.0.0.1:8710/ TOKEN_FILE STOP_FILE

Some move money over connections that are kept, and some only come, say hello and leave, all until STOP_FILE exists.
Prints one JSON object: how often somebody came and was refused, and the ids of all transfers that were acknowledged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio
import trio_websocket

from ledgerd_protocol.client import open_client

MOVERS = 8
COMERS = 4
GREETING_S = 30


class Load:
    """What was seen."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.came = 0
        self.refused: list[str] = []
        self.cut_short = 0
        self.acknowledged: list[str] = []
        self.connections = 0

    async def move(self, source: int, destination: int) -> None:
        """Transfer one cent after another, each until it is acknowledged."""
        async with open_client(self.url, token=self.token) as client:
            try:
                while True:
                    sent = await client.call(
                        "transfer", source_account_id=source, destination_account_id=destination, amount="0.01"
                    )
                    self.acknowledged.append(str(sent.transaction_id))
            finally:
                self.connections += client.connections

    async def come(self) -> None:
        """Connect, shake hands, leave."""
        host, _, port = self.url.removeprefix("ws://").rstrip("/").rpartition(":")
        while True:
            try:
                stream = await trio.open_tcp_stream(host, int(port))
            except OSError as error:
                self.refused.append(str(error))
                await trio.sleep(0.01)
                continue
            self.came += 1
            async with stream:
                try:
                    with trio.fail_after(GREETING_S):
                        async with trio.open_nursery() as nursery:
                            socket = await trio_websocket.wrap_client_stream(nursery, stream, host, "/")
                            await socket.aclose()
                except* (trio_websocket.HandshakeError, trio_websocket.ConnectionClosed, OSError):
                    self.cut_short += 1  # it was taken just before the daemon stopped: a client tries again
            await trio.sleep(0.005)


async def main(url: str, token: str, stop_file: trio.Path) -> None:
    load = Load(url, token)
    async with open_client(url, token=load.token) as operator:
        accounts = []
        for _ in range(2 * MOVERS):
            opened = await operator.call("user_register", name="Mover")
            accounts.append(opened.account.account_id)
            await operator.call("credit", account_id=accounts[-1], amount="1000.00")
    async with trio.open_nursery() as nursery:
        for source, destination in zip(accounts[::2], accounts[1::2], strict=True):
            nursery.start_soon(load.move, source, destination)
        for _ in range(COMERS):
            nursery.start_soon(load.come)
        while not await stop_file.exists():  # noqa: ASYNC110  the one who makes it is another process
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    sys.stdout.write(json.dumps({name: value for name, value in vars(load).items() if name not in ("url", "token")}))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]).read_text().strip(), trio.Path(sys.argv[3]))
