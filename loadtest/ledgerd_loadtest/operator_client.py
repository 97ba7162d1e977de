"""What the benchmark does as an operator, over the wire: its token, its accounts, their funds, and looking things up.

The money comes from credits and the accounts from registrations, as any client's would, so that what is measured is a
ledger that its own rules made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from uuid_utils import uuid7

from ledgerd_loadtest.audit import Point, minor
from ledgerd_loadtest.commands import CURRENCY
from ledgerd_loadtest.socket_client import SocketClient, text_frame
from ledgerd_protocol.codec import Reply, decode_reply, encode_request
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.methods import METHODS
from ledgerd_protocol.results import Account, BatchResult, Page, Registered, TokenInfo

T = TypeVar("T")

FUNDS = "1000000.00"
"""Given to every account at the start."""

PIPELINE = 128
"""Requests in flight; the daemon lets 288 wait on a connection."""

BATCH = 100


class OwnAccount(Struct, frozen=True):
    """An account of the benchmark's, and the secret of its user's token."""

    account_id: int
    token: str


class Operator:
    """One connection with an operator's token. Raises LedgerError (a refusal), ConnectionFailed and OSError."""

    def __init__(self, client: SocketClient) -> None:
        self._client = client
        self._numbers = itertools.count(1)

    def service_token(self) -> TokenInfo:
        """A token for bulk frames and direct calls; `revoke` it when done."""
        (made,) = self._call_all("token_create", [{"scopes": ["service"], "label": "ledgerd-loadtest"}])
        return msgspec.json.decode(made, type=TokenInfo)

    def revoke(self, token: TokenInfo) -> None:
        """Make a token useless."""
        self._call_all("token_revoke", [{"token_id": token.token_id}])

    def make_accounts(self, count: int) -> list[OwnAccount]:
        """Register users without e-mail, each with an account and `FUNDS`."""
        made = []
        users = [{"name": f"loadtest {number}", "currency": CURRENCY} for number in range(1, count + 1)]
        for result in self._call_all("user_register", users):
            registered = msgspec.json.decode(result, type=Registered)
            made.append(OwnAccount(registered.account.account_id, registered.token))
        self._fund([account.account_id for account in made])
        return made

    def _fund(self, account_ids: Sequence[int]) -> None:
        batches = []
        for chunk in _chunks(account_ids, BATCH):
            items = [
                {
                    "method": "credit",
                    "params": {
                        "transaction_id": str(uuid7()),
                        "account_id": account_id,
                        "amount": FUNDS,
                        "currency": CURRENCY,
                    },
                }
                for account_id in chunk
            ]
            batches.append({"items": items})
        for result in self._call_all("transaction_batch", batches):
            for outcome in msgspec.json.decode(result, type=BatchResult).outcomes:
                if isinstance(outcome.error, dict):
                    raise LedgerError.from_wire(outcome.error)

    def points(self, account_ids: Sequence[int]) -> dict[int, Point]:
        """Where each of the accounts stands now; those that do not exist are left out."""
        wanted = set(account_ids)
        found: dict[int, Point] = {}
        cursor: str | None = None
        while len(found) < len(wanted):
            params = {"limit": 1000} if cursor is None else {"limit": 1000, "cursor": cursor}
            page = msgspec.json.decode(self._call_all("account_list", [params])[0], type=Page)
            for account in msgspec.convert(page.items, list[Account]):
                if account.account_id in wanted:
                    found[account.account_id] = Point(minor(account.balance), account.version)
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    def missing(self, transaction_ids: Sequence[str]) -> list[str]:
        """Those of the transactions that the daemon does not find."""
        known = METHODS["transaction_get"].result
        missing = []
        params = [{"transaction_id": transaction_id} for transaction_id in transaction_ids]
        for transaction_id, reply in zip(transaction_ids, self._ask_all("transaction_get", params), strict=True):
            found = None if reply.result is None else msgspec.json.decode(reply.result, type=known)
            if found is None or found.transaction_id != transaction_id or found.status != "posted":
                missing.append(transaction_id)
        return missing

    def _call_all(self, method: str, params: Sequence[dict[str, Any]]) -> list[msgspec.Raw]:
        """The results, in order, of one request each."""
        results = []
        for reply in self._ask_all(method, params):
            if reply.result is None:
                raise LedgerError.from_wire(reply.error or {})
            results.append(reply.result)
        return results

    def _ask_all(self, method: str, params: Sequence[dict[str, Any]]) -> list[Reply]:
        replies: list[Reply] = []
        for chunk in _chunks(params, PIPELINE):
            numbers = [next(self._numbers) for _ in chunk]
            texts = [encode_request(number, method, each) for number, each in zip(numbers, chunk, strict=True)]
            self._client.send(b"".join(map(text_frame, texts)))
            by_number: dict[object, Reply] = {}
            while len(by_number) < len(chunk):
                reply = decode_reply(self._client.receive_one())
                if isinstance(reply, Reply):
                    by_number[reply.id] = reply
            replies += [by_number[number] for number in numbers]
        return replies


def _chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
