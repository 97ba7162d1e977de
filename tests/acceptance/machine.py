"""A Debian machine with systemd as its first process, in a container on this one, for tests of what systemd does.

It has a real service manager, a real journal and Debian's own PostgreSQL; of the network only its own loopback. Needs
root and systemd-nspawn; building it needs debootstrap and a Debian mirror, once for all runs that share a directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUITE = "bookworm"
"""The oldest Debian whose systemd must do: 252."""

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates"

STATE_S = 120
"""For a state to come. Nothing takes nearly as long, on a machine that has something to do as well."""

REPOSITORY = Path(__file__).parents[2]

_SOURCES = ("ledgerd", "protocol", "loadtest", "systemd", "pyproject.toml", "README.md", "LICENSE")


def missing() -> str | None:
    """What this machine lacks for having one; None if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacks = [tool for tool in ("systemd-nspawn", "nsenter", "debootstrap") if shutil.which(tool) is None]
    return f"needs {', '.join(lacks)}" if lacks else None


class Machine:
    """One that runs. ``root`` is its file system as this machine sees it."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def start(self, script: str) -> subprocess.Popen[str]:
        """A shell script as root, line by line until one fails."""
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
        command = ("nsenter", f"--target={self._leader}", "--all", *clean, "bash", "-euc", script)
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, script: str, *, code: int | None = 0) -> str:
        """A shell script to its end; what it said. ``code`` is what it must end with, None for anything."""
        process = self.start(script)
        said, _ = process.communicate(timeout=STATE_S)
        if code not in (None, process.returncode):
            raise AssertionError(f"{script}\nended with {process.returncode}:\n{said}\n{self._last_words()}")
        return said.strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def property(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value {unit}")

    def until(self, script: str, wanted: str) -> None:
        """Wait until a script says something."""
        deadline = time.monotonic() + STATE_S
        while (said := self.run(script, code=None)) != wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"{script}\nsays {said!r}, not {wanted!r}\n{self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        return self.start("journalctl --sync; journalctl --lines=40 --no-pager").communicate(timeout=STATE_S)[0]

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """What the unit's processes have said, and what systemd has said about it."""
        lines = self.run(f"journalctl --sync; journalctl --unit={unit} --output=json").splitlines()
        return [json.loads(line) for line in lines]

    def events(self, unit: str) -> list[dict[str, Any]]:
        """The daemon's own log lines, decoded."""
        return [json.loads(entry["MESSAGE"]) for entry in self.journal(unit) if entry["MESSAGE"].startswith("{")]


@contextmanager
def booted(cache: Path) -> Iterator[Machine]:
    """A fresh machine with PostgreSQL, and ledgerd as built from these sources. What it writes is gone at the end."""
    base = _built(cache)
    with tempfile.TemporaryDirectory(prefix="ledgerd-machine-") as name:
        root = Path(name) / "root"
        for part in ("root", "upper", "work"):
            (Path(name) / part).mkdir()
        layers = f"lowerdir={base},upperdir={name}/upper,workdir={name}/work"
        subprocess.run(("mount", "-t", "overlay", "overlay", "-o", layers, str(root)), check=True)
        try:
            _copy_sources(root)
            _in_chroot(root, "python3", "-m", "venv", "/opt/ledgerd")
            _in_chroot(
                root, "/opt/ledgerd/bin/pip", "install", "--quiet", "--disable-pip-version-check", "/root/ledgerd"
            )
            with _running(root) as leader:
                machine = Machine(root, leader)
                machine.until("systemctl is-system-running", "running")
                yield machine
        finally:
            subprocess.run(("umount", str(root)), check=True)


def _built(cache: Path) -> Path:
    """The root of a machine that nobody has started yet."""
    base = cache / SUITE
    if not base.exists():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{SUITE}-", dir=cache))
        subprocess.run(("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(draft)), check=True)
        draft.chmod(0o755)
        starts_nothing = draft / "usr/sbin/policy-rc.d"
        starts_nothing.write_text("#!/bin/sh\nexit 101\n")
        starts_nothing.chmod(0o755)
        _in_chroot(draft, "apt-get", "install", "--yes", "--no-install-recommends", "postgresql")
        starts_nothing.unlink()
        draft.rename(base)
    return base


def _in_chroot(root: Path, *command: str) -> None:
    """Run a command in the root before it is started, with this machine's network, authorities and package index."""
    for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
        if Path(file).exists():
            shutil.copy(file, root / file.lstrip("/"))
    indexes = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and "FIND" not in name}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
    authorities = {"PIP_CERT": "/etc/ssl/certs/ca-certificates.crt"}
    subprocess.run(("chroot", str(root), *command), check=True, env=env | authorities | indexes | proxies)


def _copy_sources(root: Path) -> None:
    there = root / "root/ledgerd"
    there.mkdir()
    for name in _SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, there / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, there / name)


@contextmanager
def _running(root: Path) -> Iterator[int]:
    """Start it and shut it down; the process id of its systemd, seen from here."""
    # --keep-unit and --register=no: this machine needs no service manager of its own.
    options = ("--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--quiet")
    command = ("systemd-nspawn", f"--directory={root}", "--machine=ledgerd-test", "--notify-ready=yes", *options)
    with tempfile.TemporaryFile("w+") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield _leader(process, console)
        finally:
            process.send_signal(signal.SIGTERM)  # an orderly shutdown of the machine
            try:
                process.wait(STATE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _leader(process: subprocess.Popen[bytes], console: Any) -> int:
    deadline = time.monotonic() + STATE_S
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline:
        if process.poll() is not None:
            console.seek(0)
            raise AssertionError(f"systemd-nspawn ended with {process.returncode}: {console.read()}")
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.1)
    raise AssertionError("systemd did not start")
