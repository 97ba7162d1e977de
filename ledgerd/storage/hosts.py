"""Connections through a DSN with several hosts, of which one is the primary: ``postgresql://role@/bank?host=a,b``.

asyncpg goes through the hosts itself, but bounds all of them by one timeout: a first host that swallows packets would
keep the second one from being tried at all. And nothing would make the next connection go where the last one went. So
here each host gets its own timeout, and a generation stays with the host that its first connection found.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from msgspec import Struct

from ledgerd.masking import error_text
from ledgerd.storage.failures import Failure, classify


class Host(Struct, frozen=True):
    """One of a DSN's hosts: a name, an address, or the directory of a Unix socket."""

    name: str
    port: int | None


def hosts_of(dsn: str) -> list[Host]:
    """The hosts that a DSN lists, in its order; none if it leaves them to the environment. Raises ValueError."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    written = parts.netloc.rpartition("@")[2]
    if written:
        found = [_host(unquote(text)) for text in written.split(",")]
    else:
        found = [_host(text) for text in query.get("host", [""])[-1].split(",") if text]
    ports = [int(text) for text in query.get("port", [""])[-1].split(",") if text]
    if not ports:
        return found
    if len(ports) == 1:
        ports *= len(found)
    if len(ports) != len(found):
        raise ValueError("a connection string with several ports needs as many hosts")
    return [Host(host.name, port) for host, port in zip(found, ports, strict=True)]


def _host(text: str) -> Host:
    if text.startswith("/"):
        return Host(text, None)
    if text.startswith("["):
        name, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    return Host(name, int(port) if port else None)


class Route:
    """The way to the primary: which host it is, is found out by the first connection, and the later ones go there.

    Hosts in ``shunned`` are tried last.
    """

    def __init__(self, dsn: str, shunned: Collection[Host] = ()) -> None:
        self._dsn = dsn
        self._shunned = shunned
        self.host: Host | None = None

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect to the first host that is up and can be written to. Runs on the asyncio side.

        With a single host there is nothing to choose. ``options`` are asyncpg's; its ``timeout`` is for each host.
        Raises what asyncpg raises, and OSError when none of several can be had.
        """
        hosts = hosts_of(self._dsn)
        if len(hosts) < 2:
            return await asyncpg.connect(self._dsn, **options)
        if "target_session_attrs=" not in self._dsn:
            options["target_session_attrs"] = "read-write"
        reasons = []
        hosts.sort(key=self._shunned.__contains__)
        for host in hosts if self.host is None else [self.host]:
            try:
                connection = await asyncpg.connect(self._dsn, host=host.name, port=host.port, **options)
            except asyncpg.TargetServerAttributeNotMatched:
                reasons.append(f"{host.name}: up, but not to be written to")
            except Exception as error:
                if classify(error) not in (Failure.LOST, Failure.LOST_BEFORE):
                    raise
                reasons.append(f"{host.name}: {error_text(error)}")
            else:
                self.host = host
                return connection
        raise OSError("; ".join(reasons))
