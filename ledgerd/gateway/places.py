"""Who may have a connection: the places of this daemon, and who gives way when there are none.

Rules of this file:

- A *newcomer* is a connection that nobody has signed in on yet, from the moment it is accepted. Strangers can open as
  many as they like, so newcomers have places of their own number (`newcomers_max`), few of them per address, and each
  may hold little memory.
- When these, or all places, are taken, the newcomer that the daemon has waited for longest gives way to the one that
  comes. Who does as clients do is signed in within milliseconds; to push it out, an attacker would have to open all
  places anew in that time. Refusing instead would let those keep the door shut that came first and say nothing.
- Who waits for the daemon does not give way. Else a crowd that comes back all at once would push out, again and again,
  just those who are about to be served, and none ever would be.
- Nobody gives way who has signed in. So strangers cost a user nothing but a part of the processor.
- Addresses are counted by network, as `network_of` has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import structlog
import trio

from ledgerd.config import Config
from ledgerd.gateway.authentication import network_of
from ledgerd.metrics import CONNECTIONS_REFUSED, NEWCOMERS

log = structlog.get_logger("ledgerd.gateway.places")

Reason = Literal[
    "total", "newcomers", "address", "address_newcomers", "user", "gave_way", "newcomer_requests", "tls",
    "timeout", "handshake", "broken",
]  # fmt: skip
"""Why a connection was not let in, or had to go: the label of `ledgerd_connections_refused_total`, beside ``files``."""


for _reason in get_args(Reason):
    CONNECTIONS_REFUSED.labels(_reason)  # there at 0: see `ledgerd.metrics`


def refused(reason: Reason, address: str, **members: object) -> None:
    """Count and log a connection that is not let in."""
    CONNECTIONS_REFUSED.labels(reason).inc()
    log.info("connection_refused", reason=reason, address=address, **members)


class NoPlace(Exception):
    """There is no place for this connection."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Place:
    """One connection's place. Made by `Places.take`.

    ``stay`` is the scope to serve the connection in: it is cancelled when the connection has to give way. ``busy``
    answers whether the daemon works for it now, rather than waits for it.
    """

    __slots__ = ("_places", "address", "busy", "network", "stay", "user_id")

    def __init__(self, places: Places) -> None:
        self._places = places
        self.stay = trio.CancelScope()
        self.address = ""
        self.network: str | None = None
        self.user_id: int | None = None
        self.busy: Callable[[], bool] = _waited_for

    @contextmanager
    def worked_for(self) -> Iterator[None]:
        """The block is the daemon's work for the connection."""
        busy, self.busy = self.busy, _worked_for
        try:
            yield
        finally:
            self.busy = busy

    def come_from(self, address: str) -> None:
        """The connection turns out to come from this address. Raises NoPlace if that has its share."""
        self._places.move(self, address)

    def sign_in(self, user_id: int | None) -> bool:
        """Somebody has signed in; None is a token of no user. False: the user has its share of connections."""
        return self._places.sign_in(self, user_id)

    def sign_out(self) -> None:
        """Nobody is signed in any more."""
        self._places.sign_out(self)

    def leave(self) -> None:
        """The connection is gone."""
        self._places.leave(self)


class Places:
    """All connections of the daemon, counted by address and by user."""

    def __init__(self, config: Callable[[], Config]) -> None:
        """``config`` answers the limits in force: they may change while the daemon runs."""
        self._config = config
        self._newcomers: dict[Place, None] = {}  # the oldest first
        self._by_network: Counter[str] = Counter()
        self._newcomers_by_network: Counter[str] = Counter()
        self._by_user: Counter[int] = Counter()
        self.open = 0

    def take(self, address: str | None) -> Place:
        """A place for a connection from this address; None if that is not known yet. Raises NoPlace."""
        config = self._config()
        network = None if address is None else network_of(address)
        self._check_share(network)
        if self.open >= config.connections_max and not self.make_room():
            raise NoPlace("total")
        if len(self._newcomers) >= config.newcomers_max and not self.make_room():
            raise NoPlace("newcomers")
        place = Place(self)
        place.address, place.network = address or "", network
        self.open += 1
        _add(self._by_network, network, 1)
        self._enter(place)
        return place

    def make_room(self) -> bool:
        """Let the newcomer that has been waited for longest give way; whether there was one."""
        for place in self._newcomers:
            if not place.busy():
                refused("gave_way", place.address)
                self._depart(place)
                place.stay.cancel()
                return True
        return False

    def move(self, place: Place, address: str) -> None:
        """As `Place.come_from`."""
        network = network_of(address)
        self._check_share(network)
        for counter in (self._by_network, self._newcomers_by_network):
            _add(counter, place.network, -1)
            _add(counter, network, 1)
        place.address, place.network = address, network

    def sign_in(self, place: Place, user_id: int | None) -> bool:
        """As `Place.sign_in`."""
        self._depart(place)
        _add(self._by_user, place.user_id, -1)
        place.user_id = None
        if user_id is not None:
            if self._by_user[user_id] >= self._config().connections_per_user_max:
                return False
            place.user_id = user_id
            self._by_user[user_id] += 1
        return True

    def sign_out(self, place: Place) -> None:
        """As `Place.sign_out`."""
        _add(self._by_user, place.user_id, -1)
        place.user_id = None
        if place not in self._newcomers:
            self._enter(place)

    def leave(self, place: Place) -> None:
        """As `Place.leave`."""
        self._depart(place)
        _add(self._by_user, place.user_id, -1)
        _add(self._by_network, place.network, -1)
        self.open -= 1

    # -- counting -----------------------------------------------------------------------------------------------------

    def _check_share(self, network: str | None) -> None:
        if network is None:
            return
        config = self._config()
        if self._by_network[network] >= config.connections_per_address_max:
            raise NoPlace("address")
        if self._newcomers_by_network[network] >= config.newcomers_per_address_max:
            raise NoPlace("address_newcomers")

    def _enter(self, place: Place) -> None:
        self._newcomers[place] = None
        _add(self._newcomers_by_network, place.network, 1)
        NEWCOMERS.set(len(self._newcomers))

    def _depart(self, place: Place) -> None:
        if place in self._newcomers:
            del self._newcomers[place]
            _add(self._newcomers_by_network, place.network, -1)
            NEWCOMERS.set(len(self._newcomers))


def _add(counter: Counter[Any], key: Any, by: int) -> None:
    """Count by key. None is not counted, and what is at zero is forgotten: strangers must not make a table grow."""
    if key is None:
        return
    counter[key] += by
    if not counter[key]:
        del counter[key]


def _waited_for() -> bool:
    return False


def _worked_for() -> bool:
    return True
