"""The short run: everything is broken for a while, and nothing is wrong afterwards. The long one is a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ledgerd_loadtest.chaos import report
from ledgerd_loadtest.chaos.history import read, write
from ledgerd_loadtest.chaos.run import Plan, run_chaos
from tests.chaos.replay import replay

pytestmark = pytest.mark.timeout(500)


def test_nothing_is_lost_or_doubled_whatever_breaks(tmp_path: Path) -> None:
    findings = run_chaos(Plan(seed=11, seconds=75, fault_s=0.7), print)
    write(findings.history, tmp_path / "history.ndjson")
    history = read(tmp_path / "history.ndjson")
    assert findings.problems == []
    assert replay(history) == []
    found = report.summary(findings)
    assert sum(found.faults.values()) > 5
    assert found.acknowledged > 100
    assert (found.resolved, found.lost, found.doubled) == (found.unknown, 0, 0)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        Path(name).chmod(0o755)  # the server does not run as root
        yield Path(name)


def test_an_interrupted_run_leaves_nothing_behind(short_directory: Path) -> None:
    command = [sys.executable, "-m", "ledgerd_loadtest.cli", "chaos", "--minutes", "5", "--seed", "1"]
    log = short_directory / "log"
    env = {**os.environ, "TMPDIR": str(short_directory)}
    with log.open("wb") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    try:
        while "calls" not in log.read_text():  # it tells of the calls that it has made so far
            assert run.poll() is None, log.read_text()
            time.sleep(0.1)
        started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130, log.read_text()
    finally:
        run.kill()
        run.wait()
    assert len(started) >= 3
    assert [process for process in started if process.is_running() and process.status() != "zombie"] == []
    assert list(short_directory.glob("ledgerd-chaos-*")) == []
