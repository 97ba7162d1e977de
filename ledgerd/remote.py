"""A daemon somewhere, and who one is there: what the commands that talk to one have in common.

A token is read from a file or from LEDGERD_TOKEN, never from the command line, where every user of the machine can
read it.
"""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Group, Parameter

from ledgerd.exits import Exit, Failed
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry, address_of

TALK = Group("Talk to one", sort_key=2)
"""Where the commands that use this stand in the help."""

DEFAULT_URL = "ws://127.0.0.1:8710"

RECONNECT_S = 30.0
"""How long one call waits for a daemon that went away while it was in flight."""


@Parameter(name="*")
@dataclass(frozen=True)
class Door:
    """Which daemon, and as whom."""

    url: Annotated[str, Parameter(env_var="LEDGERD_URL")] = DEFAULT_URL
    "WebSocket URL of the daemon."
    token_file: Path | None = None
    "File that holds the token. Without it LEDGERD_TOKEN is used; without both you are nobody."
    ca_file: Annotated[Path | None, Parameter(env_var="LEDGERD_CA_FILE")] = None
    "PEM file of the authorities to believe in a wss:// connection, instead of the system's."
    wait: float = 0.0
    "Seconds to wait for a daemon that is not there yet."

    @property
    def token(self) -> str | None:
        """The secret, or None for nobody. Raises Failed."""
        if self.token_file is None:
            return os.environ.get("LEDGERD_TOKEN") or None
        try:
            secret = self.token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Failed(f"the token file {self.token_file} cannot be read: {error}", Exit.USAGE) from error
        if not secret.startswith("lgd_") or len(secret.split()) != 1:
            raise Failed(f"{self.token_file} holds no ledgerd token (one line that begins with lgd_)", Exit.USAGE)
        return secret

    def connected(self, reconnect_s: float = RECONNECT_S) -> AbstractAsyncContextManager[Client]:
        """A client, which waits so long for a daemon that has gone away. Raises Failed."""
        ca_file = None if self.ca_file is None else str(self.ca_file)
        try:
            address_of(self.url, ca_file=ca_file)
        except ValueError as error:
            raise Failed(str(error), Exit.USAGE) from error
        patience = Retry(first_connect_s=self.wait, reconnect_s=reconnect_s)
        return open_client(self.url, token=self.token, retry=patience, ca_file=ca_file)


HERE = Door()
"""The daemon where `ledgerd dev` puts it."""


async def call_once(door: Door, method: str, members: dict[str, Any]) -> msgspec.Raw:
    """Connect, call one method, and leave. Raises Failed, and what `Client.call` raises."""
    if method in {"ledger_subscribe", "ledger_unsubscribe"}:
        raise Failed(f"{method} needs a connection that stays: use `ledgerd watch`", Exit.USAGE)
    async with door.connected() as client:
        return await client.call_raw(method, members)


def members_of(text: str) -> dict[str, Any]:
    """The members of a JSON object. Numbers keep their spelling: 10.10 must not become 10.1 on its way."""
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return {
            name: msgspec.json.decode(raw) if bytes(raw)[:1] == b'"' else msgspec.Raw(bytes(raw))
            for name, raw in members.items()
        }
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Failed(
            f"the parameters must be one JSON object, like '{{\"user_id\": 7}}': {error}", Exit.USAGE
        ) from error


async def all_tokens(door: Door, members: dict[str, Any]) -> list[dict[str, Any]]:
    """Every page of `token_list`."""
    items: list[dict[str, Any]] = []
    async with door.connected() as client:
        while True:
            page = msgspec.json.decode(await client.call_raw("token_list", members))
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            members = {**members, "cursor": page["next_cursor"]}
