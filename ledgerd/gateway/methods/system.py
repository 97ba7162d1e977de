"""Methods about the daemon itself."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import Raw

import ledgerd
from ledgerd.gateway.call import Call, Now
from ledgerd.gateway.clock import now_text
from ledgerd_protocol.fields import HOLD_EXPIRES_IN_S_MAX, HOLD_EXPIRES_IN_S_MIN
from ledgerd_protocol.messages import Nothing, SystemPing
from ledgerd_protocol.methods import METHODS as METHOD_TABLE
from ledgerd_protocol.openrpc import document
from ledgerd_protocol.results import CurrencyInfo, Pong, SystemInfo

PROTOCOL = "ledgerd.v1"

_LIMITS = (
    "message_bytes_max",
    "frame_out_bytes_max",
    "depth_max",
    "batch_members_max",
    "in_flight_max",
    "waiting_commands_max",
    "waiting_bytes_max",
    "subscriptions_per_connection_max",
    "accounts_per_subscription_max",
    "monitors_per_account_max",
    "resume_max",
    "unit_accounts_max",
    "advance_installments_max",
    "advance_interval_days_max",
)


def system_ping(call: Call, params: SystemPing) -> Pong:  # noqa: ARG001
    """Answer `system_ping`."""
    return Pong(time=now_text(), echo=params.echo)


def system_info(call: Call, params: Nothing) -> SystemInfo:  # noqa: ARG001
    """Answer `system_info`. Raises StorageUnavailable before the daemon has seen its database."""
    config = call.desk.config
    facts = call.desk.books.facts()
    currencies = {**config.currencies, **facts.currencies}
    return SystemInfo(
        name="ledgerd",
        version=ledgerd.__version__,
        protocol=PROTOCOL,
        epoch=facts.epoch,
        currencies=[CurrencyInfo(currency=code, scale=scale) for code, scale in sorted(currencies.items())],
        default_currency=config.default_currency,
        limits={
            **{name: getattr(config, name) for name in _LIMITS},
            "hold_expires_in_s_min": HOLD_EXPIRES_IN_S_MIN,
            "hold_expires_in_s_max": HOLD_EXPIRES_IN_S_MAX,
        },
        features=sorted(METHOD_TABLE),
    )


@functools.cache
def _document() -> bytes:
    return msgspec.json.encode(document())


def rpc_discover(call: Call, params: Nothing) -> Any:  # noqa: ARG001
    """Answer `rpc.discover`: the protocol as an OpenRPC document."""
    return Raw(_document())


METHODS = {
    "system_ping": Now(system_ping, 6 * 1024 + 128),
    "system_info": Now(system_info, 65_536),
    "rpc.discover": Now(rpc_discover, len(_document())),
}
