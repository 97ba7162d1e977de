"""Bets, wins and rollbacks: one win per bet, one rollback, and a rollback that comes first keeps the bet out."""

from __future__ import annotations

import pytest

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import ABSENT, After, Command, Refusal, Unit
from tests.storage.bench import Bench, again, fresh_id

NO_REFERENCE = Refusal(ErrorCode.REFERENCE_NOT_FOUND)
WON = Refusal(ErrorCode.ALREADY_REVERSED)
CANCELLED = Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)
OTHER_CURRENCY = Refusal(ErrorCode.CURRENCY_MISMATCH)
DENIED = Refusal(ErrorCode.PERMISSION_DENIED)


def _reused(*mismatch: str) -> Refusal:
    return Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": list(mismatch)})


def _balance(bench: Bench, account: int) -> int:
    return bench.stored_account(account).balance


def _two_currencies(bench: Bench) -> tuple[int, int]:
    """Accounts of one user in dollars and euros, with 100 in each."""
    user = bench.user()
    return bench.account(user, balance=100), bench.account(user, "EUR", balance=100)


# -- bets -------------------------------------------------------------------------------------------------------------


def test_a_bet_leaves_the_account_like_a_debit(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 30, reference="round 1", reason="game")

    assert bench.post(bet).debit == After(version=2, balance=70, held=0, available=70)
    stored = bench.stored_transaction(bet)
    assert (stored.debit_account, stored.credit_account, stored.reference) == (account, None, "round 1")


def test_a_bet_beyond_the_funds_is_refused_and_its_id_may_be_used_again(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 101)

    assert bench.refused(bet) == Refusal(
        ErrorCode.INSUFFICIENT_FUNDS, {"available": 100, "requested": 101, "version": 1}
    )
    assert bench.post(again(bet, amount=100)).posted


def test_a_bet_of_a_disabled_user_is_refused(bench: Bench) -> None:
    account = bench.account(balance=100)
    bench.disable_owner(account)
    assert bench.refused(bench.bet(account, 1)) == Refusal(ErrorCode.USER_DISABLED)


def test_the_same_bet_is_the_same_whatever_its_envelope(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30, metadata='{"request_uuid":"1"}'))
    before = bench.state()

    assert bench.post(again(bet, metadata='{"request_uuid":"2"}')).replayed
    assert bench.post(again(bet, metadata=None)).replayed
    assert bench.state() == before


@pytest.mark.parametrize("same_call", [False, True])
@pytest.mark.parametrize(
    ("member", "value", "mismatch"),
    [
        ("amount", 31, "amount"),
        ("reference", "round 2", "reference"),
        ("reason", "other game", "reason"),
        ("currency", "EUR", "currency"),
    ],
)
def test_another_bet_with_the_same_uuid_is_named_for_what_differs(
    bench: Bench, member: str, value: object, mismatch: str, same_call: bool
) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 30, reference="round 1", reason="game", currency="USD")
    other = again(bet, **{member: value})

    if same_call:
        first, second = bench.post_all(bet, other)
    else:
        first, second = bench.post(bet), bench.post(other)
    assert (first.posted, second.refusal) == (True, _reused(mismatch))


def test_a_uuid_that_was_seen_is_answered_before_its_currency_and_the_funds(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 100))
    bench.posted(bench.freeze(account))

    assert bench.post(again(bet)).replayed
    assert bench.refused(again(bet, currency="EUR", amount=1_000)) == _reused("amount", "currency")


def test_a_new_bet_in_another_currency_is_refused_before_its_funds(bench: Bench) -> None:
    account = bench.account(balance=100)
    assert bench.refused(bench.bet(account, 101, currency="EUR")) == OTHER_CURRENCY


# -- wins -------------------------------------------------------------------------------------------------------------


