"""What the processes say of themselves: logs, metrics, statistics, and the database's own audit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import trio

from ledgerd_loadtest.baseline import value
from ledgerd_loadtest.chaos.arena import Arena
from ledgerd_loadtest.chaos.history import Signs

EXPECTED = frozenset({"database_silent", "serving_failed"})
"""Logged as errors, and rightly so: a database that hangs, or that is too small to serve from, is what was done to it.
A daemon that ends although nothing was done is counted elsewhere."""

VERIFY_TIMEOUT_S = 120
LINES_MAX = 5
LINE_MAX = 2_000


class _Line(msgspec.Struct):
    event: str = ""
    level: str = ""


async def read_signs(arena: Arena) -> Signs:
    """Ask everybody; the daemons and the database must run. Logs tell of processes that were killed, too."""
    return await trio.to_thread.run_sync(_read, arena)


def _read(arena: Arena) -> Signs:
    signs = Signs(ended_by_themselves=arena.ended_wrongly)
    for daemon in arena.daemons:
        _read_log(signs, arena.log_of(daemon.number).read_text(errors="replace").splitlines())
        metrics = _metrics(f"{daemon.http_url}/metrics")
        signs.deadlocks = max(signs.deadlocks, metrics.get("ledgerd_deadlocks_total", 0))
        signs.fence_hits = max(signs.fence_hits, metrics.get("ledgerd_fence_hits_total", 0))
    # PostgreSQL forgets its statistics in a crash, and its log does not.
    logged = sum("deadlock detected" in line for line in arena.cluster.log_lines())
    sql = "SELECT sum(deadlocks)::bigint FROM pg_stat_database"
    signs.deadlocks = max(signs.deadlocks, logged, value(arena.cluster.dsn, sql) or 0)
    signs.verify = _verify(arena.cluster.dsn)
    return signs


def _read_log(signs: Signs, lines: list[str]) -> None:
    for text in lines:
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.MsgspecError:
            line = _Line(level="error" if text.strip() else "")
        signs.deadlocks += line.event == "deadlock"
        signs.fence_hits += line.event == "fence_hit"
        if line.level in ("error", "critical") and line.event not in EXPECTED and len(signs.errors_logged) < LINES_MAX:
            signs.errors_logged.append(text[:LINE_MAX])


def _metrics(url: str) -> dict[str, int]:
    """The counters without labels, by name; none if the daemon does not answer, which others notice."""
    try:
        with urlopen(url, timeout=10) as answer:  # noqa: S310  http of our own daemon
            text = answer.read().decode()
    except (URLError, OSError):
        return {}
    return {name: int(float(number)) for name, number in re.findall(r"^(\w+) ([0-9.e+]+)$", text, re.MULTILINE)}


def _verify(dsn: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ledgerd", "verify"],
        capture_output=True,
        text=True,
        timeout=VERIFY_TIMEOUT_S,
        check=False,
        env={**os.environ, "LEDGERD_DSN": dsn},
    )
    if done.returncode == 0:
        return []
    return [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("ok")][:10]
