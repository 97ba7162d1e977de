"""What the methods are given: the desk they share, the caller, the one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from ledgerd.config import Config
from ledgerd.engine.commands import AccountFacts, AccountRef, Command, Outcome, Principal, Refused, Unit
from ledgerd.engine.ports import Books
from ledgerd.engine.states import AccountState, MonitorState, Place
from ledgerd.gateway.authentication import Credentials, Passwords, Tokens
from ledgerd.gateway.cursors import Cursors
from ledgerd.gateway.outbox import Flusher
from ledgerd.gateway.throttle import Throttle
from ledgerd_protocol.messages import SubscribeOptions

# -- the engine, as the gateway uses it -------------------------------------------------------------------------------


class Directory(Protocol):
    """Finds accounts, from memory or from the database."""

    def known(self, ref: AccountRef, currency: str) -> AccountFacts | None:
        """The facts, if they are in memory."""

    async def find(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        """The facts of each, None where there is no account. Raises StorageUnavailable."""


class Router(Protocol):
    """Takes money commands to the workers of the users who act."""

    def try_route(self, unit: Unit) -> bool:
        """True: handed over, or refused by answering. False: facts are missing, use `route`."""

    async def route(self, unit: Unit) -> None:
        """Hand over; storage trouble refuses the unit."""


class Subscription(Protocol):
    """What a session keeps of a subscription, to end it by."""

    @property
    def closed(self) -> bool:
        """Whether it has ended; the daemon may end one without being asked."""


class Hub(Protocol):
    """Delivers the live feed."""

    def subscribe(
        self,
        sink: Any,
        subscription_id: str,
        principal: Principal,
        channel: str,
        options: SubscribeOptions,
        accounts: list[AccountState],
        here: Place | None = None,
    ) -> Subscription:
        """Begin a subscription; its events go to the sink. ``here`` is where one to everything begins."""

    def unsubscribe(self, subscription: Any) -> None:
        """End a subscription; nothing is pushed after this returns."""

    def announce_account(self, state: AccountState) -> None:
        """Tell those who follow the account's user of it."""

    def stir(self) -> None:
        """Something was committed outside the lanes: let those who follow everything look."""

    def learn_monitor(self, state: MonitorState) -> None:
        """A monitor was set or removed here."""

    def has_room_for_monitor(self) -> bool:
        """Whether the ledger may have one more monitor."""


# -- what the methods share -------------------------------------------------------------------------------------------


class Desk:
    """Everything that the methods of all sessions share. ``draining`` is set when the daemon stops."""

    def __init__(self, config: Config, *, books: Books, router: Router, hub: Hub, directory: Directory) -> None:
        self.config = config
        self.books = books
        self.router = router
        self.hub = hub
        self.directory = directory
        self.tokens = Tokens(books, config.token_refresh_s)
        self.passwords = Passwords()
        self.credentials = Credentials(books, self.passwords, config.login_failures_per_min)
        self.cursors = Cursors(books.facts)
        self.requests = Throttle(config.rate_per_s, config.rate_burst)
        self.flusher = Flusher()
        self.draining = False

    def reconfigure(self, config: Config) -> None:
        """Go by these settings from now on. What has been counted stays counted."""
        self.config = config
        self.credentials.failures_per_min = config.login_failures_per_min
        self.requests.allow(config.rate_per_s, config.rate_burst)


class Caller(Protocol):
    """A session, as the methods see it. Is also the sink of its subscriptions."""

    principal: Principal | None
    address: str
    subscriptions: dict[str, Subscription]

    def sign_in(self, principal: Principal) -> None:
        """Act for the principal from now on; what another principal had subscribed to ends."""

    def sign_out(self) -> None:
        """Act for nobody."""

    def next_subscription_id(self) -> str:
        """A name that this connection has not used."""


class Call(Struct, frozen=True):
    """One request on its way.

    ``signed_in`` is whom the caller acted for when the request began. ``arrived_at`` is trio time. The encoded result
    may have ``result_bytes_max`` bytes.
    """

    desk: Desk
    caller: Caller
    signed_in: Principal | None
    arrived_at: float
    result_bytes_max: int

    @property
    def principal(self) -> Principal:
        """Who calls; only for methods that need a scope."""
        assert self.signed_in is not None
        return self.signed_in


# -- what the methods are ---------------------------------------------------------------------------------------------


class Plan(Struct):
    """Money commands of one request, not yet sent to the router.

    ``refused`` holds, by index, commands that are refused already. ``conclude`` turns the outcomes, in the order of the
    commands, into the result; it raises LedgerError when the request as a whole is refused. ``afterwards`` may then
    read what the answer needs beside them. ``prepare`` may change the commands before they are judged and routed, in
    their turn; it raises StorageUnavailable.
    """

    commands: list[Command]
    conclude: Callable[[list[Outcome]], Any]
    refused: dict[int, Refused] = {}
    atomic: bool = False
    batch_id: str | None = None
    afterwards: Callable[[Call], Awaitable[Any]] | None = None
    prepare: Callable[[Desk], Awaitable[None]] | None = None


class Now(Struct, frozen=True):
    """A method that never waits. ``result_bytes_max`` bounds its encoded result."""

    answer: Callable[[Call, Any], Any]
    result_bytes_max: int


class Read(Struct, frozen=True):
    """A method that asks the database, as a task of its own. Lists take what room there is: ``result_bytes_max`` None.

    ``alone``: nothing that arrived later begins before it is answered.
    """

    answer: Callable[[Call, Any], Awaitable[Any]]
    result_bytes_max: int | None
    alone: bool = False


class Money(Struct, frozen=True):
    """A method that moves money: it plans commands, which reach the router in the order of arrival."""

    plan: Callable[[Call, Any], Plan]


class Reply(Struct, frozen=True):
    """A result that must be on its way before something else happens: the first event follows the answer."""

    result: Any
    then: Callable[[], None]


Handler = Now | Read | Money
