"""One subscription as its subscriber sees it, checked event by event against the ledger.

Whatever happened on the way (another connection, another daemon, hints that were lost, a reader that fell asleep), the
events of one subscription, continued by resuming, tell every version of every account once, in order; and what an event
says of a version is what the ledger says.
"""

from __future__ import annotations

from typing import Any

from ledgerd_protocol.money import to_text
from tests.simulation.nouns import SCALE
from tests.simulation.store import Store
from tests.simulation.trace import Trace
from tests.simulation.witness import Witness


class Follower:
    """A subscription that goes on from connection to connection.

    ``mode`` is stream, latest, transactions or all. ``accounts`` are those that are followed, None for all of a user's.
    """

    def __init__(
        self, name: str, mode: str, user_id: int | None, accounts: list[int] | None, store: Store, witness: Witness
    ) -> None:
        self.name = name
        self.mode = mode
        self.user_id = user_id
        self.accounts = accounts
        self.positions: dict[int, int] = {}
        self.position: str | None = None
        self.epoch: str | None = None
        self.live = False
        self.closed: str | None = None
        self.events = 0
        self._store = store
        self._witness = witness
        self._trace: Trace = store.trace
        self._floor: dict[int, int] = {}  # of a feed of everything: what its first event of an account may not be above
        self._known_at: dict[int, int] = {}

    def params(self) -> dict[str, Any]:
        """What to subscribe with: from the beginning, or from where it stands."""
        options: dict[str, Any] = {}
        if self.mode == "all":
            options["all"] = True
            if self.position is not None:
                options["since"] = {"epoch": self.epoch, "position": self.position}
        else:
            if self.accounts is not None:
                options["account_ids"] = self.accounts
            elif self.user_id is not None:
                options["user_id"] = self.user_id
            if self.mode == "latest":
                options["mode"] = "latest"
            if self.epoch is not None:
                since = {str(account): version for account, version in self.positions.items()}
                options["since"] = {"epoch": self.epoch, "versions": since}
        self._known_at = {each: account.version for each, account in self._store.ledger.accounts.items()}
        self.live, self.closed = False, None
        return {"channel": "transactions" if self.mode == "transactions" else "balances", "options": options}

    def take(self, event: dict[str, Any]) -> None:
        """An event has arrived."""
        self.events += 1
        kind = event["type"]
        if self.closed is not None:
            self._fail(f"got {kind} after it was closed")
        if kind == "start":
            self._start(event)
        elif kind == "live":
            self.live = True
        elif kind == "update":
            self._update(event)
        elif kind == "transaction":
            self._transaction(event["transaction"])
        elif kind == "account_added":
            self._added(event["account"])
        elif kind == "closed":
            self.closed = event["code"]
        if "position" in event:
            self.position = event["position"]

    def behind(self) -> list[str]:
        """What it has not been told yet."""
        heads = {each: account.version for each, account in self._store.ledger.accounts.items()}
        if self.mode == "all":
            reached = {each: self.positions.get(each, self._floor.get(each, 0)) for each in heads}
        else:
            reached = self.positions
            missing = [each for each in self._followed() if each not in reached]
            if missing:
                return [f"was never told of accounts {missing}"]
        return [
            f"is at version {version} of account {each}, which is at {heads[each]}"
            for each, version in reached.items()
            if version < heads[each]
        ]

    # -- events ---------------------------------------------------------------------------------------------------

    def _followed(self) -> list[int]:
        if self.accounts is not None:
            return self.accounts
        return [each for each, account in self._store.ledger.accounts.items() if account.user_id == self.user_id]

    def _start(self, event: dict[str, Any]) -> None:
        if self.mode == "all":
            if self.epoch is None or "reason" in event:
                # It begins somewhere between the question and now: what is committed from now on is its business.
                self._floor = {each: account.version for each, account in self._store.ledger.accounts.items()}
            self.epoch = event["epoch"]
            return
        self.epoch = event["epoch"]
        for account in event["accounts"]:
            account_id, version = account["account_id"], account["version"]
            if account["from"] == "resumed":
                if self.positions.get(account_id) is None or version < self.positions[account_id]:
                    self._fail(f"resumed account {account_id} at {version}, where it never was")
                self._is_right(account_id, version, account)
            elif account_id in self.positions and "reason" not in account:
                self._fail(f"got a snapshot of account {account_id}, which it resumes, without a reason")
            else:
                if version < self._known_at.get(account_id, 0):
                    self._fail(f"starts at version {version} of account {account_id}, older than the subscription")
                self._is_right(account_id, version, account)
                self.positions[account_id] = version

    def _added(self, account: dict[str, Any]) -> None:
        account_id = account["account_id"]
        if account_id in self.positions:
            self._fail(f"was told twice that account {account_id} is new")
        self.positions[account_id] = account["version"]

    def _update(self, event: dict[str, Any]) -> None:
        account_id, version = event["account_id"], event["version"]
        if not self._is_right(account_id, version, event):
            return
        change = to_text(self._witness.side(account_id, version).balance_change, SCALE)
        if event["balance_change"] != change:
            self._fail(f"was told of a change by {event['balance_change']}, not {change}, at {account_id}:{version}")
        self._step(account_id, version, event.get("skipped", 0))

    def _step(self, account_id: int, version: int, skipped: int = 0) -> None:
        last = self.positions.get(account_id)
        if last is None and self.mode == "all":
            if version > self._floor.get(account_id, 0) + 1:
                self._fail(f"begins with version {version} of account {account_id}")
            last = version - 1
        if last is None:
            self._fail(f"got version {version} of account {account_id} before its start")
            return
        if self.mode == "all" and version <= last:
            return  # what comes again after a resume is told from what is new by its version
        if version != last + skipped + 1 or (skipped and self.mode != "latest"):
            self._fail(f"went from version {last} to {version} of account {account_id}, {skipped} skipped")
        self.positions[account_id] = version

    def _transaction(self, shown: dict[str, Any]) -> None:
        commit = self._store.records.get(shown["transaction_id"])
        if commit is None:
            self._fail(f"was told of {shown['transaction_id']}, which is not committed")
            return
        self._witness.same(shown, commit, self.name)
        for entry in shown["entries"]:
            if entry["account_id"] in self.positions:
                self._step(entry["account_id"], entry["version"])

    def _is_right(self, account_id: int, version: int, shown: dict[str, Any]) -> bool:
        """Whether the account has the version; and it looked like this, unless it was the opening."""
        if version > self._store.ledger.accounts[account_id].version:
            self._fail(f"was told of version {version} of account {account_id}, which is not committed")
            return False
        if version == 0:
            return False
        side = self._witness.side(account_id, version)
        expected = (to_text(side.balance, SCALE), to_text(side.held, SCALE), to_text(side.available, SCALE))
        if (shown["balance"], shown["held"], shown["available"]) != expected:
            self._fail(f"was told {shown} of account {account_id}, which had {expected}")
        return True

    def _fail(self, what: str) -> None:
        self._trace.fail(f"subscription {self.name} ({self.mode}) {what}")
