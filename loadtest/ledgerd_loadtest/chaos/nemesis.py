"""Who breaks things: faults drawn from a seeded bag, one after the other, each undone before the next but one.

Rules of this file:

- A fault is a coroutine that breaks something, waits, and mends it. If it is cancelled half-way, `Arena.restore` mends.
- A bag holds every kind once: none is forgotten by chance, however short the run.
- What a machine cannot do is not tried, and the report says why.
- Real signals and real sockets, no switches in the daemon.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from ledgerd_loadtest.baseline import BaselineFailed, terminate_backends, value
from ledgerd_loadtest.chaos.arena import LANE, Arena
from ledgerd_loadtest.chaos.history import Fault
from ledgerd_loadtest.chaos.proxy import Link, Proxy, Way, Weather
from ledgerd_loadtest.house import ServedDaemon

COMMIT_WITHIN_MS = 2_000
"""How long the server looks for a commit under way before it ends any connection that posts."""

_AT_COMMIT = f"""
DO $$
DECLARE
    v_pid integer;
    v_until CONSTANT timestamptz := clock_timestamp() + interval '{COMMIT_WITHIN_MS} milliseconds';
BEGIN
    WHILE v_pid IS NULL AND clock_timestamp() < v_until LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT a.pid INTO v_pid FROM pg_stat_activity AS a
        WHERE a.application_name = 'ledgerd' AND a.query LIKE '%ledgerd.post(%' AND a.state = 'active'
            AND a.wait_event IN ('CommitDelay', 'WalSync', 'WalWrite', 'WALSync', 'WALWrite')
        LIMIT 1;
        PERFORM pg_sleep(0.001);
    END LOOP;
    IF v_pid IS NULL THEN
        SELECT a.pid INTO v_pid FROM pg_stat_activity AS a
        WHERE a.application_name = 'ledgerd' AND a.query LIKE '%ledgerd.post(%' ORDER BY a.state LIMIT 1;
    END IF;
    PERFORM pg_terminate_backend(v_pid);
END $$
"""  # noqa: S608  a number of our own
"""Looked for inside the server: by the time that a client has seen a commit under way, it is over."""

FEW_CONNECTIONS = {
    "max_connections": "7",
    "superuser_reserved_connections": "2",
    "reserved_connections": "0",
    "max_locks_per_transaction": "1000",  # of locks there are enough: daemons look before they serve
}
"""Fewer than two daemons ask for, and two left for us."""

FEW_LOCKS = {
    "max_connections": "16",
    "max_locks_per_transaction": "10",
    "autovacuum_worker_slots": "1",
    "max_worker_processes": "1",
}
"""Room for some hundreds of locks in all, while one call of a daemon may ask for a thousand."""

_HOLD_ALL_LOCKS = """
DO $$
BEGIN
    BEGIN
        PERFORM pg_advisory_lock(-n) FROM generate_series(1, 1000000) AS n;
    EXCEPTION WHEN out_of_memory THEN NULL;
    END;
    PERFORM pg_sleep(3);
