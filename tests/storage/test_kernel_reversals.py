"""Reversals give back what a transaction moved, in parts, never more, the way it came."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import After, Command, Refusal, Unit
from tests.storage.bench import Bench, again, fresh_id

NO_REFERENCE = Refusal(ErrorCode.REFERENCE_NOT_FOUND)
NOT_REVERSIBLE = Refusal(ErrorCode.NOT_REVERSIBLE)


def _all_given_back(remaining: int) -> Refusal:
    return Refusal(ErrorCode.ALREADY_REVERSED, {"remaining": remaining})


def _balances(bench: Bench, *accounts: int) -> list[int]:
    return [bench.stored_account(account).balance for account in accounts]


# -- the way back -----------------------------------------------------------------------------------------------------


def test_reversing_a_credit_takes_the_money_out_of_the_ledger_again(bench: Bench) -> None:
    account = bench.account(balance=100)
    credit = bench.posted(bench.credit(account, 30))
    answer = bench.post(bench.reversal(credit))

    assert (answer.debit, answer.credit) == (After(3, 100, 0, 100), None)


def test_reversing_a_debit_brings_the_money_back_from_outside(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    answer = bench.post(bench.reversal(debit))

    assert (answer.debit, answer.credit) == (None, After(3, 100, 0, 100))


def test_reversing_a_transfer_moves_the_money_back(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    transfer = bench.posted(bench.transfer(payer, payee, 30))
    answer = bench.post(bench.reversal(transfer))

    assert (answer.debit, answer.credit) == (After(2, 0, 0, 0), After(3, 100, 0, 100))
    assert bench.faults() == []


def test_reversing_a_capture_gives_back_what_was_captured_and_holds_nothing_again(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    capture = bench.posted(bench.capture(bench.posted(bench.hold(payer, 30, payee)), 20))

    assert bench.refused(bench.reversal(capture, 21)) == _all_given_back(20)
    answer = bench.post(bench.reversal(capture))
    assert (answer.debit, answer.credit) == (After(2, 0, 0, 0), After(4, 100, 0, 100))
    assert bench.stored_holds() == {}


def test_a_reversal_names_its_original_and_the_original_says_how_much_was_given_back(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    reversal = bench.posted(bench.reversal(debit, 10))

    stored = bench.stored_transaction(reversal)
    assert (stored.kind, stored.refers_to, stored.amount) == ("reversal", debit.transaction_id, 10)
    assert bench.stored_fates()[debit.transaction_id] == ("posted", 10)
    assert bench.stored_fates()[reversal.transaction_id] == ("posted", None)


# -- in parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_call", [False, True])
def test_parts_add_up_to_the_original_and_no_further(bench: Bench, same_call: bool) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    parts = bench.reversal(debit, 10), bench.reversal(debit, 15), bench.reversal(debit, 6), bench.reversal(debit, 5)

    answers = bench.post_all(*parts) if same_call else [bench.post(part) for part in parts]
    assert [answer.refusal for answer in answers] == [None, None, _all_given_back(5), None]
    assert bench.refused(bench.reversal(debit, 1)) == _all_given_back(0)
    assert _balances(bench, account) == [100]
    assert bench.faults() == []


def test_an_omitted_amount_is_all_that_remains(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    bench.posted(bench.reversal(debit, 10))
    rest = bench.posted(bench.reversal(debit))

    assert bench.stored_transaction(rest).amount == 20
    assert bench.refused(bench.reversal(debit)) == _all_given_back(0)


def test_an_omitted_amount_and_the_same_amount_stated_are_different_commands(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    whole, stated = bench.posted(bench.reversal(debit)), bench.debit(account, 40)
    mismatch = Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": ["amount"]})

    assert bench.refused(again(whole, amount=30)) == mismatch
    part = bench.posted(bench.reversal(bench.posted(stated), 40))
    assert bench.refused(again(part, amount=None)) == mismatch
    assert bench.post(again(whole)).replayed
    assert bench.post(again(part)).replayed


def test_a_replay_of_a_reversal_gives_nothing_back_again(bench: Bench) -> None:
    account = bench.account(balance=100)
    reversal = bench.posted(bench.reversal(bench.posted(bench.debit(account, 30)), 20))
    before = bench.state()

    assert bench.post(again(reversal)).replayed
    assert bench.state() == before


def test_a_part_that_falls_with_its_atomic_unit_remains(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    fallen, (whole,) = bench.call(
        [
            Unit((bench.reversal(debit, 20), bench.debit(account, 1000)), fresh_id()),
            Unit((bench.reversal(debit, 30),)),
        ]
    )

    assert [answer.code for answer in fallen] == [None, ErrorCode.INSUFFICIENT_FUNDS]
    assert whole.posted


@pytest.mark.parametrize("amount", [0, -1, MINOR_MAX + 1])
def test_a_part_has_to_be_an_amount(bench: Bench, amount: int) -> None:
    debit = bench.posted(bench.debit(bench.account(balance=100), 30))
    assert bench.refused(bench.reversal(debit, amount)) == Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE)


def test_a_part_with_too_many_decimals_is_no_omitted_amount(bench: Bench) -> None:
    debit = bench.posted(bench.debit(bench.account(balance=100), 30))
    reversal = bench.reversal(debit, problem=ErrorCode.AMOUNT_PRECISION)

    assert bench.refused(reversal) == Refusal(ErrorCode.AMOUNT_PRECISION)


# -- what cannot be given back ----------------------------------------------------------------------------------------

IRREVERSIBLE: dict[str, Callable[[Bench, int], Command]] = {
    "hold": lambda bench, account: bench.posted(bench.hold(account, 1)),
    "release": lambda bench, account: bench.posted(bench.release(bench.posted(bench.hold(account, 1)))),
    "reversal": lambda bench, account: bench.posted(bench.reversal(bench.posted(bench.debit(account, 1)))),
    "bet": lambda bench, account: bench.posted(bench.bet(account, 1)),
    "win": lambda bench, account: bench.posted(bench.win(account, bench.posted(bench.bet(account, 1)), 1)),
    "rollback": lambda bench, account: bench.posted(bench.rollback(account, bench.posted(bench.bet(account, 1)))),
    "limit": lambda bench, account: bench.posted(bench.limit(account, 1)),
    "freeze": lambda bench, account: bench.posted(bench.freeze(account)),
    "unfreeze": lambda bench, account: bench.posted(bench.unfreeze(account)),
    "cancel": lambda bench, account: bench.posted(bench.cancel(account, fresh_id())),
}


@pytest.mark.parametrize("kind", IRREVERSIBLE)
def test_other_kinds_cannot_be_reversed(bench: Bench, kind: str) -> None:
    original = IRREVERSIBLE[kind](bench, bench.account(balance=100))

    assert bench.refused(bench.reversal(original)) == NOT_REVERSIBLE
    assert bench.refused(bench.reversal(original, 1)) == NOT_REVERSIBLE


def test_an_expiry_cannot_be_reversed(bench: Bench) -> None:
    hold = bench.posted(bench.hold(bench.account(balance=100), 1, expires_in_s=60))
    bench.move_clock(60)

    assert bench.refused(bench.reversal(bench.posted(bench.expiry(hold)))) == NOT_REVERSIBLE


def test_what_was_never_posted_cannot_be_reversed(bench: Bench) -> None:
    account = bench.account(balance=100)
    refused = bench.debit(account, 101)
    bench.refused(refused)

    assert bench.refused(bench.reversal(refused)) == NO_REFERENCE
    assert bench.refused(bench.reversal(bench.debit(account, 1))) == NO_REFERENCE


# -- funds, limits, status --------------------------------------------------------------------------------------------


def test_a_reversal_needs_the_money_on_the_account_it_leaves(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    transfer = bench.posted(bench.transfer(payer, payee, 30))
    bench.posted(bench.hold(payee, 10))

    data = {"available": 20, "requested": 30, "version": 2}
    assert bench.refused(bench.reversal(transfer)) == Refusal(ErrorCode.INSUFFICIENT_FUNDS, data)
    assert bench.post(bench.reversal(transfer, 20)).posted


def test_a_reversal_does_not_fill_an_account_beyond_the_range(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    bench.posted(bench.credit(account, MINOR_MAX - 70))

    assert bench.refused(bench.reversal(debit)) == Refusal(ErrorCode.LIMIT_EXCEEDED)


def test_neither_frozen_accounts_nor_disabled_users_stand_in_the_way_of_a_reversal(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    transfer = bench.posted(bench.transfer(payer, payee, 30))
    for account in (payer, payee):
        bench.posted(bench.freeze(account))
        bench.disable_owner(account)

    assert bench.post(bench.reversal(transfer)).posted


def test_a_closed_account_gives_nothing_back_and_gets_nothing_back(bench: Bench) -> None:
    payer, payee = bench.account(balance=30), bench.account()
    transfer = bench.posted(bench.transfer(payer, payee, 30))
    bench.posted(bench.shut(payer))
    assert bench.refused(bench.reversal(transfer)) == Refusal(ErrorCode.ACCOUNT_CLOSED)

    account = bench.account()
    credit = bench.posted(bench.credit(account, 30))
    bench.posted(bench.debit(account, 30))
    bench.posted(bench.shut(account))
    assert bench.refused(bench.reversal(credit)) == Refusal(ErrorCode.ACCOUNT_CLOSED)


# -- who may ----------------------------------------------------------------------------------------------------------


def test_a_user_reverses_nothing_not_even_what_it_was_paid(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    transfer = bench.posted(bench.transfer(payer, payee, 30, token_id=bench.token_of(payer)))

    for account in (payer, payee):
        token = bench.token_of(account, "user", "topup")
        assert bench.refused(bench.reversal(transfer, token_id=token)) == Refusal(ErrorCode.PERMISSION_DENIED)


def test_a_service_of_one_account_reverses_what_that_account_got_and_not_what_it_paid(bench: Bench) -> None:
    one, two = bench.account(balance=100), bench.account(balance=100)
    token = bench.token_of(one, "service", limited=True)
    paid, got = bench.posted(bench.transfer(one, two, 30)), bench.posted(bench.transfer(two, one, 30))

    assert bench.refused(bench.reversal(paid, token_id=token)) == NO_REFERENCE
    assert bench.post(bench.reversal(got, token_id=token)).posted


# -- in one call ------------------------------------------------------------------------------------------------------


def test_a_reversal_may_refer_to_a_command_of_its_call_and_so_on(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.hold(payer, 30, payee)
    capture = bench.capture(hold, 20)
    answers = bench.post_all(hold, capture, bench.reversal(capture, 5), bench.reversal(capture, 16))

    assert [answer.refusal for answer in answers] == [None, None, None, _all_given_back(15)]
    assert _balances(bench, payer, payee) == [85, 15]
    assert bench.faults() == []


def test_a_reversal_of_what_its_call_refuses_is_refused(bench: Bench) -> None:
    account = bench.account(balance=10)
    debit = bench.debit(account, 11)
    refused, reversal = bench.post_all(debit, bench.reversal(debit))

    assert (refused.code, reversal.refusal) == (ErrorCode.INSUFFICIENT_FUNDS, NO_REFERENCE)


def test_a_reversal_of_an_id_that_is_used_by_others_in_the_meantime_follows_what_is_stored(bench: Bench) -> None:
    mine, theirs = bench.account(balance=10), bench.account(balance=10)
    stored = bench.posted(bench.debit(theirs, 5))
    other = bench.debit(mine, 5, transaction_id=stored.transaction_id)
    reused, reversal = bench.post_all(other, bench.reversal(other))

    assert (reused.code, reversal.posted) == (ErrorCode.TRANSACTION_ID_REUSED, True)
    assert _balances(bench, mine, theirs) == [10, 10]
