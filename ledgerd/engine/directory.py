"""What never changes about accounts, remembered: owner, currency, scale; and which account a transaction was on.

Only accounts that exist are remembered. One that does not may be opened at any moment, by any daemon, so its absence is
asked for every time. The same goes for transactions, whose sides never change once they are posted, and for the account
that stands in for one a wallet does not have yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledgerd.engine.commands import AccountFacts, AccountRef
from ledgerd.engine.ports import Directory

Key = int | tuple[int | str, str]
"""An account_id; the owner's user_id or wallet and the currency, because a user has one account in each; or a
transaction and its side."""


def key_of(ref: AccountRef, currency: str) -> Key:
    """What the account is remembered under."""
    if ref.account_id is not None:
        return ref.account_id
    if ref.user_id is not None:
        return ref.user_id, currency
    if ref.wallet is not None:
        return ref.wallet, currency
    # No currency is spelled in small letters.
    if ref.payer_of is not None:
        return ref.payer_of, "payer"
    assert ref.receiver_of is not None
    return ref.receiver_of, "receiver"


class AccountDirectory:
    """A cache in front of the database's directory.

    It holds two generations of entries. What is used moves to the young one; when that is full it becomes the old one,
    and what nobody used since then is forgotten. That keeps what a least-recently-used list would keep, and a hit costs
    one look-up instead of a reordering.
    """

    def __init__(self, source: Directory, entries_max: int) -> None:
        self._source = source
        self._half = max(1, entries_max // 2)
        self._young: dict[Key, AccountFacts] = {}
        self._old: dict[Key, AccountFacts] = {}

    def known(self, ref: AccountRef, currency: str) -> AccountFacts | None:
        """The account if it is remembered; ``currency`` matters for a ref by user_id or wallet only."""
        account_id = ref.account_id
        key = account_id if account_id is not None else key_of(ref, currency)
        facts = self._young.get(key)
        if facts is not None:
            return facts
        facts = self._old.get(key)
        if facts is not None:
            self._keep(key, facts)
        return facts

    async def find(self, refs: Sequence[tuple[AccountRef, str]]) -> list[AccountFacts | None]:
        """The accounts, None where there is none; those not remembered are asked for in one call.

        Raises StorageUnavailable.
        """
        found = {key_of(ref, currency): self.known(ref, currency) for ref, currency in refs}
        missing = {key_of(ref, currency): (ref, currency) for ref, currency in refs}
        missing = {key: named for key, named in missing.items() if found[key] is None}
        if missing:
            answers = await self._source.find_accounts(list(missing.values()))
            for (key, (ref, currency)), facts in zip(missing.items(), answers, strict=True):
                if facts is not None:
                    found[key] = facts
                    if ref.wallet is None or facts.currency == currency:
                        self._keep(key, facts)
        return [found[key_of(ref, currency)] for ref, currency in refs]

    def _keep(self, key: Key, facts: AccountFacts) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = facts
