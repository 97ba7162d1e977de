"""The passage in which the newest comer goes first."""

from __future__ import annotations

import trio
import trio.testing

from ledgerd.gateway.gate import Gate


class Passers:
    """Tasks that go through a gate, in the order in which they got in."""

    def __init__(self, gate: Gate, nursery: trio.Nursery) -> None:
        self.gate = gate
        self.nursery = nursery
        self.inside: list[int] = []
        self.scopes: dict[int, trio.CancelScope] = {}
        self.gone: dict[int, trio.Event] = {}

    async def come(self, number: int) -> None:
        self.nursery.start_soon(self._pass, number)
        await trio.testing.wait_all_tasks_blocked()

    async def go(self, number: int) -> None:
        self.gone[number].set()
        await trio.testing.wait_all_tasks_blocked()

    async def _pass(self, number: int) -> None:
        self.gone[number] = trio.Event()
        with trio.CancelScope() as self.scopes[number]:
            async with self.gate:
                self.inside.append(number)
                await self.gone[number].wait()


async def test_the_newest_goes_first(nursery: trio.Nursery) -> None:
    passers = Passers(Gate(2), nursery)
    for number in (1, 2, 3, 4, 5):
        await passers.come(number)
    assert passers.inside == [1, 2]
    await passers.go(2)
    await passers.go(1)
    assert passers.inside == [1, 2, 5, 4]
    await passers.go(5)
    assert passers.inside == [1, 2, 5, 4, 3]
    nursery.cancel_scope.cancel()


async def test_who_gives_up_waiting_is_passed_over(nursery: trio.Nursery) -> None:
    passers = Passers(Gate(1), nursery)
    for number in (1, 2, 3):
        await passers.come(number)
    passers.scopes[3].cancel()
    await trio.testing.wait_all_tasks_blocked()
    await passers.go(1)
    assert passers.inside == [1, 2]
    nursery.cancel_scope.cancel()


async def test_who_gives_up_at_the_moment_it_is_called_leaves_the_place_to_the_next(nursery: trio.Nursery) -> None:
    passers = Passers(Gate(1), nursery)
    for number in (1, 2, 3):
        await passers.come(number)
    passers.gone[1].set()
    await trio.lowlevel.checkpoint()
    passers.scopes[3].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert 2 in passers.inside
    nursery.cancel_scope.cancel()


async def test_a_free_gate_is_free_again(nursery: trio.Nursery) -> None:
    gate = Gate(1)
    for _ in range(3):
        async with gate:
            pass


async def test_it_is_quiet_when_nobody_waits(nursery: trio.Nursery) -> None:
    passers = Passers(Gate(1), nursery)
    await passers.gate.quiet()
    for number in (1, 2, 3):
        await passers.come(number)
    quiet = trio.Event()

    async def listen() -> None:
        await passers.gate.quiet()
        quiet.set()

    nursery.start_soon(listen)
    await passers.go(1)
    assert not quiet.is_set()
    passers.scopes[2].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert quiet.is_set()
    nursery.cancel_scope.cancel()
