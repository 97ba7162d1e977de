"""What an idle daemon costs: the memory of connections that do nothing, and the wait of a client that is alone."""

from __future__ import annotations

import itertools
import random
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack

from ledgerd_loadtest.audit import Harvest, take_reply
from ledgerd_loadtest.commands import Supply, request_maker
from ledgerd_loadtest.processes import resident_kib
from ledgerd_loadtest.socket_client import SocketClient

WARM_CONNECTIONS = 100
"""Opened before the first look at the memory: the first connections pay for what all of them share."""

SETTLE_S = 1.0
"""From the last connection to the look at the memory."""

_FILES_TO_SPARE = 200


def connections_possible(wanted: int) -> bool:
    """Raise this process's limit of open files as far as needed; whether that was possible."""
    needed = wanted + _FILES_TO_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed <= hard


def memory_per_connection_kib(url: str, token: str, daemon_pid: int, connections: int) -> float:
    """By how much the daemon grows for each authenticated connection that then does nothing.

    Measure it on a daemon that has done little else: memory that was freed earlier would be used again, unseen.
    Raises ConnectionFailed, OSError, ValueError.
    """
    with ExitStack() as opened:
        for _ in range(WARM_CONNECTIONS):
            opened.enter_context(SocketClient(url, token))
        time.sleep(SETTLE_S)
        before = resident_kib(daemon_pid)
        for _ in range(connections):
            opened.enter_context(SocketClient(url, token))
        time.sleep(SETTLE_S)
        return (resident_kib(daemon_pid) - before) / connections


def round_trips(
    url: str, token: str, source: int, accounts: Sequence[int], transfers: int
) -> tuple[list[float], Harvest]:
    """Seconds of single transfers, one after the other, on one connection, after as many to warm up.

    Raises ConnectionFailed, OSError.
    """
    harvest, latencies = Harvest(), []
    supply = Supply(request_maker(random.Random(), accounts, source, None, itertools.count(1)), 2 * transfers)
    answered = []
    with SocketClient(url, token) as client:
        for _ in range(2 * transfers):
            request = supply.take()
            started = time.perf_counter()
            client.send(request.frame)
            reply = client.receive_one()
            latencies.append(time.perf_counter() - started)
            answered.append((request, reply))
    for request, reply in answered:
        harvest.sent += 1
        take_reply(harvest, request, reply)
    return latencies[transfers:], harvest
