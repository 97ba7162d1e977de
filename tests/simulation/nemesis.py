"""Who breaks things: daemons, the database, the network. What a seed may suffer is drawn with the seed."""

from __future__ import annotations

from math import inf
from random import Random

import trio

from ledgerd.engine.commands import Principal
from ledgerd.gateway.authentication import secret_hash
from tests.simulation.daemon import Daemon
from tests.simulation.orders import Person
from tests.simulation.store import Store
from tests.simulation.trace import Trace
from tests.simulation.witness import Witness

ACTS = ("crash", "drain", "outage", "long outage", "cut", "revoke")
PAUSE_S = 1.2
"""Between two acts, on average."""


class Nemesis:
    """One seed's adversary."""

    def __init__(
        self, rng: Random, daemons: list[Daemon], store: Store, witness: Witness, people: list[Person], trace: Trace
    ) -> None:
        self._rng = rng
        self._daemons = daemons
        self._store = store
        self._witness = witness
        self._people = people
        self._trace = trace
        self._may = rng.sample(ACTS, rng.randrange(0, len(ACTS)))
        self._has_revoked = False

    async def run(self, nursery: trio.Nursery, until: float) -> None:
        """Act until the time has come, finish what was begun, then mend everything."""
        rng = self._rng
        while self._may:
            pause_s = rng.expovariate(1 / PAUSE_S)
            if trio.current_time() + pause_s > until:
                break
            await trio.sleep(pause_s)
            await self._act(rng.choice(self._may), nursery)
        await trio.sleep_until(until)
        self._store.weather.calm = True
        self._come_back()
        self._trace.note("nemesis", "mends everything")

    async def _act(self, act: str, nursery: trio.Nursery) -> None:
        rng = self._rng
        up = [daemon for daemon in self._daemons if daemon.up]
        self._trace.note("nemesis", act)
        self._witness.counts[f"nemesis {act}"] += 1
        if act == "crash" and up:
            daemon = rng.choice(up)
            daemon.crash()
            nursery.start_soon(self._restart, daemon, rng.choice((0.01, 0.5, 2.0)))
        elif act == "drain" and up:
            nursery.start_soon(self._drain_and_restart, rng.choice(up))
        elif act in ("outage", "long outage"):
            self._store.go_away()
            self._witness.away_from, self._witness.away_until = trio.current_time(), inf
            await trio.sleep(rng.choice((5.5, 7.0)) if act == "long outage" else rng.choice((0.01, 0.3, 1.5)))
            self._come_back()
        elif act == "cut" and up:
            for end in rng.choice(up).listener.ends:
                if rng.random() < 0.5:
                    end.cut()
        elif act == "revoke" and not self._has_revoked:
            self._has_revoked = True
            self._revoke(rng.choice([person for person in self._people if person.name.startswith("rough")]))

    def _come_back(self) -> None:
        if self._store.away:
            self._store.come_back()
            self._witness.away_until = trio.current_time()
            self._trace.note("nemesis", "lets the database come back")

    async def _restart(self, daemon: Daemon, after_s: float) -> None:
        await trio.sleep(after_s)
        await daemon.ended()
        if not daemon.up:
            self._trace.note("nemesis", "starts", daemon.name)
            await daemon.start()

    async def _drain_and_restart(self, daemon: Daemon) -> None:
        await daemon.drain()
        await self._restart(daemon, self._rng.choice((0.01, 0.5)))

    def _revoke(self, person: Person) -> None:
        self._trace.note("nemesis", "revokes the token of", person.name)
        self._store.revoke(secret_hash(person.secret))


SERVICE = Principal(token_id=100, user_id=None, account_id=None, scopes=frozenset({"operator"}), expires_at_s=None)
"""Who posted what was there before."""
