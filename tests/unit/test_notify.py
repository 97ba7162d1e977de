"""What the service manager hears, on a socket of its kind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ledgerd.notify import STATUS_EVERY_S, Notifier
from ledgerd.supervision import PartEnded, Vitals
from tests.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    found = ServiceManager(str(tmp_path / "n"))
    yield found
    found.close()


@pytest.fixture
def abstract() -> Iterator[ServiceManager]:
    found = ServiceManager(f"@ledgerd-test-{os.getpid()}")
    yield found
    found.close()


async def test_every_state_is_told_in_its_own_words(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address)
    await notifier.ready("serving 0 sessions")
    await notifier.stopping("draining")
    assert manager.heard() == [["READY=1", "STATUS=serving 0 sessions"], ["STOPPING=1", "STATUS=draining"]]


async def test_a_name_in_the_abstract_namespace_is_an_address_too(abstract: ServiceManager) -> None:
    await Notifier(abstract.address).ready("serving")
    assert abstract.heard() == [["READY=1", "STATUS=serving"]]


async def test_a_reload_says_when_it_began(manager: ServiceManager) -> None:
    before = time.monotonic_ns() // 1000
    await Notifier(manager.address).reloading()
    ((reloading, when),) = manager.heard()
    assert reloading == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


async def test_a_status_is_one_line_and_told_once(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address)
    await notifier.status("lanes is 'x':\nit must be a number")
    await notifier.status("lanes is 'x':\nit must be a number")
    assert manager.heard() == [["STATUS=lanes is 'x': it must be a number"]]


async def test_the_status_follows_what_it_describes(manager: ServiceManager, autojump_clock: object) -> None:
    sessions = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Notifier(manager.address).keep_status, lambda: f"{sessions} sessions")
        await trio.sleep(STATUS_EVERY_S * 2.5)
        sessions = 3
        await trio.sleep(STATUS_EVERY_S * 2)
        nursery.cancel_scope.cancel()
    assert manager.heard() == [["STATUS=0 sessions"], ["STATUS=3 sessions"]]


async def test_without_a_socket_nothing_is_told_and_nothing_runs() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000"})
    await notifier.ready("serving")
    await notifier.reloading()
    await notifier.keep_status(lambda: "serving")
    await notifier.keep_watchdog(list)


async def test_a_manager_that_is_gone_or_does_not_listen_harms_nobody(
    manager: ServiceManager, autojump_clock: object
) -> None:
    notifier = Notifier(manager.address)
    for number in range(2_000):  # more than any queue holds
        with trio.move_on_after(0.5):
            await notifier.status(f"{number}")
    manager.close()
    await notifier.stopping("draining")
    await Notifier("vsock:2:1234").ready("serving")


async def test_that_it_is_ready_is_told_even_to_a_manager_that_is_busy_for_a_while(
    manager: ServiceManager, autojump_clock: object
) -> None:
    notifier = Notifier(manager.address)
    for number in range(2_000):
        with trio.move_on_after(0.5) as patience:
            await notifier.status(f"{number}")
        if patience.cancelled_caught:
            break  # its queue is full
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.ready, "serving")
        await trio.sleep(5)
        manager.heard()
    assert manager.heard() == [["READY=1", "STATUS=serving"]]


def test_the_variables_are_taken_so_that_children_do_not_inherit_them() -> None:
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}


# -- the watchdog -----------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(manager: ServiceManager) -> Callable[..., Notifier]:
    """A notifier as the manager's environment describes it: silence of two seconds is death."""

    def make(**more: str) -> Notifier:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "2000000", **more}
        return Notifier.from_environment(environ)

    return make


ALIVE = ["WATCHDOG=1"]


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_PID": str(os.getpid())}])
async def test_a_living_daemon_says_so_at_half_the_time(
    manager: ServiceManager, watched: Callable[..., Notifier], more: dict[str, str], autojump_clock: object
) -> None:
    with trio.move_on_after(4.5):
        await watched(**more).keep_watchdog(list)
    assert manager.heard() == [ALIVE] * 5


async def test_a_watchdog_of_another_process_is_not_ours(
    watched: Callable[..., Notifier], manager: ServiceManager
) -> None:
    await watched(WATCHDOG_PID=str(os.getppid())).keep_watchdog(list)
    assert manager.heard() == []


async def test_a_part_that_has_died_silences_the_watchdog_even_if_the_end_never_comes(
    manager: ServiceManager, watched: Callable[..., Notifier], autojump_clock: object
) -> None:
    vitals = Vitals()
    die, ended = trio.Event(), trio.Event()

    async def does_not_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)

    async def daemon() -> None:
        with pytest.RaisesGroup(PartEnded):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vitals.keep, "hub", die.wait)
                nursery.start_soon(does_not_end)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon)
        nursery.start_soon(watched().keep_watchdog, vitals.dead)
        await trio.sleep(1.5)
        assert manager.heard() == [ALIVE] * 2
        die.set()
        await trio.sleep(30)
        assert manager.heard() == []
        assert vitals.dead() == ["hub"]
        await ended.wait()
        nursery.cancel_scope.cancel()


async def until_heard(manager: ServiceManager) -> None:
    while not manager.heard():
        await trio.lowlevel.checkpoint()


async def test_a_loop_that_does_not_turn_is_silent(manager: ServiceManager) -> None:
    notifier = Notifier(manager.address, watchdog_s=0.02)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.keep_watchdog, list)
        await until_heard(manager)
        manager.heard()
        time.sleep(0.2)  # noqa: ASYNC251  this is the wedge
        assert manager.heard() == []
        await until_heard(manager)
        nursery.cancel_scope.cancel()


async def test_parts_that_end_because_the_daemon_stops_are_not_dead(autojump_clock: object) -> None:
    vitals = Vitals()
    end = trio.Event()

    async def part(*, task_status: trio.TaskStatus[str]) -> None:
        task_status.started("here")
        await end.wait()

    async with trio.open_nursery() as nursery:
        assert await nursery.start(vitals.keep, "gateway", part) == "here"
        vitals.stopping = True
        end.set()
    assert vitals.dead() == []
