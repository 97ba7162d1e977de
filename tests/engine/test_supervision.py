"""supervise(): generations, backoff, the restart limit, and what it must not swallow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from ledgerd.supervision import Backoff, RestartLimitReached, supervise


class Lost(Exception):
    pass


class Body:
    """Fails with what it was given, one after the other, then returns; notes when it was started."""

    def __init__(self, *failures: BaseException | None, healthy: bool = False) -> None:
        self.failures = list(failures)
        self.healthy = healthy
        self.starts: list[float] = []

    async def __call__(self, healthy: Callable[[], None]) -> None:
        self.starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.healthy:
            healthy()
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure


def steady() -> Backoff:
    return Backoff(first_s=1.0, most_s=8.0, chance=lambda: 1.0)


async def run(body: Body, restarts_max: int = 10, window_s: float = 60.0) -> None:
    await supervise(body, name="x", recoverable=(Lost,), restarts_max=restarts_max, window_s=window_s, backoff=steady())


async def test_a_body_that_returns_is_not_run_again(autojump_clock: object) -> None:
    body = Body()
    await run(body)
    assert len(body.starts) == 1


async def test_each_failure_doubles_the_wait_up_to_the_most(autojump_clock: object) -> None:
    body = Body(*[Lost() for _ in range(6)])
    await run(body)
    waits = [round(later - earlier, 6) for earlier, later in zip(body.starts, body.starts[1:], strict=False)]
    assert waits == [1, 2, 4, 8, 8, 8]


async def test_the_wait_is_shortened_by_chance_to_a_half_at_most(autojump_clock: object) -> None:
    assert Backoff(first_s=1.0, chance=lambda: 0.0).next_s() == 0.5
    assert Backoff(first_s=1.0, chance=lambda: 1.0).next_s() == 1.0


async def test_healthy_forgets_the_failures_before_it(autojump_clock: object) -> None:
    body = Body(*[Lost() for _ in range(5)], healthy=True)
    await run(body, restarts_max=1)
    assert body.starts == [body.starts[0] + n for n in range(6)]


async def test_more_failures_than_allowed_within_the_window_are_the_end(autojump_clock: object) -> None:
    body = Body(*[Lost("gone") for _ in range(5)])
    with pytest.raises(RestartLimitReached, match="x: 2 restarts within 60 s") as caught:
        await run(body, restarts_max=2)
    assert len(body.starts) == 3
    assert isinstance(caught.value.__cause__, BaseExceptionGroup)


async def test_failures_outside_the_window_do_not_count(autojump_clock: object) -> None:
    body = Body(*[Lost() for _ in range(6)])
    await run(body, restarts_max=2, window_s=2.5)
    assert len(body.starts) == 7


async def test_a_recoverable_error_in_a_nursery_restarts(autojump_clock: object) -> None:
    body = Body(ExceptionGroup("nursery", [ExceptionGroup("nursery", [Lost(), Lost()])]))
    await run(body)
    assert len(body.starts) == 2


async def test_a_bug_goes_upwards_at_once(autojump_clock: object) -> None:
    body = Body(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await run(body)
    assert len(body.starts) == 1


async def test_a_bug_beside_a_recoverable_error_goes_upwards(autojump_clock: object) -> None:
    body = Body(ExceptionGroup("nursery", [Lost(), ZeroDivisionError()]))
    with pytest.raises(ExceptionGroup) as caught:
        await run(body)
    assert caught.group_contains(ZeroDivisionError)
    assert not caught.group_contains(Lost)
    assert len(body.starts) == 1


async def test_cancelling_ends_a_generation_and_the_wait_between_two(autojump_clock: object) -> None:
    body = Body(*[Lost() for _ in range(100)])
    with trio.move_on_after(3.5) as scope:
        await run(body)
    assert scope.cancelled_caught
    assert len(body.starts) == 3
