"""What the soak test and its processes of subscribers say to each other: one JSON object per line.

To the process: one `Order`, then `Disturb` as often as wanted, then `Finish`. From it: `Standing by` once everybody is
live for the first time, `Progress` now and then, and one `Report` at the end. The end of the input ends the process.
"""

from __future__ import annotations

from collections import deque

import msgspec
import trio
from msgspec import Struct

from ledgerd_loadtest.witness import Counts, Standing

_READ_BYTES = 262_144


class Follower(Struct, frozen=True):
    """One subscriber: its number, what it follows, and whether it reads badly now and then."""

    number: int
    accounts: list[int]
    sluggish: bool


class Order(Struct, frozen=True):
    """Who subscribes where. One of ``sample_stride`` events is timed; ``connection_s`` is the mean life of one."""

    urls: list[str]
    token: str
    followers: list[Follower]
    seed: int
    connection_s: float
    sample_stride: int


class Disturb(Struct, frozen=True, tag="disturb"):
    """From now on leave at random instants and read slowly now and then, or stop doing so."""

    on: bool


class Finish(Struct, frozen=True, tag="finish"):
    """Report when all accounts have been seen at these versions, or the time is over."""

    versions: dict[int, int]
    timeout_s: float


class StandingBy(Struct, frozen=True, tag="standing_by"):
    """All subscribers are live."""


class Progress(Struct, frozen=True, tag="progress"):
    """How it is going."""

    counts: Counts
    live: int
    problems: int


class Sample(Struct, frozen=True, array_like=True, gc=False):
    """An event as it arrived: of which transaction, through which daemon, and when (monotonic clock, seconds)."""

    transaction_id: str
    daemon: int
    arrived_at: float


class Told(Struct, frozen=True):
    """What one subscriber has been told."""

    number: int
    standings: dict[int, Standing]
    problems: list[str]


class Report(Struct, frozen=True, tag="report"):
    """All there is to know at the end."""

    counts: Counts
    told: list[Told]
    samples: list[Sample]


ToSwarm = Disturb | Finish
FromSwarm = StandingBy | Progress | Report


def line_of(message: Struct) -> bytes:
    """A message as a line."""
    return msgspec.json.encode(message) + b"\n"


class LineReader:
    """Whole lines of a stream."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._whole: deque[bytes] = deque()
        self._parts: list[bytes] = []

    async def next(self) -> bytes | None:
        """The next line; None when the stream has ended."""
        while not self._whole:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return None
            *ends, rest = bytes(data).split(b"\n")
            for end in ends:
                self._whole.append(b"".join([*self._parts, end]))
                self._parts.clear()
            self._parts.append(rest)
        return self._whole.popleft()
