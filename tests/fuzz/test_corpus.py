"""Everything that is kept is run again: what has been reached before is reached, and what was found stays mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, Target

KEPT_BYTES_MAX = 200_000
"""Of the whole corpus: it is part of the repository and of every test run."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_corpus_of_every_target_holds(target: Target) -> None:
    kept = target.kept()
    assert kept
    for path in kept:
        try:
            target.run(path.read_bytes())
        except Exception as error:
            error.add_note(f"python -m tests.fuzz {target.name} --repeat {path}")
            raise


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = [path for target in TARGETS.values() for path in target.kept()]
    assert sum(path.stat().st_size for path in files) <= KEPT_BYTES_MAX
    assert all(path.stat().st_size <= target.bytes_max for target in TARGETS.values() for path in target.kept())
    directories = {path.name for path in Path(__file__).with_name("corpus").iterdir()}
    assert directories == set(TARGETS)
