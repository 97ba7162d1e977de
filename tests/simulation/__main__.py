"""Run seeds until one fails, or a number of them: `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.world import Result, run_seed

CHUNK = 10
"""Seeds that a process is given at once."""

REPEAT = "uv run python -m tests.simulation --seed {}"


class Stuck(Exception):
    """A seed takes too long in real time: its world turns without getting anywhere."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Run simulated worlds.")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many, default 1000")
    parser.add_argument("--first", type=int, default=1, help="the first one, default 1")
    parser.add_argument("--seed", type=int, help="run this one only, and show what happens")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, default one per processor")
    parser.add_argument("--twice", type=int, default=50, help="run every so many a second time; 0: none. Default 50")
    parser.add_argument("--failures", type=int, default=10, help="stop after so many failed seeds, default 10")
    parser.add_argument("--seed-timeout-s", type=int, default=120, help="give up a seed after so long, default 120")
    return parser.parse_args()


def main() -> int:
    """Exit status 0: all were clean."""
    arguments = _arguments()
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.seed_timeout_s)
    return _many(arguments)


def _one(seed: int, timeout_s: int) -> int:
    result = _bounded(seed, timeout_s, show=print)
    print(f"\nseed {seed}: {result.events} events, digest {result.digest}")
    for failure in result.failures:
        print(f"FAILED {failure}")
    other = _digest_elsewhere(seed)
    if other != result.digest:
        print(f"FAILED another process has the digest {other}: the simulation is not deterministic")
    return 1 if result.failures or other != result.digest else 0


def _digest_elsewhere(seed: int) -> str:
    """The digest in a process whose strings are hashed differently, so that no set has the same order."""
    code = f"from tests.simulation.world import run_seed; print(run_seed({seed}).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": str(seed % 4_000_000_000 + 1)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def _bounded(seed: int, timeout_s: int, show: Any = None) -> Result:
    def give_up(number: int, stack: Any) -> None:
        raise Stuck(f"seed {seed} is not over after {timeout_s} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(timeout_s)
    try:
        return run_seed(seed, show=show)
    except BaseException as error:  # whatever it is: it has a seed, and the others go on
        if isinstance(error, KeyboardInterrupt):
            raise
        return Result(seed, "", [f"{type(error).__name__}: {error}"], 0, {})
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _work(seeds: list[int], twice: int, timeout_s: int) -> list[Result]:
    """Runs in a process of its own."""
    results = []
    for seed in seeds:
        result = _bounded(seed, timeout_s)
        if twice and seed % twice == 0:
            again = _bounded(seed, timeout_s)
            if again.digest != result.digest:
                result.failures.append(f"digest {result.digest}, and {again.digest} the second time")
        results.append(result)
    return results


def _many(arguments: argparse.Namespace) -> int:
    console = Console()
    counts: Counter[str] = Counter()
    failed: list[Result] = []
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("seeds", total=arguments.seeds)
        for result in _results(arguments):
            progress.advance(task)
            counts.update(result.counts)
            counts["seeds"] += 1
            if result.failures:
                failed.append(result)
                console.print(f"[red]seed {result.seed}[/red]: {result.failures[0]}", highlight=False, soft_wrap=True)
                console.print(f"    {REPEAT.format(result.seed)}", highlight=False)
            if len(failed) >= arguments.failures:
                break
    took = time.monotonic() - began
    console.print(f"{counts.pop('seeds', 0)} seeds in {took:.0f} s, {len(failed)} failed", highlight=False)
    said = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()) if number)
    console.print(said, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _results(arguments: argparse.Namespace) -> Iterator[Result]:
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    chunks = _batched(seeds)
    if arguments.jobs == 1:
        for chunk in chunks:
            yield from _work(list(chunk), arguments.twice, arguments.seed_timeout_s)
        return
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running: set[Future[list[Result]]] = set()
        try:
            while True:
                for chunk in itertools.islice(chunks, 2 * arguments.jobs - len(running)):
                    running.add(pool.submit(_work, list(chunk), arguments.twice, arguments.seed_timeout_s))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batched(seeds: Iterable[int]) -> Iterator[tuple[int, ...]]:
    left = iter(seeds)
    while chunk := tuple(itertools.islice(left, CHUNK)):
        yield chunk


if __name__ == "__main__":
    sys.exit(main())
