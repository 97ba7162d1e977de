"""Freezing, unfreezing and closing an account."""

from __future__ import annotations

import pytest

from ledgerd_protocol.errors import ErrorCode
from tests.model import ABSENT, After, Command, Refusal, Unit
from tests.storage.bench import Bench, again, fresh_id

CLOSED = Refusal(ErrorCode.ACCOUNT_CLOSED)
NOT_EMPTY = Refusal(ErrorCode.ACCOUNT_NOT_EMPTY)
DENIED = Refusal(ErrorCode.PERMISSION_DENIED)
ABSENT_ACCOUNT = Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})


def _status(bench: Bench, account: int) -> str:
    return bench.stored_account(account).status


@pytest.mark.parametrize("kind", ["freeze", "unfreeze", "close"])
def test_each_takes_one_version_and_moves_and_holds_nothing(bench: Bench, kind: str) -> None:
    account = bench.account(limit=10)
    command = bench.command(kind, debit=account)
    answer = bench.post(command)

    assert (answer.debit, answer.credit) == (After(version=2, balance=0, held=0, available=10), None)
    stored = bench.stored_transaction(command)
    assert (stored.amount, stored.held_change, stored.status) == (0, 0, "posted")
    (entry,) = bench.fetch("SELECT * FROM ledgerd.entries WHERE transaction_id = $1", command.transaction_id)
    assert (entry["account_id"], entry["balance_change"], entry["held_change"]) == (account, 0, 0)


def test_a_frozen_account_is_active_again_when_it_is_unfrozen(bench: Bench) -> None:
    account = bench.account(balance=10)
    bench.posted(bench.freeze(account))
    assert _status(bench, account) == "frozen"
    assert bench.refused(bench.debit(account, 1)) == Refusal(ErrorCode.ACCOUNT_FROZEN)
    assert bench.refused(bench.bet(account, 1)) == Refusal(ErrorCode.ACCOUNT_FROZEN)

    bench.posted(bench.unfreeze(account))
    assert _status(bench, account) == "active"
    assert bench.post(bench.debit(account, 1)).posted
    assert bench.faults() == []


def test_freezing_counts_for_the_commands_after_it_in_the_same_call(bench: Bench) -> None:
    account = bench.account(balance=10)
    answers = bench.post_all(
        bench.debit(account, 1),
        bench.freeze(account),
        bench.debit(account, 1),
        bench.unfreeze(account),
        bench.debit(account, 1),
    )
    assert [answer.code for answer in answers] == [0, 0, ErrorCode.ACCOUNT_FROZEN, 0, 0]


def test_freezing_what_is_frozen_and_unfreezing_what_is_active_change_nothing_but_are_recorded(bench: Bench) -> None:
    account = bench.account()
    answers = bench.post_all(
        bench.unfreeze(account), bench.freeze(account), bench.freeze(account), bench.unfreeze(account)
    )

    assert [answer.debit and answer.debit.version for answer in answers] == [1, 2, 3, 4]
    assert _status(bench, account) == "active"


def test_freezing_and_unfreezing_are_different_commands(bench: Bench) -> None:
    account = bench.account()
    freeze = bench.posted(bench.freeze(account))

    assert bench.refused(again(freeze, kind="unfreeze")) == Refusal(
        ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": ["kind"]}
    )
    bench.posted(bench.unfreeze(account))
    assert bench.post(again(freeze)).replayed
    assert _status(bench, account) == "active"


def test_a_frozen_account_of_a_disabled_user_may_be_closed(bench: Bench) -> None:
    account = bench.account()
    bench.posted(bench.freeze(account))
    bench.disable_owner(account)

    assert bench.post(bench.shut(account)).posted
    assert _status(bench, account) == "closed"


def test_an_account_with_money_is_not_closed(bench: Bench) -> None:
    rich, overdrawn = bench.account(balance=1), bench.account(limit=1)
    bench.posted(bench.debit(overdrawn, 1))

    assert bench.refused(bench.shut(rich)) == NOT_EMPTY
    assert bench.refused(bench.shut(overdrawn)) == NOT_EMPTY


def test_an_account_with_a_pending_hold_is_not_closed(bench: Bench) -> None:
    account = bench.account(limit=10)
    hold = bench.posted(bench.hold(account, 10))
    assert bench.refused(bench.shut(account)) == NOT_EMPTY

    bench.posted(bench.release(hold))
    assert bench.post(bench.shut(account)).posted


def test_an_account_may_be_emptied_and_closed_in_one_unit_and_stays_open_if_that_falls(bench: Bench) -> None:
    account, other = bench.account(balance=10), bench.account(balance=10)
    fallen = bench.post_atomic(fresh_id(), bench.debit(account, 10), bench.shut(account), bench.credit(account, 1))
    assert [answer.code for answer in fallen] == [None, None, ErrorCode.ACCOUNT_CLOSED]
    assert _status(bench, account) == "active"

    bench.call(
        [
            Unit((bench.freeze(other), bench.debit(account, 100)), fresh_id()),
            Unit((bench.debit(other, 1),)),
            Unit((bench.debit(account, 10), bench.shut(account)), fresh_id()),
        ]
    )
    assert (_status(bench, account), _status(bench, other)) == ("closed", "active")
    assert bench.stored_account(other).balance == 9
    assert bench.faults() == []


def test_nothing_happens_to_a_closed_account_any_more(bench: Bench) -> None:
    account, other = bench.account(), bench.account(balance=10)
    bench.posted(bench.shut(account))
    commands: list[Command] = [
        bench.shut(account),
        bench.freeze(account),
        bench.unfreeze(account),
        bench.limit(account, 1),
        bench.credit(account, 1),
        bench.debit(account, 1),
        bench.transfer(other, account, 1),
        bench.hold(account, 1),
        bench.bet(account, 1),
    ]
    for command in commands:
        assert bench.refused(command) == CLOSED


def test_wins_and_rollbacks_do_not_reach_a_closed_account(bench: Bench) -> None:
    account = bench.account(balance=10)
    bet = bench.posted(bench.bet(account, 10))
    bench.posted(bench.shut(account))

    assert bench.refused(bench.win(account, bet, 5)) == CLOSED
    assert bench.refused(bench.rollback(account, bet)) == CLOSED


def test_closing_again_is_replayed(bench: Bench) -> None:
    account = bench.account()
    closed = bench.posted(bench.shut(account))
    assert bench.post(again(closed)).replayed


def test_only_an_operator_freezes_and_unfreezes(bench: Bench) -> None:
    account = bench.account()
    for token in (bench.service, bench.token_of(account)):
        assert bench.refused(bench.freeze(account, token_id=token)) == DENIED
        assert bench.refused(bench.unfreeze(account, token_id=token)) == DENIED


def test_a_user_closes_its_own_account_and_no_other(bench: Bench) -> None:
    mine, theirs = bench.account(), bench.account()
    token = bench.token_of(mine)

    assert bench.refused(bench.shut(theirs, token_id=token)) == ABSENT_ACCOUNT
    assert bench.refused(bench.shut(mine, token_id=bench.token_of(mine, "read"))) == DENIED
    assert bench.post(bench.shut(mine, token_id=token)).posted


def test_an_account_that_does_not_exist_is_not_frozen_or_closed(bench: Bench) -> None:
    for command in (bench.freeze(ABSENT), bench.unfreeze(ABSENT), bench.shut(ABSENT)):
        assert bench.refused(command) == ABSENT_ACCOUNT
