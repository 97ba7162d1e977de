"""Holds: placed, captured, released, expired; each end once, by the clock that is read under the locks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import ABSENT, SECOND, After, Command, Refusal, Unit
from tests.storage.bench import Bench, again, fresh_id

DESTINATION = {"resource": "destination"}
NOT_ACTIVE = Refusal(ErrorCode.HOLD_NOT_ACTIVE)
NO_REFERENCE = Refusal(ErrorCode.REFERENCE_NOT_FOUND)

End = Callable[[Bench, Command], Command]

CAPTURE: End = Bench.capture
RELEASE: End = Bench.release
EXPIRY: End = Bench.expiry


def _end(bench: Bench, hold: Command, end: End) -> Command:
    """End a hold, an hour later if it has to expire."""
    if end is EXPIRY:
        bench.move_clock(3600)
    return bench.posted(end(bench, hold))


# -- placing ----------------------------------------------------------------------------------------------------------


def test_a_hold_lowers_what_is_available_and_not_the_balance(bench: Bench) -> None:
    account = bench.account(balance=100)
    answer = bench.post(bench.hold(account, 30))

    assert answer.debit == After(version=2, balance=100, held=30, available=70)
    assert answer.credit is None


def test_a_hold_is_pending_until_its_time_is_over(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    stored = bench.stored_transaction(hold)
    (pending,) = bench.stored_holds().values()

    assert (stored.status, stored.held_change, stored.expires_in_s) == ("pending", 30, 60)
    assert (pending.account, pending.expires_at) == (account, stored.created_at + 60 * SECOND)
    assert bench.stored_fates()[hold.transaction_id] == ("pending", None)


def test_a_hold_towards_an_account_takes_no_version_of_it(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.hold(payer, 30, payee)

    assert bench.post(hold).credit is None
    assert bench.stored_account(payee).version == 0
    assert bench.stored_transaction(hold).credit_account == payee


def test_what_is_held_cannot_be_spent_transferred_bet_or_held_again(bench: Bench) -> None:
    account, other = bench.account(balance=100), bench.account()
    bench.posted(bench.hold(account, 30))
    short = Refusal(ErrorCode.INSUFFICIENT_FUNDS, {"available": 70, "requested": 71, "version": 2})

    assert bench.refused(bench.debit(account, 71)) == short
    assert bench.refused(bench.transfer(account, other, 71)) == short
    assert bench.refused(bench.bet(account, 71)) == short
    assert bench.refused(bench.hold(account, 71)) == short
    assert bench.post(bench.debit(account, 70)).posted


def test_a_hold_may_use_the_overdraft_limit(bench: Bench) -> None:
    account = bench.account(limit=50)
    assert bench.post(bench.hold(account, 50)).debit == After(version=2, balance=0, held=50, available=0)


def test_a_limit_that_pending_holds_need_cannot_be_taken_away(bench: Bench) -> None:
    account = bench.account(limit=50)
    hold = bench.posted(bench.hold(account, 50))

    assert bench.refused(bench.limit(account, 49)) == Refusal(ErrorCode.LIMIT_EXCEEDED)
    bench.posted(bench.release(hold))
    assert bench.post(bench.limit(account, 0)).posted


@pytest.mark.parametrize(
    ("status", "code"), [("frozen", ErrorCode.ACCOUNT_FROZEN), ("closed", ErrorCode.ACCOUNT_CLOSED)]
)
def test_nothing_new_is_held_on_an_account_that_is_not_active(bench: Bench, status: str, code: ErrorCode) -> None:
    account = bench.account(balance=10)
    bench.set_status(account, status)
    assert bench.refused(bench.hold(account, 1)) == Refusal(code)


def test_nothing_new_is_held_of_a_disabled_user(bench: Bench) -> None:
    account = bench.account(balance=10)
    bench.disable_owner(account)
    assert bench.refused(bench.hold(account, 1)) == Refusal(ErrorCode.USER_DISABLED)


def test_a_hold_may_be_towards_a_frozen_account_or_one_of_a_disabled_user(bench: Bench) -> None:
    payer, frozen, disabled = bench.account(balance=10), bench.account(), bench.account()
    bench.set_status(frozen, "frozen")
    bench.disable_owner(disabled)

    for destination in (frozen, disabled):
        assert bench.post(bench.capture(bench.posted(bench.hold(payer, 1, destination)))).posted


def test_a_hold_is_only_towards_an_account_that_could_receive_it(bench: Bench) -> None:
    payer, closed, euros = bench.account(balance=10), bench.account(), bench.account(currency="EUR")
    bench.set_status(closed, "closed")

    assert bench.refused(bench.hold(payer, 1, ABSENT)) == Refusal(ErrorCode.NOT_FOUND, DESTINATION)
    assert bench.refused(bench.hold(payer, 1, payer)) == Refusal(ErrorCode.SAME_ACCOUNT)
    assert bench.refused(bench.hold(payer, 1, euros)) == Refusal(ErrorCode.CURRENCY_MISMATCH)
    assert bench.refused(bench.hold(payer, 1, closed)) == Refusal(ErrorCode.ACCOUNT_CLOSED)

    mine = bench.token_of(payer)
    for destination in (ABSENT, euros, closed):
        hold = bench.hold(payer, 1, destination, token_id=mine)
        assert bench.refused(hold) == Refusal(ErrorCode.NOT_FOUND, DESTINATION)


def test_a_hold_towards_a_full_account_is_placed_because_it_may_have_room_by_then(bench: Bench) -> None:
    payer, full = bench.account(balance=10), bench.account(balance=MINOR_MAX)
    hold = bench.posted(bench.hold(payer, 10, full))

    assert bench.refused(bench.capture(hold)) == Refusal(ErrorCode.LIMIT_EXCEEDED)
    bench.posted(bench.debit(full, 10))
    assert bench.post(bench.capture(hold)).posted


# -- capturing --------------------------------------------------------------------------------------------------------


def test_capturing_takes_what_was_held_out_of_the_balance(bench: Bench) -> None:
    account = bench.account(balance=100)
    capture = bench.capture(bench.posted(bench.hold(account, 30)))
    answer = bench.post(capture)

    assert answer.debit == After(version=3, balance=70, held=0, available=70)
    stored = bench.stored_transaction(capture)
    assert (stored.amount, stored.held_change, stored.amount_omitted) == (30, -30, True)


def test_capturing_a_part_is_one_version_and_lets_all_of_the_hold_go(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30))
    capture = bench.capture(hold, 10)
    answer = bench.post(capture)

    assert answer.debit == After(version=3, balance=90, held=0, available=90)
    (entry,) = bench.fetch(
        "SELECT * FROM ledgerd.entries WHERE transaction_id = $1 AND direction = 'debit'", capture.transaction_id
    )
    assert (entry["balance_change"], entry["held_change"]) == (-10, -30)
    assert bench.stored_holds() == {}
    assert bench.stored_fates()[hold.transaction_id] == ("captured", None)


def test_a_captured_hold_arrives_at_its_destination(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    capture = bench.capture(bench.posted(bench.hold(payer, 30, payee)), 20)
    answer = bench.post(capture)

    assert (answer.debit, answer.credit) == (After(3, 80, 0, 80), After(1, 20, 0, 20))
    assert bench.stored_transaction(capture).accounts == {payer, payee}
    assert bench.faults() == []


def test_only_the_hold_that_is_captured_is_let_go(bench: Bench) -> None:
    account = bench.account(balance=100)
    first, second = bench.posted(bench.hold(account, 30)), bench.posted(bench.hold(account, 40))
    bench.posted(bench.capture(first, 5))

    assert list(bench.stored_holds()) == [second.transaction_id]
    assert bench.stored_account(account).held == 40


def test_more_than_was_held_cannot_be_captured(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30))

    assert bench.refused(bench.capture(hold, 31)) == Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE, {"remaining": 30})
    assert bench.refused(bench.capture(hold, 0)) == Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE)
    assert bench.refused(bench.capture(hold, MINOR_MAX + 1)) == Refusal(ErrorCode.AMOUNT_OUT_OF_RANGE)
    assert bench.post(bench.capture(hold, 30)).posted


def test_a_capture_needs_neither_funds_nor_limit_nor_an_active_payer(bench: Bench) -> None:
    account = bench.account(balance=10, limit=20)
    hold = bench.posted(bench.hold(account, 30))
    bench.posted(bench.freeze(account))
    bench.disable_owner(account)

    assert bench.post(bench.capture(hold)).debit == After(version=5, balance=-20, held=0, available=0)


def test_a_capture_does_not_reach_a_closed_destination(bench: Bench) -> None:
    payer, payee = bench.account(balance=10), bench.account()
    hold = bench.posted(bench.hold(payer, 10, payee))
    bench.posted(bench.shut(payee))

    assert bench.refused(bench.capture(hold)) == Refusal(ErrorCode.ACCOUNT_CLOSED)
    assert bench.post(bench.release(hold)).posted


# -- releasing and expiring -------------------------------------------------------------------------------------------


def test_releasing_gives_back_what_was_held_and_moves_no_money(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.posted(bench.hold(payer, 30, payee))
    release = bench.release(hold)
    answer = bench.post(release)

    assert (answer.debit, answer.credit) == (After(version=3, balance=100, held=0, available=100), None)
    stored = bench.stored_transaction(release)
    assert (stored.amount, stored.held_change) == (30, -30)
    assert bench.stored_fates()[hold.transaction_id] == ("released", None)
    assert bench.stored_account(payee).version == 0


def test_a_hold_that_is_released_frees_the_money_at_once(bench: Bench) -> None:
    account = bench.account(balance=10)
    hold = bench.posted(bench.hold(account, 10))

    released, spent = bench.post_all(bench.release(hold), bench.debit(account, 10))
    assert (released.posted, spent.posted) == (True, True)


def test_a_hold_is_released_on_a_frozen_account_of_a_disabled_user_too(bench: Bench) -> None:
    account = bench.account(balance=10)
    hold = bench.posted(bench.hold(account, 10))
    bench.posted(bench.freeze(account))
    bench.disable_owner(account)

    assert bench.post(bench.release(hold)).posted


def test_an_expired_hold_is_let_go_when_its_expiry_is_posted(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(60)

    assert bench.stored_account(account).held == 30
    answer = bench.post(bench.expiry(hold, token_id=0))
    assert answer.debit == After(version=3, balance=100, held=0, available=100)
    assert bench.stored_fates()[hold.transaction_id] == ("expired", None)


@pytest.mark.parametrize("end", [CAPTURE, RELEASE])
def test_from_its_last_moment_on_a_hold_is_not_active_recorded_or_not(bench: Bench, end: End) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(60)

    assert bench.refused(end(bench, hold)) == NOT_ACTIVE
    bench.posted(bench.expiry(hold))
    assert bench.refused(end(bench, hold)) == NOT_ACTIVE


@pytest.mark.parametrize("end", [CAPTURE, RELEASE])
def test_just_before_its_last_moment_a_hold_can_be_ended_and_not_expired(bench: Bench, end: End) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=3600))
    bench.move_clock(3000)

    assert bench.refused(bench.expiry(hold)) == NOT_ACTIVE
    assert bench.post(end(bench, hold)).posted


def test_a_hold_and_its_end_at_one_moment_follow_the_clock_of_the_call(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 30, expires_in_s=60)
    early, placed, late = bench.post_all(bench.expiry(hold), hold, bench.expiry(hold, transaction_id=fresh_id()))

    assert (early.refusal, placed.posted, late.refusal) == (NO_REFERENCE, True, NOT_ACTIVE)


# -- once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [CAPTURE, RELEASE, EXPIRY])
@pytest.mark.parametrize("first", [CAPTURE, RELEASE, EXPIRY])
@pytest.mark.parametrize("same_call", [False, True])
def test_a_hold_ends_once(bench: Bench, first: End, second: End, same_call: bool) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    if first is EXPIRY:
        bench.move_clock(60)
    one, two = first(bench, hold), again(second(bench, hold), transaction_id=fresh_id())

    if same_call:
        ended, refused = bench.post_all(one, two)
        assert (ended.posted, refused.refusal) == (True, NOT_ACTIVE)
    else:
        bench.posted(one)
        assert bench.refused(two) == NOT_ACTIVE
    assert bench.stored_account(account).version == 3
    assert bench.faults() == []


@pytest.mark.parametrize("end", [CAPTURE, RELEASE, EXPIRY])
def test_the_end_of_a_hold_again_is_replayed(bench: Bench, end: End) -> None:
    account = bench.account(balance=100)
    ended = _end(bench, bench.posted(bench.hold(account, 30)), end)
    before = bench.state()

    assert bench.post(again(ended)).replayed
    assert bench.state() == before


def test_a_hold_again_is_replayed_whatever_became_of_it(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30))
    bench.posted(bench.capture(hold))

    assert bench.post(again(hold)).replayed
    assert bench.stored_transaction(hold).status == "pending"


def test_two_daemons_that_expire_a_hold_post_one_transaction(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(61)

    assert bench.post(bench.expiry(hold, token_id=0)).posted
    assert bench.post(bench.expiry(hold, token_id=0)).replayed
    assert bench.stored_account(account).version == 3


def test_an_expiry_whose_usual_id_somebody_has_taken_is_posted_under_another(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account(balance=1)
    hold = bench.posted(bench.hold(payer, 30, payee, expires_in_s=60))
    expiry = bench.expiry(hold)
    bench.posted(bench.debit(payee, 1, transaction_id=expiry.transaction_id, token_id=bench.token_of(payee)))
    bench.move_clock(60)

    assert bench.refused(expiry).code == ErrorCode.TRANSACTION_ID_REUSED
    assert bench.post(again(expiry, transaction_id=fresh_id())).posted
    assert bench.stored_account(payer).held == 0


# -- who may ----------------------------------------------------------------------------------------------------------


def test_a_user_places_and_releases_holds_of_its_own(bench: Bench) -> None:
    account = bench.account(balance=100)
    mine = bench.token_of(account)
    hold = bench.posted(bench.hold(account, 30, token_id=mine))

    assert bench.post(bench.release(hold, token_id=bench.token_of(account))).posted


def test_a_user_does_not_release_what_others_hold_on_its_account(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30))

    assert bench.refused(bench.release(hold, token_id=bench.token_of(account))) == Refusal(ErrorCode.PERMISSION_DENIED)
    assert bench.post(bench.release(hold)).posted


def test_a_user_captures_nothing_and_only_an_operator_expires(bench: Bench) -> None:
    account = bench.account(balance=100)
    mine = bench.token_of(account)
    hold = bench.posted(bench.hold(account, 30, token_id=mine, expires_in_s=60))

    assert bench.refused(bench.capture(hold, token_id=mine)) == Refusal(ErrorCode.PERMISSION_DENIED)
    bench.move_clock(60)
    for token in (mine, bench.service):
        assert bench.refused(bench.expiry(hold, token_id=token)) == Refusal(ErrorCode.PERMISSION_DENIED)


def test_a_reader_and_a_topup_grant_hold_nothing(bench: Bench) -> None:
    account = bench.account(balance=100)
    for scope in ("read", "topup"):
        hold = bench.hold(account, 1, token_id=bench.token_of(account, scope))
        assert bench.refused(hold) == Refusal(ErrorCode.PERMISSION_DENIED)


def test_a_hold_of_others_is_as_absent_as_none(bench: Bench) -> None:
    theirs, mine = bench.account(balance=100), bench.account(balance=100)
    hold = bench.posted(bench.hold(theirs, 30, mine))
    nothing = bench.hold(theirs, 30)

    for token in (bench.token_of(mine), bench.token_of(mine, "service", limited=True)):
        for about in (hold, nothing):
            assert bench.refused(bench.release(about, token_id=token)) == NO_REFERENCE


def test_a_service_limited_to_one_account_captures_holds_on_that_one_only(bench: Bench) -> None:
    user = bench.user()
    dollars, euros = bench.account(user, balance=100), bench.account(user, "EUR", balance=100)
    token = bench.token_of(dollars, "service", limited=True)

    assert bench.post(bench.capture(bench.posted(bench.hold(dollars, 30)), token_id=token)).posted
    assert bench.refused(bench.capture(bench.posted(bench.hold(euros, 30)), token_id=token)) == NO_REFERENCE


# -- what is no hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [CAPTURE, RELEASE, EXPIRY])
def test_what_is_no_hold_cannot_be_ended(bench: Bench, end: End) -> None:
    account = bench.account(balance=100)
    capture = bench.capture(bench.posted(bench.hold(account, 1)))
    nothing = bench.debit(account, 1)
    debit, tombstone = bench.posted(bench.debit(account, 1)), bench.posted(bench.cancel(account, fresh_id()))
    bench.posted(capture)

    for about in (nothing, debit, tombstone, capture):
        assert bench.refused(end(bench, about)) == NO_REFERENCE


def test_a_user_who_releases_its_own_debit_hears_that_there_is_no_such_hold(bench: Bench) -> None:
    account = bench.account(balance=100)
    debit = bench.posted(bench.debit(account, 1))

    assert bench.refused(bench.release(debit, token_id=bench.token_of(account))) == NO_REFERENCE


def test_a_refused_end_is_on_record_with_the_accounts_of_its_hold(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    capture = bench.capture(bench.posted(bench.hold(payer, 30, payee)), 31)
    bench.refused(capture)

    (attempt,) = bench.stored_attempts().values()
    assert (attempt.command.debit, attempt.command.credit, attempt.command.amount) == (payer, payee, 31)
    assert attempt.command.currency == "USD"


# -- in one call ------------------------------------------------------------------------------------------------------


def test_a_hold_may_be_captured_by_the_same_call_that_places_it(bench: Bench) -> None:
    payer, payee = bench.account(balance=100), bench.account()
    hold = bench.hold(payer, 30, payee)
    placed, captured = bench.post_all(hold, bench.capture(hold, 10))

    assert placed.debit == After(2, 100, 30, 70)
    assert (captured.debit, captured.credit) == (After(3, 90, 0, 90), After(1, 10, 0, 10))
    assert bench.stored_holds() == {}
    assert bench.faults() == []


def test_a_command_does_not_refer_to_a_later_one_of_its_call(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 30)
    refused, placed = bench.post_all(bench.capture(hold), hold)

    assert (refused.refusal, placed.posted) == (NO_REFERENCE, True)


def test_a_hold_that_was_refused_cannot_be_captured_by_the_same_call(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 101)
    placed, captured = bench.post_all(hold, bench.capture(hold))

    assert (placed.code, captured.refusal) == (ErrorCode.INSUFFICIENT_FUNDS, NO_REFERENCE)


def test_an_atomic_unit_that_falls_leaves_the_hold_as_it_was(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30))
    fallen, (captured,) = bench.call(
        [
            Unit((bench.capture(hold, 10), bench.debit(account, 1000)), fresh_id()),
            Unit((bench.capture(hold, 20),)),
        ]
    )

    assert [answer.code for answer in fallen] == [None, ErrorCode.INSUFFICIENT_FUNDS]
    assert captured.debit == After(3, 80, 0, 80)
    assert bench.faults() == []


def test_a_hold_of_an_atomic_unit_that_falls_was_never_there(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 30)
    _, (captured,) = bench.call(
        [Unit((hold, bench.debit(account, 1000)), fresh_id()), Unit((bench.capture(hold),))],
    )

    assert captured.refusal == NO_REFERENCE
    assert bench.stored_holds() == {}
    assert bench.stored_account(account).held == 0


def test_an_atomic_unit_may_place_and_capture(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 30)
    unit = Unit((hold, bench.capture(hold, 10), bench.debit(account, 90)), fresh_id())

    assert all(answer.posted for answer in bench.call([unit])[0])
    assert all(answer.replayed for answer in bench.call([Unit(tuple(map(again, unit.commands)), unit.batch_id)])[0])


# -- time -------------------------------------------------------------------------------------------------------------


def test_time_does_not_run_backwards_along_an_account_whatever_the_clock_does(bench: Bench) -> None:
    account, other = bench.account(balance=100), bench.account(balance=100)
    bench.move_clock(1000)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(-1000)
    credit, elsewhere = bench.posted(bench.credit(account, 1)), bench.posted(bench.credit(other, 1))

    assert bench.stored_transaction(credit).created_at == bench.stored_transaction(hold).created_at
    assert bench.stored_transaction(elsewhere).created_at < bench.stored_transaction(hold).created_at
    assert bench.faults() == []


def test_a_capture_at_the_time_of_its_accounts_last_change_is_too_late_as_well(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=60))
    bench.move_clock(60)
    bench.posted(bench.credit(account, 1))
    bench.move_clock(-60)

    assert bench.refused(bench.capture(hold)) == NOT_ACTIVE


@pytest.mark.parametrize("end", [CAPTURE, RELEASE])
def test_the_very_moment_at_which_a_hold_expires_belongs_to_its_expiry(bench: Bench, end: End) -> None:
    account = bench.account(balance=100)
    hold = bench.posted(bench.hold(account, 30, expires_in_s=3600))
    # Nothing is earlier than the last change of its account, so that this is what time it is.
    bench.execute("UPDATE ledgerd.accounts SET updated_at = (SELECT expires_at FROM ledgerd.holds)")

    assert bench.refused(end(bench, hold)) == NOT_ACTIVE
    expiry = bench.posted(bench.expiry(hold))
    assert bench.stored_transaction(expiry).created_at == bench.stored_transaction(hold).expires_at
    assert bench.faults() == []