END $$
"""
"""Locks of a session outlive the statement that could not have more of them."""

CLOCK_JUMPS_S = (-7_200, -61, 61, 7_200)
"""Less than a day, which is how long the cursor of a report is good for."""


class Nemesis:
    """Causes faults in an arena and keeps what it did."""

    def __init__(self, arena: Arena, faults: list[Fault], dice: random.Random) -> None:
        self._arena = arena
        self._faults = faults
        self._dice = dice
        self.kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "daemon killed": self._kill_daemon,
            "daemon frozen": self._freeze_daemon,
            "all daemons killed": self._kill_daemons,
            "rolling restart": self._rolling_restart,
            "clock of a daemon jumps": self._jump_clock,
            "backend killed, so that PostgreSQL starts again": self._kill_backend,
            "backend frozen": self._freeze_backend,
            "backend terminated at COMMIT": self._terminate_at_commit,
            "connections terminated": self._terminate,
            "PostgreSQL stopped at once": self._stop_postgres,
            "PostgreSQL killed": self._kill_postgres,
            "PostgreSQL frozen": self._freeze_postgres,
            "disk full": self._fill_disk,
            "lock table full": self._hold_all_locks,
            "too few connections": partial(self._starve, FEW_CONNECTIONS),
            "too few locks": partial(self._starve, FEW_LOCKS),
        }
        for place, proxies in (("client and daemon", arena.doors), ("daemon and database", arena.wells)):
            for name, fault in self._network(proxies).items():
                self.kinds[f"{name} between {place}"] = fault
        self.skipped = self._not_here()

    async def run(self, mean_s: float, only: Sequence[str] = ()) -> None:
        """Break things for ever, with a pause of about so long in between; over at once if nothing here can be."""
        possible = [kind for kind in (only or self.kinds) if kind not in self.skipped]
        bag: list[str] = []
        while possible:
            await trio.sleep(self._dice.expovariate(1 / mean_s))
            bag = bag or self._dice.sample(possible, len(possible))
            await self.cause(bag.pop())

    async def cause(self, kind: str) -> None:
        """One fault, from its beginning to its end."""
        began_s = time.monotonic()
        detail = await self.kinds[kind]()
        self._faults.append(Fault(kind=kind, began_s=began_s, ended_s=time.monotonic(), detail=detail))

    def _not_here(self) -> dict[str, str]:
        skipped = {}
        if not self._arena.cluster.own_disk:
            skipped["disk full"] = "it takes root to mount a small file system"
        if not self._arena.clocks:
            skipped["clock of a daemon jumps"] = "it takes Linux and a C compiler"
        return skipped

    # -- daemons ---------------------------------------------------------------------------------------------------

    def _one(self) -> ServedDaemon:
        return self._dice.choice(self._arena.daemons)

    async def _kill_daemon(self) -> str:
        return await self._kill([self._one()])

    async def _kill_daemons(self) -> str:
        return await self._kill(self._arena.daemons)

    async def _kill(self, daemons: Sequence[ServedDaemon]) -> str:
        for daemon in daemons:
            self._arena.dying.add(daemon.number)
            daemon.kill()
        await trio.sleep(self._dice.uniform(0, 1.5))
        await self._arena.start_daemons_again(daemons)
        return ", ".join(f"daemon {daemon.number}" for daemon in daemons)

    async def _freeze_daemon(self) -> str:
        daemon, seconds = self._one(), self._dice.uniform(0.3, 7)
        await self._frozen([daemon.pid], seconds)
        return f"daemon {daemon.number} for {seconds:.1f} s"

    async def _rolling_restart(self) -> str:
        for daemon in self._arena.daemons:
            self._arena.dying.add(daemon.number)
            status = await daemon.stop()
            if status != 0:
                self._arena.ended_wrongly.append(f"daemon {daemon.number} ended with {status} after SIGTERM")
            await self._arena.start_daemons_again([daemon])
        return ""

    async def _jump_clock(self) -> str:
        number, jump_s = self._dice.randrange(len(self._arena.clocks)), self._dice.choice(CLOCK_JUMPS_S)
        self._arena.clocks[number].set(jump_s)
        await trio.sleep(self._dice.uniform(1, 4))
        self._arena.clocks[number].set(0)
        return f"daemon {number} by {jump_s} s, and back"

    # -- the database ----------------------------------------------------------------------------------------------

    async def _kill_backend(self) -> str:
        return await self._with_a_backend(lambda pid: self._arena.cluster.signal(signal.SIGKILL, pid))

    async def _freeze_backend(self) -> str:
        backends, seconds = self._arena.cluster.backends("ledgerd"), self._dice.uniform(0.3, 8)
        if not backends:
            return "there was none"
        await self._frozen([self._dice.choice(backends)], seconds)
        return f"for {seconds:.1f} s"

    async def _with_a_backend(self, act: Callable[[int], None]) -> str:
        backends = self._arena.cluster.backends("ledgerd")
        if not backends:
            return "there was none"
        act(self._dice.choice(backends))
        await trio.sleep(0.2)
        await self._arena.cluster.ready()
        return ""

    async def _terminate_at_commit(self) -> str:
        return await self._ask(_AT_COMMIT)

    async def _terminate(self) -> str:
        kind = self._dice.choice(("listener", "lane", "any"))
        count = self._dice.choice((1, 1, 1_000))
        try:
            ended = await trio.to_thread.run_sync(terminate_backends, self._arena.cluster.dsn, kind, count)
        except (BaselineFailed, OSError) as error:
            return f"the server was not there: {error}"
        return f"{ended} of kind {kind}"

    async def _stop_postgres(self) -> str:
        await self._arena.cluster.stop(signal.SIGQUIT)
        await self._start_postgres()
        return ""

    async def _kill_postgres(self) -> str:
        self._arena.cluster.kill()
        await self._start_postgres()
        return ""

    async def _start_postgres(self) -> None:
        await trio.sleep(self._dice.uniform(0, 1.5))
        self._arena.cluster.start()
        await self._arena.cluster.ready()

    async def _freeze_postgres(self) -> str:
        cluster, seconds = self._arena.cluster, self._dice.uniform(0.3, 8)
        await self._frozen([cluster.pid, *cluster.backends()], seconds)
        return f"for {seconds:.1f} s"

    async def _fill_disk(self) -> str:
        self._arena.cluster.fill_disk()
        seconds = self._dice.uniform(1, 6)
        await trio.sleep(seconds)
        self._arena.cluster.free_disk()
        ended = " and PostgreSQL ended of it" if self._arena.cluster.ended else ""
        await self._arena.cluster.ready()
        return f"for {seconds:.1f} s{ended}"

    async def _hold_all_locks(self) -> str:
        """Somebody else takes every lock there is: each call of the kernel is refused (53200) until they let go."""
        return await self._ask(_HOLD_ALL_LOCKS)

    async def _ask(self, sql: str) -> str:
        try:
            await trio.to_thread.run_sync(partial(value, self._arena.cluster.dsn, sql))
        except (BaselineFailed, OSError) as error:
            return f"the server was not there: {error}"
        return ""

    async def _starve(self, settings: Mapping[str, str]) -> str:
        cluster = self._arena.cluster
        # A daemon may say that it cannot serve from this and end; then it is started again afterwards.
        self._arena.dying |= {daemon.number for daemon in self._arena.daemons}
        await cluster.stop()
        cluster.start(**settings)
        await cluster.ready()
        await trio.sleep(self._dice.uniform(3, 6))
        refused = sum(daemon.ended is not None for daemon in self._arena.daemons)
        await cluster.stop()
        cluster.start()
        await cluster.ready()
        await self._arena.start_daemons_again(self._arena.daemons)
        return f"{refused} daemons would not serve from it" if refused else ""

    async def _frozen(self, pids: Sequence[int], seconds: float) -> None:
        signal_all = self._arena.cluster.signal
        try:
            signal_all(signal.SIGSTOP, *pids)
            await trio.sleep(seconds)
        finally:
            signal_all(signal.SIGCONT, *pids)

    # -- the network -----------------------------------------------------------------------------------------------

    def _network(self, proxies: Sequence[Proxy]) -> dict[str, Callable[[], Awaitable[str]]]:
        """The faults of a network, between two parts. The proxies may come later."""

        def weather(make: Callable[[], Weather]) -> Callable[[], Awaitable[str]]:
            async def fault() -> str:
                proxy, ways = self._dice.choice(proxies), self._dice.choice(((Way.UP,), (Way.DOWN,), tuple(Way)))
                seconds = self._dice.uniform(0.5, 6)
                for way in ways:
                    proxy.weather[way] = make()
                await trio.sleep(seconds)
                proxy.clear()
                return f"{' and '.join(way.value for way in ways)} for {seconds:.1f} s"

            return fault

        def links(act: Callable[[Link], object], mark: str | None = None) -> Callable[[], Awaitable[str]]:
            async def fault() -> str:
                found = self._dice.choice(proxies).marked(mark)
                chosen = self._dice.sample(found, self._dice.randint(1, len(found))) if found else []
                for link in chosen:
                    act(link)
                await trio.sleep(0.5)
                return f"{len(chosen)} connections"

            return fault

        dice = self._dice
        mark = LANE if proxies is self._arena.wells else None
        return {
            "delay": weather(lambda: Weather(delay_s=dice.uniform(0.02, 0.4))),
            "throttle": weather(lambda: Weather(bytes_per_s=dice.uniform(2_000, 50_000))),
            "black hole": weather(lambda: Weather(black_hole=True)),
            "reset": links(Link.reset),
            "half-close": links(lambda link: link.half_close(dice.choice(tuple(Way)))),
            "cut after some bytes": links(lambda link: link.cut_after(dice.choice(tuple(Way)), dice.randint(0, 3_000))),
            "reply dropped": links(Link.drop_reply, mark),
        }
