"""A Trio run that goes the same way every time for the same input, so that what fails once fails again."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from random import Random
from unittest import mock

import trio
import trio._core._run as trio_run
import trio.testing


def run(story: Callable[[], Awaitable[None]], data: bytes) -> None:
    """Run with tasks shuffled by the input, on a clock that jumps to the next deadline when nobody can go on."""
    with (
        mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True),
        mock.patch.object(trio_run, "_r", Random(zlib.crc32(data))),
    ):
        trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))
