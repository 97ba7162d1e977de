"""Where a run takes place: the cluster, the daemons, and the proxies in front of both. Nothing here breaks anything.

client ──TCP── doors[i] ──TCP── daemons[i] ──TCP── wells[i] ──Unix── cluster
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from ledgerd_loadtest.chaos.clock import Clock, compile_clock
from ledgerd_loadtest.chaos.cluster import Cluster
from ledgerd_loadtest.chaos.proxy import Proxy
from ledgerd_loadtest.house import LEDGERD, ServedDaemon

LANE = "lane"
"""The mark of the connections to the database over which money is posted."""

_MARKS = {LANE: b"ledgerd.post("}
_READY_FOR_QUERY = b"Z\x00\x00\x00\x05I"

SETTINGS = {"drain_timeout_s": "3"}


class Arena:
    """One cluster and its daemons, all reached through proxies."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.daemons: list[ServedDaemon] = []
        self.doors: list[Proxy] = []
        self.wells: list[Proxy] = []
        self.urls: list[str] = []
        self.dying: set[int] = set()
        self.ended_wrongly: list[str] = []
        self.clocks: list[Clock] = []
        self._clock_library = compile_clock(directory)

    @property
    def token(self) -> str:
        """The secret of an operator's token."""
        return self.cluster.token

    @property
    def proxies(self) -> list[Proxy]:
        """All of them."""
        return [*self.doors, *self.wells]

    def log_of(self, number: int) -> Path:
        """Where a daemon writes its log."""
        return self.directory / f"daemon-{number}.log"

    async def start_daemons_again(self, daemons: Sequence[ServedDaemon]) -> None:
        """Start those that do not run, and wait until they listen. Raises DaemonDidNotStart."""
        for daemon in daemons:
            if daemon.ended is not None:
                daemon.start()
        for daemon in daemons:
            await daemon.ready()
            self.dying.discard(daemon.number)

    async def restore(self) -> None:
        """Undo whatever was done: everything runs, and nothing is in the way. Raises ClusterFailed, DaemonDidNotStart.

        A daemon that ended because its database was not fit for it is started again, as systemd would.
        """
        self.cluster.free_disk()
        if self.cluster.starved:
            await self.cluster.stop()
        for clock in self.clocks:
            clock.set(0)
        await self.cluster.ready()
        for proxy in self.proxies:
            proxy.clear()
        for daemon in self.daemons:
            self.cluster.signal(signal.SIGCONT, daemon.pid)
            if daemon.number in self.dying:
                daemon.remove()  # it may be about to end
        await self.start_daemons_again(self.daemons)

    def _environment(self, number: int) -> Mapping[str, str]:
        if self._clock_library is None:
            return {}
        self.clocks.append(Clock(self._clock_library, self.directory / f"daemon-{number}.clock"))
        return self.clocks[number].environment

    async def _add_daemon(self, nursery: trio.Nursery, launcher: Sequence[str]) -> None:
        number = len(self.daemons)
        well = Proxy(
            partial(trio.open_unix_socket, str(self.cluster.socket)),
            marks=_MARKS,
            whole=lambda answer: answer.endswith(_READY_FOR_QUERY),
        )
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = await nursery.start(well.run, listener)
        daemon = ServedDaemon(
            number,
            f"postgresql://ledgerd@127.0.0.1:{port}/ledgerd?sslmode=disable",
            SETTINGS,
            self.log_of(number),
            launcher=launcher,
            environment=self._environment(number),
        )
        door = Proxy(partial(_dial_tcp, daemon.port))
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = await nursery.start(door.run, listener)
        self.daemons.append(daemon)
        self.wells.append(well)
        self.doors.append(door)
        self.urls.append(f"ws://127.0.0.1:{port}")


@asynccontextmanager
async def open_arena(
    cluster: Cluster,
    directory: Path,
    daemons: int,
    *,
    launchers: Sequence[Sequence[str]] = (),
) -> AsyncIterator[Arena]:
    """The proxies run and the daemons are there, not yet started. Whatever happens, the daemons are gone at the end.

    ``launchers`` are per daemon, where they differ from the usual.
    """
    arena = Arena(cluster, directory)
    async with trio.open_nursery() as nursery:
        try:
            for number in range(daemons):
                launcher = launchers[number] if number < len(launchers) else LEDGERD
                await arena._add_daemon(nursery, launcher)  # noqa: SLF001  one module
            yield arena
        finally:
            for daemon in arena.daemons:
                daemon.remove()
            nursery.cancel_scope.cancel()


async def _dial_tcp(port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream
