"""One frozen struct of every setting, with units in the names.

A setting comes from a flag, else from ``LEDGERD_<NAME>`` in the environment, else from a credential (a file of that
name in ``$CREDENTIALS_DIRECTORY``), else from the TOML file, else from the default here. Unknown keys are refused: a
typo in a limit must not pass.

On SIGHUP a daemon reads all of that again and takes over what is `RELOADABLE`. Open connections go by the new values
too, except for the sizes of what they take in and of what waits for them (`FIXED_FOR_CONNECTIONS`): they keep those
they began with. Everything else needs a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]

MINOR_UNIT = "minor"
"""The betting wallet's unit when it is that of each currency itself."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every limit and timeout of a daemon."""

    # where
    dsn: str = ""
    listen: str = "127.0.0.1:8710"
    http: str = "127.0.0.1:8711"
    public_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    reuse_port: bool = False  # several daemons on one machine share `listen`, and each takes some of the connections
    insecure_listen: bool = False  # plain WebSocket on an address that is not loopback
    tls_certificate: str = ""  # PEM file with the certificate and its chain: wss:// instead of ws://
    tls_key: str = ""  # PEM file with its key, without a password; empty: in the certificate's file
    trusted_proxies: tuple[str, ...] = ()  # networks, or "unix", whose X-Forwarded-For is believed

    # who
    open_sign_up: bool = False
    sign_up_scopes: tuple[str, ...] = ("user",)
    session_ttl_s: Annotated[int, Meta(ge=1, le=3_153_600_000)] = 86_400
    login_failures_per_min: Annotated[int, Meta(ge=0)] = 30  # per e-mail, and per address; 0 is no limit
    token_refresh_s: Seconds = 2.0  # how long a revocation may go unseen by an open connection

    # money
    default_currency: str = "USD"
    currencies: dict[str, Annotated[int, Meta(ge=0, le=8)]] = {}  # scales beyond ISO 4217; ISO codes need no entry

    # the betting wallet
    wallet_unit_decimals: Annotated[int, Meta(ge=0, le=8)] | None = None  # None: minor units; 5 for Hub88's suppliers
    wallet_tokens: Literal["ignore", "check"] = "ignore"  # "check": bets and balances need a token of the user

    advance_installments_max: Annotated[int, Meta(ge=1, le=1_000)] = 60
    advance_interval_days_max: Annotated[int, Meta(ge=1, le=366)] = 366

    # messages and connections
    message_bytes_max: Positive = 262_144
    frames_per_message_max: Positive = 1_024
    frame_out_bytes_max: Positive = 1_048_576
    depth_max: Positive = 32
    batch_members_max: Positive = 1_000
    in_flight_max: Positive = 32
    waiting_commands_max: Positive = 256
    waiting_bytes_max: Positive = 1_048_576
    outbox_bytes_max: Positive = 2_097_152
    connections_max: Positive = 20_000
    connections_per_address_max: Positive = 20_000
    connections_per_user_max: Positive = 100  # signed in as one user; tokens of no user are not counted
    newcomers_max: Positive = 2_000  # connections that nobody has signed in on; the oldest gives way to the next
    newcomers_per_address_max: Positive = 1_000
    handshake_timeout_s: Seconds = 10.0
    authentication_timeout_s: Seconds = 10.0
    ping_after_s: Seconds = 20.0
    pong_timeout_s: Seconds = 20.0
    send_timeout_s: Seconds = 30.0
    rate_per_s: Annotated[float, Meta(ge=0)] = 0.0  # commands per principal and second; 0 is no limit
    rate_burst: Positive = 100

    # subscriptions
    subscriptions_per_connection_max: Positive = 128
    accounts_per_subscription_max: Positive = 1_000
    resume_max: Positive = 10_000
    monitors_per_account_max: Positive = 32
    monitors_max: Positive = 100_000  # of the whole ledger: every daemon keeps all of them in memory
    feed: Literal["notify", "poll"] = "notify"  # how daemons on one database hear of each other's changes
    feed_poll_s: Seconds = 1.0
    hint_interval_s: Seconds = 0.03

    # engine
    lanes: Annotated[int, Meta(ge=1, le=32)] = 2
    readers: Annotated[int, Meta(ge=1, le=32)] = 2
    call_commands_max: Positive = 1_000
    call_accounts_max: Positive = 1_000
    unit_accounts_max: Positive = 500
    user_inbox_max: Positive = 1_024
    user_idle_s: Seconds = 30.0
    command_ttl_s: Seconds = 10.0
    unavailable_after_s: Seconds = 4.0
    directory_entries_max: Positive = 200_000
    min_version_wait_s: Seconds = 2.0
    expiry_interval_s: Seconds = 1.0  # between two looks for holds whose time is over

    collect_interval_s: Seconds = 1.0  # between two looks for payments of advances that are due
    reconcile_interval_s: Seconds = 60.0  # between two looks for advances whose sums do not hold

    # database
    connect_timeout_s: Seconds = 5.0
    lock_timeout_s: Seconds = 2.5
    statement_timeout_s: Seconds = 3.0
    call_timeout_s: Seconds = 5.0  # after which a silent connection is given up
    restarts_max: Positive = 1_000_000  # of the database generation; each one backs off

    # stopping
    drain_timeout_s: Seconds = 10.0
    log_level: str = "info"
    log_format: Literal["auto", "json", "journal", "console"] = (
        "auto"  # auto: journal under systemd, console for a person
    )
    slow_call_s: Seconds = 1.0  # a request, or a call of the kernel, that takes longer is told in the log

    @property
    def call_reserve_s(self) -> float:
        """How long before its deadline a command may last be sent, so that it is not executed after it.

        The server ends a call after statement_timeout_s, and one that lost a race is run again within as long.
        """
        return 2 * self.statement_timeout_s

    @property
    def wallet_unit(self) -> str:
        """The betting wallet's unit as it is written to the database: `MINOR_UNIT`, or its number of decimals."""
        return MINOR_UNIT if self.wallet_unit_decimals is None else str(self.wallet_unit_decimals)


FIXED_FOR_CONNECTIONS = frozenset(
    {"message_bytes_max", "frames_per_message_max", "depth_max", "batch_members_max", "outbox_bytes_max"}
)
"""Reloadable, for connections that are opened afterwards."""

RELOADABLE = FIXED_FOR_CONNECTIONS | {
    # where
    "public_hosts",
    "allowed_origins",
    "trusted_proxies",
    # who
    "open_sign_up",
    "sign_up_scopes",
    "session_ttl_s",
    "login_failures_per_min",
    "wallet_tokens",
    # how much
    "advance_installments_max",
    "advance_interval_days_max",
    "monitors_per_account_max",
    "in_flight_max",
    "waiting_commands_max",
    "waiting_bytes_max",
    "connections_max",
    "connections_per_address_max",
    "connections_per_user_max",
    "newcomers_max",
    "newcomers_per_address_max",
    "subscriptions_per_connection_max",
    "rate_per_s",
    "rate_burst",
    # how long
    "handshake_timeout_s",
    "authentication_timeout_s",
    "ping_after_s",
    "pong_timeout_s",
    "send_timeout_s",
    "min_version_wait_s",
    "drain_timeout_s",
    # the log
    "log_level",
}
"""Settings that a running daemon takes over on SIGHUP. None of them is the engine's or the database's."""


class SettingsError(Exception):
    """The settings cannot be used. ``problems`` are sentences, one for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)
