"""The command that puts the daemon under systemd: units, its user, its directories, an example of its settings.

Rules of this file:

- The files are those in `systemd/`, which the package carries, word for word. Only the command's path is another.
- What an administrator owns is left alone: the settings, and a unit that was not written from here.
- Nothing is started, and no user made: what to do next is printed, for a person or a package's scripts to do.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from ledgerd.exits import Exit, Failed
from ledgerd.terminal import write

EXECUTABLE = "/opt/ledgerd/bin/ledgerd"
"""The command's path in the units as they are in `systemd/`."""

UNITS = (
    "ledgerd.service",
    "ledgerd.socket",
    "ledgerd-http.socket",
    "ledgerd@.service",
    "ledgerd@.socket",
    "ledgerd-verify.service",
    "ledgerd-verify.timer",
)

_MARK = "# Written by `ledgerd install-systemd`"
"""How every file begins that may be written again."""

_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev")  # noqa: S108  compared with, not written to
"""What the service does not see: ProtectHome, PrivateTmp, PrivateDevices."""

_NEXT = """\
next:
  systemd-sysusers && systemd-tmpfiles --create ledgerd.conf && systemctl daemon-reload
  echo 'postgresql:///DATABASE?host=/run/postgresql' > /etc/ledgerd/credentials/dsn
  systemctl enable --now ledgerd ledgerd-verify.timer"""


class Layout(Struct, frozen=True):
    """Where the files go, below a root directory."""

    units: Path
    sysusers: Path
    tmpfiles: Path
    settings: Path


def layout(prefix: Path | None) -> Layout:
    """An administrator's own places on this machine, or below ``prefix`` those of a package."""
    if prefix is None:
        units, configuration, root = Path("/etc/systemd/system"), Path("/etc"), Path("/")
    else:
        units, configuration, root = prefix / "usr/lib/systemd/system", prefix / "usr/lib", prefix
    return Layout(
        units=units,
        sysusers=configuration / "sysusers.d/ledgerd.conf",
        tmpfiles=configuration / "tmpfiles.d/ledgerd.conf",
        settings=root / "etc/ledgerd/ledgerd.toml",
    )


def install_systemd(prefix: Path | None, executable: Path | None) -> None:
    """Write what is missing or different, and tell. Raises Failed before or at the first thing that cannot be done."""
    places = layout(prefix)
    command = executable or _this_command(prefix)
    if not command.is_absolute() or set(str(command)) & set(" \t\n\"'\\%$"):
        raise Failed(f"--executable {command}: give an absolute path without spaces, quotes, % or $", Exit.USAGE)
    wanted = list(_files(places, command))
    for file, text in wanted:
        _check_ours(file, text)
    for file, text in wanted:
        write(f"{_put(file, text):10}{file}")
    kept = places.settings.exists()
    write(f"{'kept' if kept else _put(places.settings, _source('ledgerd.toml')):10}{places.settings}")
    if prefix is None:
        write(_NEXT)


def _files(places: Layout, command: Path) -> Iterator[tuple[Path, str]]:
    for unit in UNITS:
        yield places.units / unit, _source(unit).replace(EXECUTABLE, str(command))
    yield places.sysusers, _source("ledgerd.sysusers")
    yield places.tmpfiles, _source("ledgerd.tmpfiles")


def _source(name: str) -> str:
    package = Path(__file__).parent
    carried = package / "systemd"
    return ((carried if carried.is_dir() else package.parent / "systemd") / name).read_text("utf-8")


# -- the command's path --------------------------------------------------------------------------------------------


def _this_command(prefix: Path | None) -> Path:
    """Path of the `ledgerd` that is running, without ``prefix`` if it is below that. Raises Failed.

    It must be one that the service can run. For a package a warning will do: it may be built anywhere.
    """
    command = Path(sysconfig.get_path("scripts")) / "ledgerd"
    if prefix is not None and command.is_relative_to(prefix.resolve()):
        return Path("/") / command.relative_to(prefix.resolve())
    if problem := obstacle(command, Path(sys.executable).resolve(), Path(sys.base_prefix).resolve()):
        if prefix is None:
            raise Failed(f"{problem}. Install ledgerd for the whole machine, as in /opt/ledgerd, or give --executable")
        sys.stderr.write(f"ledgerd: warning: {problem}; --executable names the path on the machine that runs it\n")
    return command


def obstacle(*needed: Path) -> str | None:
    """Why the service, in its sandbox and as its own user, could not use these files; None if it can."""
    for path in needed:
        for hidden in _HIDDEN:
            if path.is_relative_to(hidden):
                return f"the service cannot see {path}: {hidden} is hidden from it"
        if not path.exists():
            return f"there is no {path}"
        for directory in path.parents:
            if not directory.stat().st_mode & 0o001:
                return f"the service's user may not enter {directory}, on the way to {path}"
    return None


# -- writing -------------------------------------------------------------------------------------------------------


def _check_ours(file: Path, text: str) -> None:
    try:
        found = file.read_text("utf-8")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from error
    if found != text and not found.startswith(_MARK):
        raise Failed(f"{file} was not written by this command: move it away, its changes belong into a drop-in")


def _put(file: Path, text: str) -> str:
    """Make the file have the text, whole or not at all; what was done, in a word. Raises Failed."""
    existed = file.exists()
    if existed and file.read_text("utf-8") == text:
        return "unchanged"
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, "utf-8")
        draft.chmod(0o644)
        draft.replace(file)
    except OSError as error:
        advice = "Run it as root, or write elsewhere with --prefix"
        raise Failed(f"cannot write {file}: {error.strerror}. {advice}") from error
    return "replaced" if existed else "wrote"
