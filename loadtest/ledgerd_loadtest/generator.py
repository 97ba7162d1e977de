"""The load generator: closed-loop load over many connections from one or more processes.

Each process serves its share of the connections from one poll loop over blocking sockets with prebuilt frames; nothing
is decoded inside the window but the id of a reply. The replies are kept and audited after the window.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import random
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from types import TracebackType

import msgspec
from msgspec import Struct

from ledgerd_loadtest.audit import Harvest, take_reply
from ledgerd_loadtest.commands import Request, Supply, request_maker
from ledgerd_loadtest.measure import Cpu, Window, joined, percentile
from ledgerd_loadtest.processes import Gauges
from ledgerd_loadtest.socket_client import ConnectionFailed, SocketClient

START_TIMEOUT_S = 60
"""For all processes together to connect and to build their frames."""

DRAIN_S = 15
"""For the answers to what is in flight when a window ends; the daemon gives up on a command after 10 s."""

_POLL_MS = 50


class Slot(Struct, frozen=True):
    """One connection: whose token, and which account it pays from; None pays from any."""

    token: str
    source: int | None = None


class Order(Struct, frozen=True):
    """A window to be measured. ``batch`` None sends single transfers, else frames of that many.

    ``prebuilt`` is the number of frames each connection has ready before the clock starts.
    """

    url: str
    slots: list[Slot]
    accounts: list[int]
    in_flight: int
    batch: int | None
    prebuilt: int
    warm_up_s: float
    seconds: float
    gauges: Gauges


class Reaped(Struct, frozen=True):
    """A window, every latency in it in seconds, and what became of the transfers."""

    window: Window
    latencies: list[float]
    harvest: Harvest


class Generators:
    """A fixed number of processes that make load together. Leaving the context stops them."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = count
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_prepare_process, initargs=(context.Barrier(count),)
        )

    def run(self, order: Order) -> Reaped:
        """Measure one window. Raises ConnectionFailed, OSError."""
        quiet = Gauges(daemon_pid=None, postgres_pid=None)
        futures = [
            self._pool.submit(
                _run_share,
                msgspec.structs.replace(
                    order, slots=order.slots[share :: self._count], gauges=quiet if share else order.gauges
                ),
            )
            for share in range(self._count)
        ]
        parts = [future.result() for future in futures]
        latencies = [latency for part in parts for latency in part.latencies]
        harvest = Harvest()
        for part in parts:
            harvest.merge(part.harvest)
        return Reaped(joined([part.window for part in parts], latencies), latencies, harvest)

    def __enter__(self) -> Generators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A window is short: one that was interrupted is waited for.
        self._pool.shutdown(wait=True, cancel_futures=True)


# -- in the processes --------------------------------------------------------------------------------------------------

_together: Barrier | None = None


def _prepare_process(together: Barrier) -> None:
    """Ctrl-C reaches every process of the terminal; the one that gives orders decides."""
    global _together
    _together = together
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_share(order: Order) -> Reaped:
    assert _together is not None
    lanes: list[_Lane] = []
    numbers = itertools.count(1)
    dice = random.Random()
    try:
        try:
            lanes.extend(_Lane(order, slot, dice, numbers) for slot in order.slots)
        except BaseException:
            _together.abort()
            raise
        _together.wait(START_TIMEOUT_S)
        gc.collect()
        gc.disable()
        try:
            return _drive(lanes, order)
        finally:
            gc.enable()
    finally:
        for lane in lanes:
            with suppress(OSError):
                lane.client.close()


class _Id(Struct):
    id: int


_ID = msgspec.json.Decoder(_Id)


class _Lane:
    """One connection and what is in flight on it."""

    def __init__(self, order: Order, slot: Slot, dice: random.Random, numbers: itertools.count[int]) -> None:
        make: Callable[[], Request] = request_maker(dice, order.accounts, slot.source, order.batch, numbers)
        self.client = SocketClient(order.url, slot.token)
        self.supply = Supply(make, order.prebuilt)
        self.open: dict[int, tuple[Request, float]] = {}
        self.answered: list[tuple[Request, bytes]] = []

    def send(self, count: int) -> None:
        """Put so many more requests into flight, in one system call."""
        requests = [self.supply.take() for _ in range(count)]
        now = time.perf_counter()
        for request in requests:
            self.open[request.id] = request, now
        self.client.send(b"".join([request.frame for request in requests]))

    def receive(self) -> list[tuple[Request, float]]:
        """What one read brings answers to, with the time each was sent."""
        answered = []
        for message in self.client.receive():
            request, sent_at = self.open.pop(_ID.decode(message).id)
            self.answered.append((request, message))
            answered.append((request, sent_at))
        return answered


class _Count:
    """What was answered between two looks."""

    def __init__(self) -> None:
        self.transfers = 0
        self.latencies: list[float] = []


def _drive(lanes: list[_Lane], order: Order) -> Reaped:
    poll = select.poll()
    by_number = {}
    for lane in lanes:
        by_number[lane.client.socket.fileno()] = lane
        poll.register(lane.client.socket, select.POLLIN)
    started = time.perf_counter()
    count = _Count()
    for lane in lanes:
        lane.send(order.in_flight)
    _turn(poll, by_number, _Count(), started + order.warm_up_s)
    cpu, begun = order.gauges.read(), time.perf_counter()
    _turn(poll, by_number, count, begun + order.seconds)
    used, seconds = order.gauges.read().since(cpu), time.perf_counter() - begun
    _drain(poll, by_number)
    return _reap(lanes, count, used, seconds)


def _turn(poll: select.poll, lanes: dict[int, _Lane], count: _Count, until: float) -> None:
    """Answer every reply with the next request until the time comes."""
    while (now := time.perf_counter()) < until:
        for number, _ in poll.poll(_POLL_MS):
            lane = lanes[number]
            answered = lane.receive()
            now = time.perf_counter()
            for request, sent_at in answered:
                count.transfers += len(request.transfers)
                count.latencies.append(now - sent_at)
            if answered:
                lane.send(len(answered))


def _drain(poll: select.poll, lanes: dict[int, _Lane]) -> None:
    """Take the answers that are still out. Raises ConnectionFailed if some never come."""
    deadline = time.perf_counter() + DRAIN_S
    while any(lane.open for lane in lanes.values()):
        if time.perf_counter() > deadline:
            missing = sum(len(lane.open) for lane in lanes.values())
            raise ConnectionFailed(f"{missing} requests were not answered within {DRAIN_S} s")
        for number, _ in poll.poll(_POLL_MS):
            lanes[number].receive()


def _reap(lanes: list[_Lane], count: _Count, used: Cpu, seconds: float) -> Reaped:
    harvest = Harvest()
    for lane in lanes:
        for request, reply in lane.answered:
            harvest.sent += len(request.transfers)
            take_reply(harvest, request, reply)
    count.latencies.sort()
    window = Window(
        transfers=count.transfers,
        seconds=seconds,
        latency_p50_s=percentile(count.latencies, 0.50),
        latency_p99_s=percentile(count.latencies, 0.99),
        cpu=used,
        client_busy=used.client_s / seconds,
        refused=sum(harvest.refused.values()),
    )
    return Reaped(window, count.latencies, harvest)
