"""What the clients were told, held against what the database knows, at the moment they were told and at the end.

A client knows of each *sending* of a command whether it was acknowledged, surely refused, answered with "unknown", or
lost with its connection. The rules, which are those of the protocol:

- An acknowledgement is of something that is committed when it arrives, committed since the id was first sent, under the
  id and with the amount that were sent; and it tells exactly what is stored.
- A refusal that was recorded says what is recorded. A command all of whose sendings were refused is not there, ever.
- Nothing is there that nobody sent. No id is posted twice, and no sending is judged more than once.
- What a connection sent in one order for one acting user was judged in that order.
- A read tells the account as it was at some moment between its sending and its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any
from uuid import UUID, uuid5

import msgspec
import trio
from msgspec import Struct

from ledgerd.engine.commands import Record
from ledgerd_protocol.money import to_text
from tests.model import audit
from tests.simulation.nouns import SCALE
from tests.simulation.store import POISON, Commit, Store
from tests.simulation.trace import Trace

KINDS = {
    "credit": "credit",
    "debit": "debit",
    "transfer": "transfer",
    "hold_place": "hold",
    "hold_capture": "capture",
    "hold_release": "release",
    "transaction_reverse": "reversal",
    "transaction_cancel": "cancel",
}
"""What a method posts."""

ANSWER_MAX_S = 17.0
"""After which every command that its client waits for has an answer: its time to live, a call that hangs until it is
given up, the sweep, the network."""

UNAVAILABLE_MAX_S = 5.0
"""After which a command that waits while the database is away is answered."""

SLACK_S = 0.1
"""For the network on both ways."""


class Sending(Struct, eq=False):
    """One command on its way, once. ``acting`` is the user who acts, None where that is not known or not one.

    ``verdict`` is None while nothing is known, then acked, refused, unknown or lost.

    - ``counted``: what sends it sends it once, and says so each time.
    - ``attentive``: who sent it reads the answer when it comes.
    - ``prompt``: it is not behind as many others of its connection as may execute at once.
    - ``poisoned``: it, or one that travels with it, is what the database cannot store.
    """

    method: str
    params: Mapping[str, Any]
    transaction_id: str
    acting: int | None
    sent_at: float
    counted: bool = True
    attentive: bool = True
    prompt: bool = True
    poisoned: bool = False
    verdict: str | None = None
    code: str | None = None

    @property
    def kind(self) -> str:
        """What it posts."""
        return KINDS[self.method]


class Witness:
    """Everything that was sent and told."""

    def __init__(self, store: Store, trace: Trace) -> None:
        self.by_id: dict[str, list[Sending]] = {}
        self.lines: list[list[Sending]] = []
        """Of each connection that sends one thing after the other, what it sent, in order."""
        self.counts: Counter[str] = Counter()
        self._store = store
        self._trace = trace
        self._first_commit: dict[str, Commit] = {}
        store.on_commit = self._committed
        self.away_from, self.away_until = inf, -inf
        """The last time during which the database was away; it ends at infinity while it is."""
        self._settled: set[str] = set()

    # -- while it happens -----------------------------------------------------------------------------------------

    def sends(self, method: str, params: Mapping[str, Any], acting: int | None, **more: bool) -> list[Sending]:
        """A command, or a batch of them, is about to be sent."""
        now = trio.current_time()
        items = [{"method": method, "params": params}]
        if method == "transaction_batch":
            items = params["items"]
        sendings = []
        for index, item in enumerate(items):
            transaction_id = item["params"].get("transaction_id")
            if transaction_id is None:
                transaction_id = str(uuid5(UUID(params["batch_id"]), str(index)))
            sending = Sending(item["method"], item["params"], transaction_id, acting, now, **more)
            self.by_id.setdefault(transaction_id, []).append(sending)
            sendings.append(sending)
        self.counts["sent"] += len(sendings)
        self.travel_together(sendings)
        return sendings

    def travel_together(self, sendings: Sequence[Sending]) -> None:
        """They are one unit, which the database takes or refuses as a whole."""
        poisoned = any(sending.params.get("reason") == POISON for sending in sendings)
        for sending in sendings:
            sending.poisoned = sending.poisoned or poisoned

    def lost(self, sendings: Sequence[Sending]) -> None:
        """The connection went away without an answer."""
        for sending in sendings:
            if sending.verdict is None:
                sending.verdict = "lost"
                self.counts["lost"] += 1

    def answered(self, sendings: Sequence[Sending], result: Any, error: Any) -> None:
        """The answer to one message: a command, or a batch."""
        self._check_time(sendings[0])
        if error is not None:
            for sending in sendings:
                self._refused(sending, error)
        elif "outcomes" in result:
            for sending, outcome in zip(sendings, result["outcomes"], strict=True):
                if "error" in outcome:
                    self._refused(sending, outcome["error"])
                else:
                    self._acked(sending, outcome["result"])
        else:
            self._acked(sendings[0], result)

    def _check_time(self, sending: Sending) -> None:
        took = trio.current_time() - sending.sent_at
        if not sending.attentive:
            return
        if took > ANSWER_MAX_S:
            self._fail(sending, f"was answered after {took:.3f} s")
        most = UNAVAILABLE_MAX_S + SLACK_S
        if (
            sending.prompt
            and took > most
            and self.away_from <= sending.sent_at
            and self.away_until >= sending.sent_at + most
        ):
            self._fail(sending, f"waited {took:.3f} s for a database that was away")

    def _acked(self, sending: Sending, result: dict[str, Any]) -> None:
        self._told(sending, "acked")
        transaction_id = sending.transaction_id
        if result["transaction_id"] != transaction_id:
            self._fail(sending, f"was answered with {result['transaction_id']}")
            return
        commit = self._first_commit.get(transaction_id)
        if commit is None:
            self._fail(sending, "was acknowledged and is not committed")
            return
        self.same(result, commit.record, "the answer")
        if commit.record.kind != sending.kind:
            self._fail(sending, f"was acknowledged as a {commit.record.kind}")
        stated = sending.params.get("amount")
        if stated is not None and stated != to_text(commit.record.amount, SCALE):
            self._fail(sending, f"was acknowledged for {to_text(commit.record.amount, SCALE)} instead of {stated}")
        since = sending.sent_at if not result.get("replayed") else self.by_id[transaction_id][0].sent_at
        if commit.at < since:
            self._fail(sending, f"was committed at {commit.at:.6f}, before it was sent at {since:.6f}")

    def _refused(self, sending: Sending, error: dict[str, Any]) -> None:
        data = error["data"]
        sending.code = data["code"]
        self._told(sending, "unknown" if data["applied"] is None else "refused")
        if data["code"] == "internal_error" and not sending.poisoned:
            self._fail(sending, f"was answered with a bug: {error['message']}")
        attempt_id = data.get("attempt_id")
        if attempt_id is not None:
            attempt = self._store.ledger.attempts.get(attempt_id)
            if attempt is None:
                self._fail(sending, f"was refused as attempt {attempt_id}, which is not recorded")
            elif attempt.refusal.code.text != data["code"]:
                self._fail(sending, f"was refused with {data['code']}, recorded is {attempt.refusal.code.text}")

    def _told(self, sending: Sending, verdict: str) -> None:
        if sending.verdict is not None:
            self._fail(sending, f"was answered {verdict} after {sending.verdict}")
        sending.verdict = verdict
        self.counts[verdict] += 1

    def same(self, shown: dict[str, Any], record: Record, what: str) -> None:
        """Whether a transaction that somebody is shown is the one that is stored."""
        expected = {
            "kind": record.kind,
            "amount": to_text(record.amount, record.scale),
            "debit_account_id": record.debit_account,
            "credit_account_id": record.credit_account,
            "created_at": record.created_at,
        }
        for name, value in expected.items():
            if shown[name] != value:
                self._trace.fail(f"{what} says {name} {shown[name]} of {record.transaction_id}, not {value}")
        sides = {side.account_id: side for side in record.sides}
        for entry in shown["entries"]:
            side = sides.get(entry["account_id"])
            if side is None or any(
                entry[name] != value
                for name, value in {
                    "version": side.version,
                    "balance": to_text(side.balance, SCALE),
                    "held": to_text(side.held, SCALE),
                    "balance_change": to_text(side.balance_change, SCALE),
                }.items()
            ):
                self._trace.fail(f"{what} has the entry {entry} of {record.transaction_id}, not {side}")

    # -- reads ----------------------------------------------------------------------------------------------------

    def read_balance(self, params: Mapping[str, Any], sent_at: float, shown: dict[str, Any]) -> None:
        """The answer to `balance_get`."""
        account_id, version = shown["account_id"], shown["version"]
        least = max(self._store.version_at(account_id, sent_at), params.get("min_version", 0))
        most = self._store.ledger.accounts[account_id].version
        if not least <= version <= most:
            self._trace.fail(f"account {account_id} was read at version {version}, not within {least} to {most}")
        elif version:
            side = self.side(account_id, version)
            if shown["balance"] != to_text(side.balance, SCALE):
                self._trace.fail(f"account {account_id} was read with {shown['balance']} at version {version}")

    def read_transaction(self, transaction_id: str, sent_at: float, shown: dict[str, Any] | None) -> None:
        """The answer to `transaction_get` of somebody who sees everything; None is not_found."""
        commit = self._first_commit.get(transaction_id)
        if shown is not None and commit is None:
            self._trace.fail(f"{transaction_id} is shown and is not committed")
        elif shown is not None and commit is not None:
            self.same(shown, commit.record, "transaction_get")
        elif commit is not None and commit.at < sent_at:
            self._trace.fail(f"{transaction_id} was not found although it was committed at {commit.at:.6f}")

    def side(self, account_id: int, version: int) -> Any:
        """What gave an account a version."""
        record = self._store.histories[account_id][version - 1].record
        return next(side for side in record.sides if side.account_id == account_id)

    # -- the truth ------------------------------------------------------------------------------------------------

    def _committed(self, commit: Commit) -> None:
        record = commit.record
        if record.transaction_id in self._first_commit:
            self._trace.fail(f"{record.transaction_id} was applied twice")
        self._first_commit.setdefault(record.transaction_id, commit)
        if len(record.sides) == 2 and sum(side.balance_change for side in record.sides):
            self._trace.fail(f"{record.transaction_id} made or lost money")
        for side in record.sides:
            if len(self._store.histories[side.account_id]) != side.version:
                self._trace.fail(f"account {side.account_id} got version {side.version} out of turn")

    def unresolved(self) -> list[Sending]:
        """Of each id of which nobody knows what became of it, the latest sending."""
        return [
            sendings[-1]
            for transaction_id, sendings in self.by_id.items()
            if transaction_id not in self._settled
            and not any(sending.verdict == "acked" for sending in sendings)
            and any(sending.verdict in (None, "unknown", "lost") for sending in sendings)
        ]

    def settle(self, transaction_id: str) -> None:
        """What became of the id is known now: its cancel was answered."""
        self._settled.add(transaction_id)

    def conclude(self) -> None:
        """Everything that can only be said at the end."""
        for transaction_id, sendings in self.by_id.items():
            self._judge(transaction_id, sendings)
        for commit in self._store.commits:
            record = commit.record
            if record.transaction_id not in self.by_id and record.kind != "expiry" and record.reason != "opening":
                self._trace.fail(f"{record.kind} {record.transaction_id} was posted, and nobody sent it")
        for line in self.lines:
            self._check_order(line)
        ledger = self._store.ledger
        for sentence in audit(ledger.accounts, ledger.transactions.values(), ledger.pending_holds):
            self._trace.fail(sentence)

    def _judge(self, transaction_id: str, sendings: list[Sending]) -> None:
        commit = self._first_commit.get(transaction_id)
        if commit is None:
            if any(sending.verdict == "acked" for sending in sendings):
                self._fail(sendings[0], "was acknowledged and is gone")
        else:
            able = [sending for sending in sendings if sending.kind == commit.record.kind]
            if not able:
                self._fail(sendings[0], f"was posted as a {commit.record.kind}, which nobody sent")
            elif all(sending.verdict == "refused" and sending.code != "already_posted" for sending in able):
                self._fail(able[0], "was refused each time and is there all the same")
        judged = len(self._store.attempts.get(transaction_id, ())) + (commit is not None)
        if judged > len(sendings) and all(sending.counted for sending in sendings):
            self._fail(sendings[0], f"was judged {judged} times, and sent {len(sendings)} times")
        if any(sending.verdict is None for sending in sendings):
            self._fail(sendings[-1], "was never answered")
        if transaction_id in self._settled and commit is None:
            self._fail(sendings[-1], "was cancelled, and there is nothing that keeps it from being posted")

    def _check_order(self, line: list[Sending]) -> None:
        latest: dict[int, tuple[int, Sending]] = {}
        for sending in line:
            judged = self._store.judged.get(sending.transaction_id)
            if sending.acting is None or judged is None or len(self.by_id[sending.transaction_id]) > 1:
                continue
            before = latest.get(sending.acting)
            if before is not None and before[0] > judged:
                self._fail(sending, f"was judged before {before[1].transaction_id}, which was sent before it")
            latest[sending.acting] = (judged, sending)

    def _fail(self, sending: Sending, what: str) -> None:
        self._trace.fail(f"{sending.method} {sending.transaction_id} {what}")


def plain(value: Any) -> Any:
    """A Struct of the protocol as the JSON it came from."""
    return msgspec.to_builtins(value)
