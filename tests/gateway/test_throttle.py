"""Token buckets in memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ledgerd.gateway.throttle import Throttle
from ledgerd_protocol.errors import ErrorCode, LedgerError


def test_a_throttle_gives_a_burst_and_then_its_rate(mock_clock: trio.testing.MockClock) -> None:
    async def scenario() -> None:
        throttle = Throttle(2.0, 4)
        assert [throttle.take("a") for _ in range(4)] == [0.0] * 4
        assert throttle.take("a") == pytest.approx(0.5)
        assert throttle.take("b") == 0.0
        mock_clock.jump(0.5)
        assert throttle.take("a") == 0.0
        assert throttle.take("a") > 0

    trio.run(scenario, clock=mock_clock)


def test_a_rate_of_zero_is_no_limit() -> None:
    throttle = Throttle(0.0, 1)
    assert [throttle.take("a") for _ in range(10)] == [0.0] * 10


async def test_who_has_no_tokens_left_is_told_how_long_to_wait(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(2.0, 1)
    throttle.require("a")
    with pytest.raises(LedgerError) as caught:
        throttle.require("a")
    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert caught.value.data == {"retry_after_ms": 501}
