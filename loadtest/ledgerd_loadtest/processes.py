"""What processes use, read from /proc: CPU seconds and resident memory."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from msgspec import Struct

from ledgerd_loadtest.measure import Cpu

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessTimes(Struct, frozen=True):
    """CPU seconds of one process, and of the children it has outlived."""

    own_s: float
    reaped_s: float


def parse_stat(text: str) -> tuple[int, ProcessTimes]:
    """Parent and times in the text of /proc/PID/stat. The name in it may have blanks and brackets of its own."""
    fields = text.rpartition(")")[2].split()
    ticks = [int(field) for field in fields[11:15]]
    return int(fields[1]), ProcessTimes((ticks[0] + ticks[1]) / _TICKS_PER_S, (ticks[2] + ticks[3]) / _TICKS_PER_S)


def parse_resident_kib(text: str) -> int:
    """KiB of memory held by a process, in the text of /proc/PID/status. Raises ValueError."""
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError("no VmRSS: the process has ended")


def resident_kib(pid: int) -> int:
    """KiB of memory held by a process. Raises OSError, ValueError."""
    return parse_resident_kib((_PROC / str(pid) / "status").read_text())


def resident_peak_kib(pid: int) -> int:
    """The most memory that a process has held since it began, or since `reset_peak`. Raises OSError, ValueError."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ValueError("no VmHWM: the process has ended")


def reset_peak(pid: int) -> None:
    """Begin to look for the most memory anew; see proc(5), clear_refs. Raises OSError."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def parse_open_files_max(text: str) -> int:
    """How many files a process may open, in the text of /proc/PID/limits. Raises ValueError."""
    for line in text.splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return sys.maxsize if soft == "unlimited" else int(soft)
    raise ValueError("no limit of open files")


def open_files_max(pid: int) -> int:
    """How many files a process may open. Raises OSError, ValueError."""
    return parse_open_files_max((_PROC / str(pid) / "limits").read_text())


def parent(pid: int) -> int:
    """The process that started this one. Raises OSError."""
    return parse_stat((_PROC / str(pid) / "stat").read_text())[0]


def is_postgres(pid: int) -> bool:
    """Whether there is such a process here and its program is PostgreSQL's."""
    try:
        return (_PROC / str(pid) / "comm").read_text().startswith("postgres")
    except OSError:
        return False


def family_s(pid: int) -> float:
    """CPU seconds of a process and all children it ever had; grandchildren only once they are gone."""
    times = parse_stat((_PROC / str(pid) / "stat").read_text())[1]
    total = times.own_s + times.reaped_s
    for child in (_PROC / str(pid) / "task" / str(pid) / "children").read_text().split():
        try:
            total += parse_stat((_PROC / child / "stat").read_text())[1].own_s
        except OSError:
            continue  # it ended since the list was read, and counts as reaped the next time
    return total


class Gauges(Struct, frozen=True):
    """Whom to look at: the daemon and the PostgreSQL server, by process number; None cannot be looked at from here."""

    daemon_pid: int | None
    postgres_pid: int | None

    def read(self) -> Cpu:
        """CPU used so far, this process being the client. A process that cannot be read counts as unknown."""
        return Cpu(time.process_time(), _seconds(self.daemon_pid, alone=True), _seconds(self.postgres_pid, alone=False))


def _seconds(pid: int | None, *, alone: bool) -> float | None:
    if pid is None:
        return None
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text())[1].own_s if alone else family_s(pid)
    except OSError:
        return None
