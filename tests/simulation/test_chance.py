"""A seed is a history: nothing of it is left to anything else."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
import uuid
from datetime import datetime

import pytest
import uuid_utils

from tests.simulation import chance
from tests.simulation.world import run_seed

OURS = ("ledgerd.engine", "ledgerd.gateway", "ledgerd.supervision", "ledgerd_protocol")


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_seed_is_the_same_history_twice(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first == second
    assert first.events > 50


def test_different_seeds_are_different_histories() -> None:
    assert len({run_seed(seed).digest for seed in range(1, 6)}) == 5


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_seed_does_not_depend_on_how_strings_are_hashed(hash_seed: str) -> None:
    code = "from tests.simulation.world import run_seed; print(*[run_seed(seed).digest for seed in range(1, 6)])"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.split() == [run_seed(seed).digest for seed in range(1, 6)]


def test_everything_is_put_back() -> None:
    state = random.getstate()
    run_seed(1)
    assert random.getstate() == state
    assert (uuid_utils.uuid7, uuid.uuid4) == (chance._uuid7, chance._uuid4)
    assert isinstance(time.time(), float)
    assert abs(time.time() - chance.EPOCH_S) > 1_000


def test_no_module_draws_from_what_no_seed_governs() -> None:
    """Of `secrets` only what the simulation never calls is used: it makes its tokens itself."""
    drawn = {secrets.token_urlsafe, secrets.token_bytes, secrets.token_hex, secrets.randbelow, os.urandom, uuid.uuid1}
    ungoverned = [
        f"{module.__name__}.{name}"
        for module in chance.governed_modules()
        if module.__name__.startswith(OURS)
        for name, value in vars(module).items()
        if (callable(value) and any(value is each for each in drawn)) or isinstance(value, random.SystemRandom)
    ]
    assert ungoverned == []


def test_time_and_ids_are_simulated_wherever_a_module_keeps_them() -> None:
    with chance.governed("x"):
        left = [
            f"{module.__name__}.{name}"
            for module in chance.governed_modules()
            for name, value in vars(module).items()
            if any(value is each for each in (time, datetime, chance._uuid7, chance._uuid4))
        ]
        assert left == []
