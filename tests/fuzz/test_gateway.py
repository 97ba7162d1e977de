"""Hypothesis on the targets that speak with the gateway: the bytes are decisions of a story, see `Source`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import conversation, door, wire
from tests.fuzz.profile import examples

FRAME_SIZES = st.lists(st.integers(0, 63), min_size=5, max_size=5).map(bytes)


@examples(300)
@given(FRAME_SIZES, st.binary(min_size=1, max_size=300))
def test_what_a_client_says_counts_and_not_how_it_is_cut(sizes: bytes, data: bytes) -> None:
    wire.wire(sizes + data)


@examples(250)
@given(st.binary(min_size=10, max_size=600))
def test_every_request_is_answered_once_and_the_connection_stays_usable(data: bytes) -> None:
    conversation.conversation(data)


@examples(250)
@given(st.binary(min_size=8, max_size=200))
def test_a_handshake_lets_in_whom_it_should_and_nobody_else(data: bytes) -> None:
    door.door(data)
