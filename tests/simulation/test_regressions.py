"""Seeds that failed once, and why. A seed means something only as long as the worlds are drawn as they were then, so
whatever one of them found also has a test of its own beside the code that it was in.
"""

from __future__ import annotations

import pytest

from tests.simulation.world import run_seed

SEEDS = {
    1: "the server ran a call of a lost generation after the next one had sent it again and was refused",
    3: "the same with a batch; see tests/storage/test_leftovers.py",
    117: "what waited in a session while the database was away waited for a sweep once more; see test_router.py",
    3280: "the client believed a batch that was sent twice that a member had not been carried out; see test_client.py",
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_that_failed_once_fails_no_more(seed: int) -> None:
    assert run_seed(seed).failures == [], SEEDS[seed]
