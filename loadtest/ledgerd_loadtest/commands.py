"""The transfers a benchmark sends, and the frames they travel in. Pure.

Every transfer moves the smallest amount between two accounts of the benchmark's own, so that balances hardly change and
nothing is refused for want of funds.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct
from uuid_utils import uuid7

from ledgerd_loadtest.socket_client import text_frame
from ledgerd_protocol.codec import encode_request
from ledgerd_protocol.money import to_text

T = TypeVar("T")

CURRENCY = "USD"
SCALE = 2
AMOUNT_MINOR = 1
AMOUNT = to_text(AMOUNT_MINOR, SCALE)


class Transfer(Struct, frozen=True, gc=False):
    """One transfer of `AMOUNT` between two accounts."""

    transaction_id: str
    source: int
    destination: int


class Request(Struct, frozen=True):
    """A prebuilt frame: one request with one transfer, or with a batch of them."""

    id: int
    frame: bytes
    transfers: list[Transfer]
    batch: bool


def draw(dice: random.Random, accounts: Sequence[int], source: int | None = None) -> Transfer:
    """A transfer between two different accounts of the list, or from ``source`` to another of it."""
    payer = dice.choice(accounts) if source is None else source
    payee = payer
    while payee == payer:
        payee = dice.choice(accounts)
    return Transfer(str(uuid7()), payer, payee)


def transfer_params(transfer: Transfer) -> dict[str, Any]:
    """The parameters of method `transfer`."""
    return {
        "transaction_id": transfer.transaction_id,
        "source_account_id": transfer.source,
        "destination_account_id": transfer.destination,
        "amount": AMOUNT,
        "currency": CURRENCY,
    }


def single_request(number: int, transfer: Transfer) -> Request:
    """A request with one transfer."""
    text = encode_request(number, "transfer", transfer_params(transfer))
    return Request(number, text_frame(text), [transfer], batch=False)


def batch_request(number: int, transfers: list[Transfer]) -> Request:
    """One `transaction_batch` with all of the transfers, each standing for itself."""
    items = [{"method": "transfer", "params": transfer_params(transfer)} for transfer in transfers]
    text = encode_request(number, "transaction_batch", {"items": items})
    return Request(number, text_frame(text), transfers, batch=True)


def request_maker(
    dice: random.Random, accounts: Sequence[int], source: int | None, batch: int | None, numbers: itertools.count[int]
) -> Callable[[], Request]:
    """Makes one request after another: with one transfer each, or with ``batch`` of them."""

    def single() -> Request:
        return single_request(next(numbers), draw(dice, accounts, source))

    def many() -> Request:
        assert batch is not None
        return batch_request(next(numbers), [draw(dice, accounts, source) for _ in range(batch)])

    return single if batch is None else many


class Supply(Generic[T]):
    """Things made before the clock starts, because making them is not what is measured; then made as needed."""

    def __init__(self, make: Callable[[], T], count: int) -> None:
        self._make = make
        self._ready = deque(make() for _ in range(count))

    def take(self) -> T:
        """The next one."""
        return self._ready.popleft() if self._ready else self._make()