def test_a_win_arrives_on_the_account_of_its_bet(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    win = bench.win(account, bet, 50)

    assert bench.post(win).credit == After(version=3, balance=120, held=0, available=120)
    assert bench.stored_transaction(win).refers_to == bet.transaction_id
    assert bench.faults() == []


def test_a_win_goes_to_the_account_of_its_bet_whichever_of_its_users_is_named(bench: Bench) -> None:
    dollars, euros = _two_currencies(bench)
    bet = bench.posted(bench.bet(euros, 30))
    win = bench.posted(bench.win(dollars, bet, 50))

    assert (_balance(bench, dollars), _balance(bench, euros)) == (100, 120)
    assert bench.post(again(win)).replayed
    assert bench.post(again(win, credit=euros)).replayed


def test_a_win_in_another_currency_than_its_bets_is_refused(bench: Bench) -> None:
    dollars, euros = _two_currencies(bench)
    bet = bench.posted(bench.bet(euros, 30))

    assert bench.refused(bench.win(dollars, bet, 50, currency="USD")) == OTHER_CURRENCY
    assert bench.post(bench.win(dollars, bet, 50, currency="EUR")).posted


@pytest.mark.parametrize("same_call", [False, True])
def test_a_bet_is_won_once(bench: Bench, same_call: bool) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    one, two = bench.win(account, bet, 50), bench.win(account, bet, 50)

    if same_call:
        first, second = bench.post_all(one, two)
        assert (first.posted, second.refusal) == (True, WON)
    else:
        bench.posted(one)
        assert bench.refused(two) == WON
        assert bench.post(again(one)).replayed
    assert _balance(bench, account) == 120


def test_a_win_needs_a_bet_of_the_same_user(bench: Bench) -> None:
    mine, theirs = bench.account(balance=100), bench.account(balance=100)
    bet, debit = bench.posted(bench.bet(theirs, 30)), bench.posted(bench.debit(mine, 30))

    for about in (bet, debit, bench.bet(mine, 1)):
        assert bench.refused(bench.win(mine, about, 50)) == NO_REFERENCE
    assert bench.post(bench.win(theirs, bet, 50)).posted


def test_a_win_after_its_bets_rollback_is_refused(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    bench.posted(bench.rollback(account, bet))

    assert bench.refused(bench.win(account, bet, 50)) == NO_REFERENCE


def test_a_win_reaches_frozen_accounts_and_disabled_users_but_no_full_account(bench: Bench) -> None:
    account = bench.account(balance=100)
    one, two = bench.posted(bench.bet(account, 10)), bench.posted(bench.bet(account, 10))
    bench.posted(bench.freeze(account))
    bench.disable_owner(account)

    assert bench.refused(bench.win(account, one, MINOR_MAX)) == Refusal(ErrorCode.LIMIT_EXCEEDED)
    assert bench.post(bench.win(account, one, 5)).posted
    assert bench.post(bench.rollback(account, two)).posted


def test_a_win_is_judged_by_currency_then_bet_then_once(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    bench.posted(bench.win(account, bet, 1))

    assert bench.refused(bench.win(account, bench.bet(account, 1), 1, currency="EUR")) == OTHER_CURRENCY
    assert bench.refused(bench.win(account, bet, 1, currency="EUR")) == OTHER_CURRENCY
    assert bench.refused(bench.win(account, bet, 1)) == WON


# -- rollbacks --------------------------------------------------------------------------------------------------------


def test_a_rollback_returns_the_stake_once(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    first, second = bench.rollback(account, bet), bench.rollback(account, bet)

    assert bench.post(first).credit == After(version=3, balance=100, held=0, available=100)
    assert bench.post(second).credit == After(version=4, balance=100, held=0, available=100)
    assert (bench.stored_transaction(first).amount, bench.stored_transaction(second).amount) == (30, 0)
    assert bench.faults() == []


def test_two_rollbacks_in_one_call_return_the_stake_once(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.bet(account, 30)
    answers = bench.post_all(bet, bench.rollback(account, bet), bench.rollback(account, bet))

    assert [(answer.debit or answer.credit or After(0, 0, 0, 0)).balance for answer in answers] == [70, 100, 100]
    assert bench.faults() == []


def test_a_rollback_again_is_replayed(bench: Bench) -> None:
    account = bench.account(balance=100)
    rollback = bench.posted(bench.rollback(account, bench.posted(bench.bet(account, 30)), metadata='{"a":1}'))
    before = bench.state()

    assert bench.post(again(rollback, metadata='{"a":2}')).replayed
    assert bench.refused(again(rollback, refers_to=fresh_id())) == _reused("refers_to")
    assert bench.state() == before


def test_a_bet_that_was_won_is_not_rolled_back(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    bench.posted(bench.win(account, bet, 50))

    assert bench.refused(bench.rollback(account, bet)) == Refusal(ErrorCode.NOT_REVERSIBLE)


def test_a_bet_that_was_rolled_back_is_still_replayed(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    bench.posted(bench.rollback(account, bet))

    assert bench.post(again(bet)).replayed
    assert _balance(bench, account) == 100


def test_a_rollback_of_an_unknown_bet_moves_nothing_and_keeps_the_bet_out(bench: Bench) -> None:
    account = bench.account(balance=100)
    late = bench.bet(account, 30)
    rollback = bench.rollback(account, late)

    assert bench.post(rollback).credit == After(version=2, balance=100, held=0, available=100)
    assert bench.refused(late) == CANCELLED
    assert bench.refused(again(late, currency="EUR", amount=1_000)) == CANCELLED
    assert bench.post(again(rollback)).replayed


@pytest.mark.parametrize("same_call", [False, True])
def test_a_rollback_keeps_the_late_bet_out_of_every_account_of_its_user(bench: Bench, same_call: bool) -> None:
    dollars, euros = _two_currencies(bench)
    late = bench.bet(euros, 30)
    rollback = bench.rollback(dollars, late)

    if same_call:
        rolled_back, refused = bench.post_all(rollback, late)
        assert (rolled_back.posted, refused.refusal) == (True, CANCELLED)
    else:
        bench.posted(rollback)
        assert bench.refused(late) == CANCELLED
    assert bench.post(again(rollback)).replayed


def test_a_rollback_returns_the_stake_to_the_account_of_the_bet_whichever_is_named(bench: Bench) -> None:
    dollars, euros = _two_currencies(bench)
    bet = bench.posted(bench.bet(euros, 30))
    rollback = bench.posted(bench.rollback(dollars, bet))

    assert (_balance(bench, dollars), _balance(bench, euros)) == (100, 100)
    assert bench.stored_account(dollars).version == 1
    assert bench.post(again(rollback)).replayed


def test_a_rollback_by_another_user_neither_moves_a_cent_nor_keeps_the_bet_out(bench: Bench) -> None:
    mine, theirs = bench.account(balance=100), bench.account(balance=100)
    posted, late = bench.posted(bench.bet(theirs, 30)), bench.bet(theirs, 10)
    for bet in (posted, late):
        rollback = bench.posted(bench.rollback(mine, bet))
        assert bench.stored_transaction(rollback).amount == 0

    assert bench.post(late).posted
    assert bench.post(bench.win(theirs, posted, 50)).posted
    assert bench.post(bench.rollback(theirs, late)).posted
    assert (_balance(bench, mine), _balance(bench, theirs)) == (100, 120)
    assert bench.faults() == []


def test_a_rollback_of_another_users_bet_that_was_won_moves_nothing_either(bench: Bench) -> None:
    mine, theirs = bench.account(balance=100), bench.account(balance=100)
    bet = bench.posted(bench.bet(theirs, 30))
    bench.posted(bench.win(theirs, bet, 50))

    assert bench.post(bench.rollback(mine, bet)).posted
    assert (_balance(bench, mine), _balance(bench, theirs)) == (100, 120)


def test_a_rollback_of_what_is_no_bet_moves_nothing(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 30))
    rollback = bench.posted(bench.rollback(account, debit))

    assert bench.stored_transaction(rollback).amount == 0
    assert _balance(bench, account) == 70


def test_a_rollback_needs_room_for_the_stake(bench: Bench) -> None:
    account = bench.account(balance=MINOR_MAX)
    bet = bench.posted(bench.bet(account, 30))
    bench.posted(bench.credit(account, 30))

    assert bench.refused(bench.rollback(account, bet)) == Refusal(ErrorCode.LIMIT_EXCEEDED)


# -- one space of uuids -----------------------------------------------------------------------------------------------


def test_bets_wins_and_rollbacks_share_their_uuids(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    win = bench.win(account, bet, 50, transaction_id=bet.transaction_id)
    rollback = bench.rollback(account, bet, transaction_id=bet.transaction_id)

    assert bench.refused(win) == _reused("kind", "debit_account_id", "credit_account_id", "amount", "refers_to")
    assert bench.refused(rollback) == _reused("kind", "debit_account_id", "credit_account_id", "amount", "refers_to")


def test_only_the_bet_is_kept_out_not_its_uuid(bench: Bench) -> None:
    account = bench.account(balance=100)
    late = bench.bet(account, 30)
    bench.posted(bench.rollback(account, late))

    assert bench.post(bench.debit(account, 1, transaction_id=late.transaction_id)).posted


# -- who may ----------------------------------------------------------------------------------------------------------


def test_a_user_neither_bets_nor_wins_nor_rolls_back(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    token = bench.token_of(account, "user", "topup")

    for command in (bench.bet(account, 1), bench.win(account, bet, 1), bench.rollback(account, bet)):
        assert bench.refused(again(command, token_id=token)) == DENIED


def test_a_service_of_one_account_acts_on_that_one_only(bench: Bench) -> None:
    dollars, euros = _two_currencies(bench)
    bet = bench.posted(bench.bet(euros, 30))
    token = bench.token_of(dollars, "service", limited=True)
    absent = Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})

    assert bench.post(bench.bet(dollars, 1, token_id=token)).posted
    for command in (bench.bet(euros, 1), bench.win(dollars, bet, 1), bench.rollback(dollars, bet)):
        assert bench.refused(again(command, token_id=token)) == absent


def test_an_account_that_does_not_exist_takes_no_part(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    absent = Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})

    for command in (bench.bet(ABSENT, 1), bench.win(ABSENT, bet, 1), bench.rollback(ABSENT, bet)):
        assert bench.refused(command) == absent


# -- in one call ------------------------------------------------------------------------------------------------------


def test_a_bet_may_be_won_by_the_same_call(bench: Bench) -> None:
    dollars, euros = _two_currencies(bench)
    bet = bench.bet(euros, 30)
    placed, won, again_won, back = bench.post_all(
        bet, bench.win(dollars, bet, 50), bench.win(euros, bet, 50), bench.rollback(dollars, bet)
    )

    assert (placed.posted, won.credit) == (True, After(3, 120, 0, 120))
    assert (again_won.refusal, back.refusal) == (WON, Refusal(ErrorCode.NOT_REVERSIBLE))
    assert bench.faults() == []


def test_a_win_or_rollback_that_falls_with_its_unit_was_never_there(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet, late = bench.posted(bench.bet(account, 30)), bench.bet(account, 1)
    too_much = bench.debit(account, 1_000)
    answers = bench.call(
        [
            Unit((bench.win(account, bet, 50), again(too_much)), fresh_id()),
            Unit((bench.rollback(account, bet), again(too_much)), fresh_id()),
            Unit((bench.rollback(account, late), again(too_much)), fresh_id()),
            Unit((late,)),
            Unit((bench.win(account, bet, 40),)),
        ]
    )

    assert [answers[3][0].posted, answers[4][0].posted] == [True, True]
    assert _balance(bench, account) == 109
    assert bench.faults() == []


def _late(bench: Bench, command: Command) -> Command:
    return again(command, late_problem=ErrorCode.INVALID_PARAMS)


def test_a_late_problem_refuses_what_nothing_else_refuses(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    late = Refusal(ErrorCode.INVALID_PARAMS)

    for command in (
        bench.bet(account, 1),
        bench.win(account, bet, 1),
        bench.rollback(account, bet),
        bench.rollback(account, bench.bet(account, 1)),
        bench.debit(account, 1),
    ):
        assert bench.refused(_late(bench, command)) == late
        assert bench.refused(_late(bench, command)) == late
    assert bench.post(bench.win(account, bet, 1)).posted


def test_a_late_problem_is_judged_after_everything_else(bench: Bench) -> None:
    account = bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 30))
    rollback = bench.posted(bench.rollback(account, bet))

    assert bench.post(_late(bench, bet)).replayed
    assert bench.post(_late(bench, rollback)).replayed
    assert bench.refused(_late(bench, bench.bet(account, 101))).code == ErrorCode.INSUFFICIENT_FUNDS
    assert bench.refused(_late(bench, bench.win(account, bet, 1))) == NO_REFERENCE
    assert bench.refused(_late(bench, bench.win(account, bet, 1, currency="EUR"))) == OTHER_CURRENCY
    full = bench.posted(bench.bet(account, 1))
    assert bench.refused(_late(bench, bench.win(account, full, MINOR_MAX))).code == ErrorCode.LIMIT_EXCEEDED
