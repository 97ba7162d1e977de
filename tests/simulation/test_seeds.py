"""A few worlds on every run of the tests; `python -m tests.simulation` runs as many as one likes."""

from __future__ import annotations

import os

import pytest

from tests.simulation.world import run_seed

SEEDS = int(os.environ.get("LEDGERD_SIMULATION_SEEDS", "100"))
PER_TEST = 20


@pytest.mark.parametrize("first", range(1, SEEDS + 1, PER_TEST))
def test_worlds_come_to_rest_with_every_promise_kept(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        result = run_seed(seed)
        assert result.failures == [], f"uv run python -m tests.simulation --seed {seed}"


def test_a_world_has_everything_in_it_that_it_is_about() -> None:
    seen: set[str] = set()
    lines: list[str] = []
    for seed in range(1, 61):
        lines.clear()
        result = run_seed(seed, show=lines.append)
        seen |= {name for name, count in result.counts.items() if count}
        seen |= {word for line in lines for word in line.split()[1:4]}
        if seen >= EXPECTED:
            return
    raise AssertionError(f"never seen: {EXPECTED - seen}")


EXPECTED = {
    "acked", "refused", "unknown", "lost", "resolved", "waits", "told",  # what clients learn
    "crash", "drain", "outage", "cut", "revoke", "nemesis",  # what the nemesis does
    "expiry", "capture", "release", "reversal", "hold", "transfer", "transaction_batch",  # what is posted
    "breaks", "subscribes", "event",
}  # fmt: skip
