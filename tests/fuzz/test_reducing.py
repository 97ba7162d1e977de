"""What is found is made small, and stays what was found."""

from __future__ import annotations

import random

from tests.fuzz.reducing import failure_of, reduced


def toy(data: bytes) -> None:
    """Two bugs: an x before a y, and any z."""
    if b"z" in data:
        raise KeyError(data)
    assert b"y" not in data.partition(b"x")[2]


def test_an_input_is_reduced_to_what_it_needs_to_fail_in_the_same_way() -> None:
    data = bytes(random.Random(1).choices(b"abc", k=300)) + b"x..................y" + b"c" * 50
    assert reduced(toy, data) == b"xy"


def test_another_failure_on_the_way_is_not_taken_for_the_same() -> None:
    assert reduced(toy, b"..z..x..y..") == b"z"
    assert failure_of(toy, b"z") != failure_of(toy, b"xy")


def test_an_input_that_does_not_fail_stays_as_it_is() -> None:
    assert failure_of(toy, b"yx") is None
    assert reduced(toy, b"yx") == b"yx"
