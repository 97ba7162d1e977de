"""The simulation notices: with a bug in the daemon, some of the first worlds break a promise."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.simulation import mutations
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.world import run_seed

SEEDS = 300

TRY_FIRST = {
    mutations.lanes_do_not_look_at_each_other: (68, 109),
    mutations.nobody_sweeps: (49, 58),
}
"""Of bugs that few worlds notice, some that did. Only to save time: the others would find them too."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_bug_turns_one_of_the_first_seeds_red(mutation: Mutation) -> None:
    with mutation():
        seeds = chain(TRY_FIRST.get(mutation, ()), range(1, SEEDS + 1))
        assert any(run_seed(seed).failures for seed in seeds)
