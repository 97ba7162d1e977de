"""AccountDirectory: what it remembers, what it asks for."""

from __future__ import annotations

import pytest

from ledgerd.engine.commands import AccountRef
from ledgerd.engine.directory import AccountDirectory, key_of
from ledgerd.engine.ports import StorageUnavailable
from tests.engine.fake_ledger import FakeLedger


@pytest.fixture
def ledger() -> FakeLedger:
    ledger = FakeLedger()
    for account in range(1, 20):
        ledger.open(account)
    return ledger


BY_ID = (AccountRef(account_id=3), "")
BY_USER = (AccountRef(user_id=4), "USD")


async def test_what_was_found_is_known_without_asking(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    assert directory.known(*BY_ID) is None
    found = await directory.find([BY_ID, BY_USER])
    assert [facts.account_id for facts in found if facts] == [3, 4]
    assert directory.known(*BY_ID) == found[0]
    assert directory.known(*BY_USER) == found[1]
    await directory.find([BY_ID, BY_USER])
    assert len(ledger.directory_calls) == 1


async def test_only_the_missing_are_asked_for_and_each_once(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    await directory.find([BY_ID])
    found = await directory.find([BY_ID, BY_USER, BY_USER])
    assert ledger.directory_calls[1] == [BY_USER]
    assert [facts.account_id for facts in found if facts] == [3, 4, 4]


async def test_an_account_that_does_not_exist_is_asked_for_again_and_found_once_opened(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    nobody = (AccountRef(account_id=99), "")
    assert await directory.find([nobody]) == [None]
    ledger.open(99)
    (facts,) = await directory.find([nobody])
    assert facts is not None
    assert facts.account_id == 99


async def test_a_users_accounts_in_two_currencies_are_two(ledger: FakeLedger) -> None:
    ledger.open(50, user_id=4, currency="EUR")
    directory = AccountDirectory(ledger, 100)
    found = await directory.find([BY_USER, (AccountRef(user_id=4), "EUR")])
    assert [facts.account_id for facts in found if facts] == [4, 50]


async def test_a_side_of_a_transaction_is_remembered_once_it_is_posted(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    payer, receiver = (AccountRef(payer_of="some id"), ""), (AccountRef(receiver_of="some id"), "")
    assert await directory.find([payer, receiver]) == [None, None]
    ledger.post([("debit", 3, -1), ("credit", 4, 1)], transaction_id="some id")
    found = await directory.find([payer, receiver])
    assert [facts.account_id for facts in found if facts] == [3, 4]
    assert [directory.known(*named) for named in (payer, receiver)] == found


async def test_both_sides_of_a_transaction_with_the_world_are_the_other_one(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    posted = ledger.credit(5)
    refs = [AccountRef(payer_of=posted.transaction_id), AccountRef(receiver_of=posted.transaction_id)]
    found = await directory.find([(ref, "") for ref in refs])
    assert [facts.account_id for facts in found if facts] == [5, 5]


async def test_a_wallet_is_remembered_in_the_currency_it_has_and_asked_for_in_one_it_lacks(ledger: FakeLedger) -> None:
    ledger.wallets["ada"] = 4
    directory = AccountDirectory(ledger, 100)
    dollars, euros = (AccountRef(wallet="ada"), "USD"), (AccountRef(wallet="ada"), "EUR")
    found = await directory.find([dollars, euros])
    assert [facts.account_id for facts in found if facts] == [4, 4], "the first, where there is none in the currency"
    assert directory.known(*dollars) == found[0]
    assert directory.known(*euros) is None
    ledger.open(50, user_id=4, currency="EUR")
    (facts,) = await directory.find([euros])
    assert facts is not None
    assert facts.account_id == 50
    assert directory.known(*euros) == facts


async def test_names_of_different_kinds_are_not_taken_for_each_other(ledger: FakeLedger) -> None:
    refs = [AccountRef(wallet="x"), AccountRef(payer_of="x"), AccountRef(receiver_of="x"), AccountRef(user_id=1)]
    assert len({key_of(ref, "USD") for ref in refs}) == 4


async def test_it_holds_no_more_than_it_may_and_keeps_what_is_used(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 6)
    for account in range(1, 16):
        await directory.find([(AccountRef(account_id=account), "")])
        assert directory.known(AccountRef(account_id=1), "") is not None, "used all the time"
    known = [account for account in range(1, 16) if directory.known(AccountRef(account_id=account), "")]
    assert len(known) <= 6
    assert 15 in known


async def test_trouble_with_the_database_is_raised_and_nothing_is_remembered(ledger: FakeLedger) -> None:
    directory = AccountDirectory(ledger, 100)
    ledger.away = True
    with pytest.raises(StorageUnavailable):
        await directory.find([BY_ID])
    assert directory.known(*BY_ID) is None
