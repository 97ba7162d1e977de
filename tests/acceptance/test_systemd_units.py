"""The units, as the command writes them: what systemd-analyze says of them, and what they must have in common."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from ledgerd.config import Config
from ledgerd.install_systemd import UNITS
from tests.acceptance.conftest import run_command

SOURCES = Path(__file__).parents[2] / "systemd"
SERVICES = tuple(unit for unit in UNITS if unit.endswith(".service"))
EXPOSURE_MAX = 1.5

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all units, of a command that exists."""
    prefix = tmp_path_factory.mktemp("package")
    done = run_command("install-systemd", "--prefix", str(prefix), "--executable", "/bin/true")
    assert done.returncode == 0, done.stderr
    return prefix / "usr/lib/systemd/system"


def directives(file: Path, section: str) -> list[str]:
    """The lines of a section that say something, in their order."""
    text = re.search(rf"^\[{section}\]$(.*?)(?=^\[|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None, f"{file.name} has no [{section}]"
    return [line for line in text.group(1).splitlines() if line and not line.startswith("#")]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_against_a_unit(units: Path, unit: str):
    done = subprocess.run(
        ("systemd-analyze", "verify", f"./{unit}"), cwd=units, capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "ledgerd" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_exposed_by_no_more_than_it_needs(units: Path, unit: str):
    done = subprocess.run(
        ("systemd-analyze", "security", "--offline=yes", "--no-pager", f"./{unit}"),
        cwd=units,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found.group(1)) <= EXPOSURE_MAX, done.stdout


def test_all_services_have_the_same_sandbox():
    def sandbox(unit: str) -> list[str]:
        lines = directives(SOURCES / unit, "Service")
        return lines[lines.index("User=ledgerd") :]

    assert len(sandbox("ledgerd.service")) > 30
    assert sandbox("ledgerd@.service") == sandbox("ledgerd.service") == sandbox("ledgerd-verify.service")


def test_an_instance_is_the_daemon_with_its_own_socket_and_side_door():
    def others(unit: str) -> set[str]:
        return {line for line in directives(SOURCES / unit, "Service") if not line.startswith(("ExecStart", "Sockets"))}

    assert others("ledgerd@.service") == others("ledgerd.service")
    assert {"ReusePort=yes"} == set(directives(SOURCES / "ledgerd@.socket", "Socket")) - set(
        directives(SOURCES / "ledgerd.socket", "Socket")
    )


def test_the_daemon_may_drain_and_open_as_many_files_as_it_wants():
    service = dict(line.partition("=")[::2] for line in directives(SOURCES / "ledgerd.service", "Service"))
    assert int(service["TimeoutStopSec"]) > Config().drain_timeout_s
    assert int(service["LimitNOFILE"]) > Config().connections_max


def test_the_sockets_are_where_the_daemon_would_listen_by_itself():
    assert f"ListenStream={Config().listen}" in directives(SOURCES / "ledgerd.socket", "Socket")
    assert f"ListenStream={Config().http}" in directives(SOURCES / "ledgerd-http.socket", "Socket")


def test_the_example_of_the_settings_shows_the_defaults():
    text = (SOURCES / "ledgerd.toml").read_text()
    assert tomllib.loads(text) == {}
    shown = tomllib.loads("\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line))
    defaults = Config()
    assert len(shown) > 5
    for name, value in shown.items():
        default = getattr(defaults, name)
        assert value == (list(default) if isinstance(default, tuple) else default), name


def test_the_package_carries_every_file_that_is_installed():
    project = tomllib.loads((SOURCES.parent / "pyproject.toml").read_text())
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    needed = (*UNITS, "ledgerd.sysusers", "ledgerd.tmpfiles", "ledgerd.toml")
    assert carried == {f"systemd/{name}": f"ledgerd/systemd/{name}" for name in needed}
    assert {file.name for file in SOURCES.glob("ledgerd*")} == set(needed)
