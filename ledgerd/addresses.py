"""Network addresses, as settings name them and as peers have them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

UNIX = "unix"
"""Stands for every peer of a Unix socket in a list of networks: such a peer has no address."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def plain_address(text: str) -> IpAddress:
    """The address without a zone; that of an IPv4 peer of an IPv6 socket is its IPv4 address. Raises ValueError."""
    parsed = ipaddress.ip_address(text.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def networks(members: Sequence[str]) -> list[Network]:
    """The networks of a list such as ``10.0.0.0/8, ::1, unix``; `UNIX` is none. Raises ValueError with a sentence."""
    found: list[Network] = []
    for member in members:
        if member == UNIX:
            continue
        try:
            found.append(ipaddress.ip_network(member))
        except ValueError as error:
            raise ValueError(f"{member!r} is neither a network, such as 10.0.0.0/8, nor {UNIX!r}: {error}") from None
    return found
