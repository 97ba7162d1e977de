"""Tries what the sandbox of the units forbids. A script: it runs in the place of the daemon, with the same unit.

Prints one JSON object: for each attempt the name of the error it ended with, or "done".
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HOME = Path("/var/lib/ledgerd")
CLONE_NEWUSER = 0x10000000
NEW_KEYRING = 250  # keyctl(2) on x86-64

libc = ctypes.CDLL(None, use_errno=True)


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, ValueError) as error:  # ValueError: a limit that may not be raised
        return f"{type(error).__name__}: {error}"
    return "done"


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_it(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def execute_what_was_written(directory: str) -> None:
    program = Path(directory) / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    subprocess.run([str(program)], check=True)


def write_and_execute_memory() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def see_another_process() -> None:
    if not Path("/proc/1/status").exists():
        raise PermissionError


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read its settings": lambda: Path("/etc/ledgerd/ledgerd.toml").read_text(),
    "read its credential": lambda: (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "ledgerd_dsn").read_text(),
    "write in its home": lambda: (HOME / "note").write_text("x"),
    "write in /tmp": lambda: Path("/tmp/note").write_text("x"),
    "reach PostgreSQL": lambda: socket.socket(socket.AF_UNIX).connect("/run/postgresql/.s.PGSQL.5432"),
    "look its processor time up": lambda: Path("/proc/stat").read_text(),
    "read the secrets of others": lambda: list(Path("/etc/ledgerd/credentials").iterdir()),
    "write its settings": lambda: open_it("/etc/ledgerd/ledgerd.toml", os.O_WRONLY),
    "write its program": lambda: open_it("/opt/ledgerd/bin/ledgerd", os.O_WRONLY),
    "write in /run": lambda: Path("/run/note").write_text("x"),
    "look into /root": lambda: list(Path("/root").iterdir()),
    "see another process": see_another_process,
    "execute what is in its home": lambda: execute_what_was_written(str(HOME)),
    "execute what is in /tmp": lambda: execute_what_was_written("/tmp"),
    "execute what is in /dev/shm": lambda: execute_what_was_written("/dev/shm"),
    "write and execute memory": write_and_execute_memory,
    "become root": lambda: os.setuid(0),
    "change the owner of a file": lambda: os.chown(HOME / "note", 0, 0),
    "make a file setuid": lambda: (HOME / "note").chmod(0o4700),
    "make a user namespace": lambda: checked(libc.unshare(CLONE_NEWUSER)),
    "mount": lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "raise its priority": lambda: os.nice(-5),
    "raise its limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)),
    "use a keyring": lambda: checked(libc.syscall(NEW_KEYRING, 0, -3, 1)),
    "trace": lambda: checked(libc.ptrace(0, 0, 0, 0)),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "change its host's name": lambda: socket.sethostname("x"),
    "write a kernel's setting": lambda: open_it("/proc/sys/vm/swappiness", os.O_WRONLY),
    "write in its control group": lambda: Path("/sys/fs/cgroup/x").mkdir(),
    "open the kernel's log": lambda: open_it("/dev/kmsg", os.O_RDONLY),
}

sys.stdout.write(json.dumps({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}))
