"""One target under atheris for a while: a process of its own, its progress, and what becomes of what it finds."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from tests.fuzz.reducing import reduced
from tests.fuzz.targets import Target

ROOT = Path(__file__).parents[2]

INPUT_TIMEOUT_S = 30
"""For one input; longer is a finding of its own."""

MEMORY_MAX_MB = 2_048
INTERRUPTED = 72
"""libFuzzer's exit status after SIGTERM."""

SAY_EVERY_S = 10.0
END_S = 30.0

_STATUS = re.compile(r"#(\d+)\s+(\w+).* cov: (\d+) ft: (\d+)")
_STATISTIC = re.compile(r"stat::number_of_executed_units: (\d+)")


class AtherisIsMissing(Exception):
    """atheris is not installed: it has wheels for CPython 3.11 to 3.13 on Linux x86_64 only.

    Elsewhere the corpus and the Hypothesis tests run: uv run --group test pytest tests/fuzz
    """


class Figures(Struct):
    """What a campaign came to. ``covered_at_first`` is what the corpus reaches; ``finding`` a file that fails,
    ``last_words`` what the process said about it.
    """

    target: str
    executions: int = 0
    seconds: float = 0.0
    covered_at_first: int = 0
    covered: int = 0
    features: int = 0
    interrupted: bool = False
    last_words: str = ""
    finding: Path | None = None

    def __str__(self) -> str:
        return (
            f"{self.target:<10} {self.executions:>9,} executions in {self.seconds:6.0f} s, "
            f"coverage {self.covered_at_first} -> {self.covered} edges, {self.features} features"
        )


def require_atheris() -> None:
    """Raises AtherisIsMissing."""
    if importlib.util.find_spec("atheris") is None:
        raise AtherisIsMissing


def fuzz(target: Target, seconds: float, *, keep: bool, say: Callable[[object], None]) -> Figures:
    """Fuzz one target, until something is found or the time is over. What it finds goes into the corpus, reduced.

    ``keep``: inputs that reach what the corpus does not reach are added to it.
    """
    with tempfile.TemporaryDirectory(prefix="ledgerd-fuzz-") as scratch:
        work = Path(scratch)
        figures = _run(target, work, seconds, say)
        if keep:
            added = merge(target, work, target.corpus, work / "new")
            say(f"{target.name:<10} {added} inputs added to the corpus")
        found = sorted((work / "found").iterdir())
        if found:
            say(figures.last_words)
            figures.finding = _kept(target, found[0])
    return figures


def merge(target: Target, work: Path, corpus: Path, *more: Path) -> int:
    """Add to a corpus, which may be empty, the smallest of the inputs in ``more`` that reach more edges; how many."""
    before = {path.name for path in corpus.iterdir()}
    flags = ["-merge=1", "-use_counters=0", f"-max_len={target.bytes_max}", str(corpus), *map(str, more)]
    done = subprocess.run(_command(target, work, *flags), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"merging failed: {done.stderr[-2000:]}")
    return len({path.name for path in corpus.iterdir()} - before)


def _command(target: Target, work: Path, *flags: str) -> list[str]:
    start = [sys.executable, "-m", "tests.fuzz.runner", target.name]
    again = work / "again"
    again.write_text(f'#!/bin/sh\nexec {shlex.join([*start, str(again)])} "$@"\n')
    again.chmod(0o700)
    return [*start, str(again), *flags]


def _run(target: Target, work: Path, seconds: float, say: Callable[[object], None]) -> Figures:
    for name in ("new", "found"):
        (work / name).mkdir()
    target.corpus.mkdir(parents=True, exist_ok=True)
    (work / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    command = _command(
        target,
        work,
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.bytes_max}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-rss_limit_mb={MEMORY_MAX_MB}",
        f"-artifact_prefix={work / 'found'}/",
        *([f"-dict={work / 'words'}"] if target.words else []),
        "-print_final_stats=1",
        "-reload=0",
        str(work / "new"),
        str(target.corpus),
    )
    figures = Figures(target.name)
    began = time.monotonic()
    with _process(command, figures) as lines:
        _follow(lines, figures, began, say)
    figures.seconds = time.monotonic() - began
    return figures


@contextmanager
def _process(command: list[str], figures: Figures) -> Iterator[Iterator[str]]:
    """The lines that the process writes. Ctrl-C ends it in order; it never outlives the block."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    last: list[str] = []
    try:
        try:
            yield _remembered(process.stderr, last)
        except KeyboardInterrupt:
            figures.interrupted = True
            process.send_signal(signal.SIGTERM)
            for line in process.stderr:
                _take(line, figures)
        status = process.wait(END_S)
        figures.last_words = "".join(last)
        if status and status != INTERRUPTED and not any("Test unit written" in line for line in last):
            raise RuntimeError(f"the fuzzer ended by itself:\n{figures.last_words}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def _remembered(lines: Iterator[str], last: list[str]) -> Iterator[str]:
    for line in lines:
        last.append(line)
        del last[:-40]
        yield line


def _follow(lines: Iterator[str], figures: Figures, began: float, say: Callable[[object], None]) -> None:
    said = began
    for line in lines:
        _take(line, figures)
        now = time.monotonic()
        if now - said >= SAY_EVERY_S:
            said, figures.seconds = now, now - began
            say(figures)


def _take(line: str, figures: Figures) -> None:
    if status := _STATUS.match(line):
        figures.executions, figures.covered, figures.features = (int(status[group]) for group in (1, 3, 4))
        if status[2] == "INITED":
            figures.covered_at_first = figures.covered
    elif statistic := _STATISTIC.match(line):
        figures.executions = int(statistic[1])


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _kept(target: Target, found: Path) -> Path:
    """Reduce what was found and put it into the corpus, unless it is about time or memory: then as it is."""
    data = found.read_bytes()
    if found.name.startswith("crash-"):
        data = reduced(target.run, data)
    path = target.corpus / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path
