"""What clients ask for: commands drawn at random, and old ones sent again, as they were or altered."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from msgspec import Struct

from tests.simulation.chance import Uuids
from tests.simulation.store import POISON

Order = tuple[str, dict[str, Any]]
"""A method and its parameters."""


class Person(Struct, eq=False):
    """A user, an account of it, and the secret it signs in with. ``user_id`` None is the service, which acts for all.

    The first account of a user has ten times its number.
    """

    name: str
    user_id: int | None
    account_id: int
    secret: str
    scopes: tuple[str, ...]


class Orders:
    """The orders of a whole world, so that one client may repeat what another one sent."""

    def __init__(self, rng: Random, people: list[Person]) -> None:
        self._rng = rng
        self._ids = Uuids(rng)
        self.people = people
        self._sent: list[tuple[Person, Order, int | None]] = []
        self._holds: list[str] = []

    def draw(self, person: Person) -> tuple[Order, int | None]:
        """An order of this person, and the user who acts by it, if it is one that does not go for several."""
        rng = self._rng
        chance = rng.random()
        if self._sent and chance < 0.14:
            sender, order, acting = rng.choice(self._sent)
            if sender is person or person.user_id is None:
                return (self._altered(order) if chance < 0.05 else order), acting
        order, acting = self._fresh(person) if chance < 0.9 else self._batch(person)
        self._sent.append((person, order, acting))
        return order, acting

    def _fresh(self, person: Person) -> tuple[Order, int | None]:
        rng = self._rng
        account = person.account_id if person.user_id is not None else rng.choice(self.people).account_id
        owner = account // 10
        other = rng.choice([each.account_id for each in self.people if each.account_id != account])
        params: dict[str, Any] = {"transaction_id": str(self._ids.uuid7())}
        draw = rng.random()
        amount = rng.choice(("0.01", "1.00", "5.00", "40.00", "300.00"))
        if draw < 0.5:
            params |= {"source_account_id": account, "destination_account_id": other, "amount": amount}
            method = "transfer"
        elif draw < 0.6 and person.user_id is None:
            method, params = "credit", params | {"account_id": account, "amount": amount}
        elif draw < 0.7:
            method, params = "debit", params | {"account_id": account, "amount": amount}
        elif draw < 0.85:
            params |= {"account_id": account, "amount": amount, "expires_in_s": rng.choice((60, 61, 600))}
            if rng.random() < 0.5:
                params["destination_account_id"] = other
            self._holds.append(params["transaction_id"])
            method = "hold_place"
        elif draw < 0.95 and self._holds:
            params["hold_id"] = rng.choice(self._holds)
            method = "hold_capture" if person.user_id is None else "hold_release"
            return (method, params), None
        elif person.user_id is None and self._sent:
            method, params["original_transaction_id"] = "transaction_reverse", self._someones_id()
            return (method, params), None
        else:
            method, params = "transaction_cancel", {"account_id": account, "transaction_id": params["transaction_id"]}
        if rng.random() < 0.02:
            params["reason"] = POISON
            if method == "transaction_cancel":
                del params["reason"]
        return (method, params), owner

    def _someones_id(self) -> str:
        _, (_, params), _ = self._rng.choice(self._sent)
        return str(params.get("transaction_id") or self._ids.uuid7())

    def _batch(self, person: Person) -> tuple[Order, int | None]:
        rng = self._rng
        items = []
        for _ in range(rng.randrange(1, 5)):
            (method, params), _ = self._fresh(person)
            if method == "transaction_cancel":
                continue
            if rng.random() < 0.5:
                del params["transaction_id"]
            items.append({"method": method, "params": params})
        if not items:
            return self._fresh(person)
        whole = {"batch_id": str(self._ids.uuid4()), "items": items, "atomic": rng.random() < 0.6}
        return ("transaction_batch", whole), None

    def _altered(self, order: Order) -> Order:
        method, params = json.loads(json.dumps(order))
        target = self._rng.choice(params["items"])["params"] if "items" in params else params
        if "amount" in target:
            target["amount"] = "7.77"
        return method, params

    def know_hold(self, hold_id: str) -> None:
        """A hold that was there before."""
        self._holds.append(hold_id)

    def cancel(self, transaction_id: str) -> Order:
        """The order that settles what became of an id."""
        return "transaction_cancel", {"transaction_id": transaction_id, "account_id": self.people[0].account_id}
