"""Which client a connection comes from when a proxy stands in between.

Anybody can write X-Forwarded-For. Each proxy appends the peer that it sees itself, so only the right end is worth
something, and only as far as proxies are ours: the client is the first address from the right that is not one of
`trusted_proxies`. Whatever a client wrote stands to the left of that and is never looked at.

``Forwarded`` (RFC 7239) is not read. Nearly every proxy sends X-Forwarded-For, and passes on a ``Forwarded`` that it
does not know of as the client wrote it: who reads both believes the client.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledgerd.addresses import UNIX, networks, plain_address


class TrustedProxies:
    """The peers whose X-Forwarded-For is believed: networks, and ``unix`` for those of a Unix socket."""

    def __init__(self, members: Sequence[str]) -> None:
        """Raises ValueError."""
        self._networks = networks(members)
        self._unix = UNIX in members

    def trust(self, peer: str) -> bool:
        """Whether the peer is one of them. A peer without an address is that of a Unix socket."""
        if not peer:
            return self._unix
        try:
            address = plain_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def client(self, peer: str, forwarded_for: Sequence[bytes]) -> str:
        """The client's address, given the peer and the values of all X-Forwarded-For headers, in order.

        The peer itself, if it is not trusted or speaks for nobody. If a trusted proxy names something that is no
        address, the proxy.
        """
        client = peer
        hops = b",".join(forwarded_for).decode("latin-1").split(",")
        while hops and self.trust(client):
            hop = _without_port(hops.pop().strip())
            try:
                client = str(plain_address(hop))
            except ValueError:
                break
        return client


def _without_port(hop: str) -> str:
    """Some proxies append the port: 192.0.2.1:4711, [2001:db8::1]:4711."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
