"""`ledgerd install-systemd`: what it writes, what it leaves alone, and when it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ledgerd.install_systemd import UNITS, install_systemd, obstacle

HERE = "/opt/elsewhere/bin/ledgerd"
UNIT = "usr/lib/systemd/system/ledgerd.service"


def files_in(prefix: Path) -> set[str]:
    return {str(file.relative_to(prefix)) for file in prefix.rglob("*") if file.is_file()}


def test_a_package_gets_everything_with_the_right_path(ledgerd: Any, tmp_path: Path):
    done = ledgerd("install-systemd", "--prefix", str(tmp_path), "--executable", HERE)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(tmp_path) == {
        *(f"usr/lib/systemd/system/{unit}" for unit in UNITS),
        "usr/lib/sysusers.d/ledgerd.conf",
        "usr/lib/tmpfiles.d/ledgerd.conf",
        "etc/ledgerd/ledgerd.toml",
    }
    assert f"ExecStart={HERE} serve --config /etc/ledgerd/ledgerd.toml\n" in (tmp_path / UNIT).read_text()
    assert not [file for file in tmp_path.rglob("*.service") if "/opt/ledgerd" in file.read_text()]
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"wrote"}
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in tmp_path.rglob("*") if file.is_file())


def test_a_second_time_nothing_changes(ledgerd: Any, tmp_path: Path):
    arguments = ("install-systemd", "--prefix", str(tmp_path), "--executable", HERE)
    ledgerd(*arguments)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    done = ledgerd(*arguments)
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"unchanged", "kept"}
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}


def test_settings_are_never_overwritten_and_a_unit_that_differs_is_and_says_so(ledgerd: Any, tmp_path: Path):
    arguments = ("install-systemd", "--prefix", str(tmp_path), "--executable")
    ledgerd(*arguments, HERE)
    (tmp_path / "etc/ledgerd/ledgerd.toml").write_text("lanes = 3\n")
    done = ledgerd(*arguments, "/usr/bin/ledgerd")
    told = dict(reversed(line.split()) for line in done.stdout.splitlines())
    assert told[str(tmp_path / UNIT)] == "replaced"
    assert told[str(tmp_path / "usr/lib/systemd/system/ledgerd.socket")] == "unchanged"
    assert (tmp_path / "etc/ledgerd/ledgerd.toml").read_text() == "lanes = 3\n"


def test_a_unit_that_somebody_else_wrote_stops_it_before_it_writes_anything(ledgerd: Any, tmp_path: Path):
    theirs = tmp_path / UNIT
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\nExecStart=/bin/true\n")
    done = ledgerd("install-systemd", "--prefix", str(tmp_path), "--executable", HERE)
    assert done.returncode == 1
    assert f"{theirs} was not written by this command" in done.stderr
    assert files_in(tmp_path) == {UNIT}


def test_without_permission_it_says_what_to_do(ledgerd: Any, tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = ledgerd("install-systemd", "--prefix", str(tmp_path / "file"), "--executable", HERE)
    assert done.returncode == 1
    assert "cannot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["bin/ledgerd", "/opt/my ledger/bin/ledgerd", "/opt/%i/ledgerd"])
def test_a_path_that_a_unit_could_not_carry_is_wrong_usage(ledgerd: Any, tmp_path: Path, path: str):
    done = ledgerd("install-systemd", "--prefix", str(tmp_path), "--executable", path)
    assert done.returncode == 2
    assert files_in(tmp_path) == set()


def test_the_command_of_a_package_is_named_without_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripts = tmp_path / "opt/bank/bin"
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(scripts))
    install_systemd(tmp_path, None)
    assert "ExecStart=/opt/bank/bin/ledgerd serve" in (tmp_path / UNIT).read_text()


def test_what_the_service_could_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ledgerd.install_systemd._HIDDEN", ("/root", str(tmp_path / "home")))
    locked = tmp_path / "locked"
    command = locked / "bin/ledgerd"
    command.parent.mkdir(parents=True)
    command.touch()
    locked.chmod(0o700)
    assert obstacle(Path("/bin/sh")) is None
    assert obstacle(command) == f"the service's user may not enter {locked}, on the way to {command}"
    assert obstacle(Path("/nowhere/ledgerd")) == "there is no /nowhere/ledgerd"
    hidden = tmp_path / "home/me/ledgerd"
    assert obstacle(Path("/bin/sh"), hidden) == f"the service cannot see {hidden}: {tmp_path}/home is hidden from it"
