"""What a running daemon takes over when it is asked to, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
import trustme

from ledgerd.condition import Condition, Stage
from ledgerd.config import RELOADABLE, Config, SettingsError
from ledgerd.gateway.tls import ServerTls
from ledgerd.notify import Notifier
from ledgerd.reload import Reloader

PACKAGE = Path(__file__).parents[2] / "ledgerd"


class Database:
    connected = True


class Gateway:
    """Remembers what it was told to go by."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.connections = self.unanswered = 0

    def reconfigure(self, config: Config) -> None:
        self.configs.append(config)


class Manager(Notifier):
    """Hears what the service manager would, and says when a reload is over."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self._over = trio.Event()

    async def reloading(self) -> None:
        self.heard.append("reloading")

    async def ready(self, status: str) -> None:
        self.heard.append(status)
        self._over.set()

    async def over(self) -> str:
        await self._over.wait()
        self._over = trio.Event()
        return self.heard[-1]


class House:
    """A reloader that runs. ``wanted`` is what its source says, or why it cannot be read."""

    def __init__(self, nursery: trio.Nursery, config: Config, tls: ServerTls | None = None) -> None:
        self.wanted: Config | Exception = config
        self.gateway, self.manager, self.condition = Gateway(), Manager(), Condition(Database())
        self.condition.stage = Stage.SERVING
        self.condition.sessions = self.gateway
        self.reloader = Reloader(config, self.read, self.condition)
        nursery.start_soon(self.reloader.run, self.gateway, tls, self.manager)

    def read(self) -> Config:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    async def reload(self, wanted: Config | Exception | None = None) -> str:
        """The status line afterwards."""
        if wanted is not None:
            self.wanted = wanted
        self.reloader.request()
        return await self.manager.over()


async def test_what_may_change_changes_and_the_rest_stays_and_is_named(nursery, capsys):
    house = House(nursery, Config(lanes=2, connections_max=10))
    await house.reload(Config(lanes=8, connections_max=20, dsn="postgresql://u:secret@h/d"))
    assert house.gateway.configs == [Config(lanes=2, connections_max=20)]
    assert house.reloader.config == house.gateway.configs[-1]
    said = capsys.readouterr().out
    assert "'connections_max'" in said
    assert re.search(r"restart_needed .*'dsn'.*'lanes'", said)
    assert "secret" not in said


async def test_the_manager_hears_when_it_begins_and_when_it_is_over(nursery):
    house = House(nursery, Config())
    await house.reload()
    assert house.manager.heard == ["reloading", "serving 0 sessions, database up"]


async def test_a_broken_source_leaves_everything_as_it_was_and_says_why(nursery, capsys):
    house = House(nursery, Config(connections_max=10))
    line = await house.reload(SettingsError(["ledgerd.toml: lanse is not a setting", "lanes is 'x'"]))
    assert house.gateway.configs == []
    assert house.reloader.config.connections_max == 10
    assert line.endswith("database up; settings not reloaded: ledgerd.toml: lanse is not a setting; lanes is 'x'")
    assert "lanse is not a setting" in capsys.readouterr().out
    assert await house.reload(Config(connections_max=20)) == "serving 0 sessions, database up"
    assert house.reloader.config.connections_max == 20


async def test_requests_that_come_before_it_serves_are_not_lost_and_count_once(nursery):
    house = House(nursery, Config())
    for _ in range(3):
        house.reloader.request()
    await house.manager.over()
    assert len(house.gateway.configs) == 1


async def test_while_the_daemon_stops_it_is_not_said_to_be_ready_again(nursery):
    house = House(nursery, Config())
    house.condition.stage = Stage.STOPPING
    house.reloader.request()
    while not house.gateway.configs:
        await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert house.manager.heard == ["reloading"]


# -- the certificate --------------------------------------------------------------------------------------------------


def write_certificate(file: Path) -> None:
    trustme.CA().issue_cert("ledger.example").private_key_and_cert_chain_pem.write_to_path(file)


async def test_the_certificate_is_read_again_even_if_no_setting_has_changed(nursery, tmp_path: Path):
    file = tmp_path / "both.pem"
    write_certificate(file)
    tls = ServerTls(str(file))
    before = tls.context
    house = House(nursery, Config(tls_certificate=str(file)), tls)
    write_certificate(file)
    await house.reload()
    assert tls.context is not before


async def test_a_broken_certificate_leaves_the_settings_as_they_were_too(nursery, tmp_path: Path):
    file = tmp_path / "both.pem"
    write_certificate(file)
    tls = ServerTls(str(file))
    before = tls.context
    config = Config(tls_certificate=str(file), connections_max=10)
    house = House(nursery, config, tls)
    file.write_text("nothing")
    line = await house.reload(msgspec.structs.replace(config, connections_max=20))
    assert tls.context is before
    assert house.gateway.configs == []
    assert f"settings not reloaded: tls_certificate: {file}" in line


# -- which settings these are -----------------------------------------------------------------------------------------


def test_every_reloadable_setting_is_one():
    assert set(Config.__struct_fields__) >= RELOADABLE


@pytest.mark.parametrize("name", sorted(RELOADABLE))
def test_no_part_that_keeps_the_settings_it_began_with_reads_a_reloadable_one(name):
    """The engine and the storage are given the settings once: what they read must not seem to change."""
    for room in ("engine", "storage"):
        for module in (PACKAGE / room).rglob("*.py"):
            assert not re.search(rf"\bconfig\.{name}\b", module.read_text()), module


@pytest.mark.parametrize("name", sorted(RELOADABLE - {"log_level", "drain_timeout_s"}))
def test_the_gateway_reads_every_reloadable_setting_from_where_it_is_exchanged(name):
    """As ``desk.config``, or in a ``reconfigure``."""
    sources = [module.read_text() for module in (PACKAGE / "gateway").rglob("*.py")]
    assert any(re.search(rf"(?:\bconfig|_config\(\))\.{name}\b", source) for source in sources)
