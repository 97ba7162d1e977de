"""In which order commands that refer to others, and those of the betting profile, are judged; and what makes two of
them the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import ABSENT, After, Command, Refusal, Unit
from tests.storage.bench import Bench, again, fresh_id

# -- the order --------------------------------------------------------------------------------------------------------
#
# Each ladder is a good command and reasons to refuse it, in the order in which they are judged. A reason takes the
# command and gives it back with that wrong; what is wrong with the ledger is made so, the last reason first.

Reason = Callable[[Bench, Command], Command]
Ladder = list[tuple[Reason, ErrorCode]]


def _ended_token(bench: Bench, command: Command) -> Command:
    bench.end(command.token_id)
    return command


def _read_token(bench: Bench, command: Command) -> Command:
    return again(command, token_id=bench.token("read"))


def _absent_account(bench: Bench, command: Command) -> Command:
    return again(command, **{"debit" if command.credit is None else "credit": ABSENT})


def _absent_destination(bench: Bench, command: Command) -> Command:
    return again(command, credit=ABSENT)


def _same_account(bench: Bench, command: Command) -> Command:
    return again(command, credit=command.debit)


def _other_currency(bench: Bench, command: Command) -> Command:
    return again(command, currency="EUR")


def _bad_amount(bench: Bench, command: Command) -> Command:
    return again(command, amount=None, problem=ErrorCode.AMOUNT_PRECISION)


def _used_id(bench: Bench, command: Command) -> Command:
    return again(command, transaction_id=bench.posted(bench.credit(bench.account(), 1)).transaction_id)


def _rolled_back_before(bench: Bench, command: Command) -> Command:
    # Whoever used the id of a bet that was rolled back has used it for something else.
    bench.posted(bench.rollback(command.acting, command))
    return command


def _disabled_owner(bench: Bench, command: Command) -> Command:
    bench.disable_owner(command.acting)
    return command


def _frozen(bench: Bench, command: Command) -> Command:
    bench.set_status(command.acting, "frozen")
    return command


def _closed(bench: Bench, command: Command) -> Command:
    bench.set_status(command.acting, "closed")
    return command


def _closed_destination(bench: Bench, command: Command) -> Command:
    assert command.credit is not None
    bench.set_status(command.credit, "closed")
    return command


def _closed_receiver(bench: Bench, command: Command) -> Command:
    """Of a command that refers to another, the account its money reaches."""
    receiver = bench.stored_transactions()[command.refers_to or ""]
    account = receiver.debit_account if command.kind == "reversal" else receiver.credit_account
    bench.set_status(account or 0, "closed")
    return command


def _no_reference(bench: Bench, command: Command) -> Command:
    return again(command, refers_to=fresh_id())


def _irreversible(bench: Bench, command: Command) -> Command:
    account = bench.stored_transactions()[command.refers_to or ""].debit_account or 0
    return again(command, refers_to=bench.posted(bench.bet(account, 1)).transaction_id)


def _ended_hold(bench: Bench, command: Command) -> Command:
    bench.posted(bench.command("release", refers_to=command.refers_to, debit=ABSENT))
    return command


def _too_much(bench: Bench, command: Command) -> Command:
    return again(command, amount=1_000)


def _won(bench: Bench, command: Command) -> Command:
    bench.posted(bench.command("win", credit=command.credit, amount=1, refers_to=command.refers_to))
    return command


def _full(bench: Bench, command: Command) -> Command:
    return again(command, amount=MINOR_MAX)


def _no_funds(bench: Bench, command: Command) -> Command:
    return again(command, amount=1_000)


def _late_problem(bench: Bench, command: Command) -> Command:
    return again(command, late_problem=ErrorCode.INVALID_PARAMS)


def _a_hold(bench: Bench) -> Command:
    return bench.hold(bench.account(balance=10), 5, bench.account(), token_id=bench.token("service"))


def _a_capture(bench: Bench) -> Command:
    hold = bench.posted(bench.hold(bench.account(balance=100), 5, bench.account()))
    return bench.capture(hold, 5, token_id=bench.token("service"))


def _a_reversal(bench: Bench) -> Command:
    payer, payee = bench.account(balance=100), bench.account()
    return bench.reversal(bench.posted(bench.transfer(payer, payee, 50)), 5, token_id=bench.token("service"))


def _a_bet(bench: Bench) -> Command:
    return bench.bet(bench.account(balance=10), 5, token_id=bench.token("service"))


def _a_win(bench: Bench) -> Command:
    account = bench.account(balance=10)
    return bench.win(account, bench.posted(bench.bet(account, 5)), 5, token_id=bench.token("service"))


TOKEN: Ladder = [(_ended_token, ErrorCode.SESSION_EXPIRED), (_read_token, ErrorCode.PERMISSION_DENIED)]
LADDERS: dict[Callable[[Bench], Command], Ladder] = {
    _a_hold: [
        *TOKEN,
        (_absent_account, ErrorCode.NOT_FOUND),
        (_same_account, ErrorCode.SAME_ACCOUNT),
        (_other_currency, ErrorCode.CURRENCY_MISMATCH),
        (_bad_amount, ErrorCode.AMOUNT_PRECISION),
        (_used_id, ErrorCode.TRANSACTION_ID_REUSED),
        (_disabled_owner, ErrorCode.USER_DISABLED),
        (_frozen, ErrorCode.ACCOUNT_FROZEN),
        (_closed_destination, ErrorCode.ACCOUNT_CLOSED),
        (_no_funds, ErrorCode.INSUFFICIENT_FUNDS),
    ],
    _a_capture: [
        *TOKEN,
        (_other_currency, ErrorCode.CURRENCY_MISMATCH),
        (_bad_amount, ErrorCode.AMOUNT_PRECISION),
        (_used_id, ErrorCode.TRANSACTION_ID_REUSED),
        (_closed_receiver, ErrorCode.ACCOUNT_CLOSED),
        (_ended_hold, ErrorCode.HOLD_NOT_ACTIVE),
        (_too_much, ErrorCode.AMOUNT_OUT_OF_RANGE),
    ],
    _a_reversal: [
        *TOKEN,
        (_other_currency, ErrorCode.CURRENCY_MISMATCH),
        (_bad_amount, ErrorCode.AMOUNT_PRECISION),
        (_used_id, ErrorCode.TRANSACTION_ID_REUSED),
        (_closed_receiver, ErrorCode.ACCOUNT_CLOSED),
        (_too_much, ErrorCode.ALREADY_REVERSED),
    ],
    _a_bet: [
        *TOKEN,
        (_absent_account, ErrorCode.NOT_FOUND),
        (_bad_amount, ErrorCode.AMOUNT_PRECISION),
        (_rolled_back_before, ErrorCode.TRANSACTION_ID_CANCELLED),
        (_other_currency, ErrorCode.CURRENCY_MISMATCH),
        (_disabled_owner, ErrorCode.USER_DISABLED),
        (_closed, ErrorCode.ACCOUNT_CLOSED),
        (_no_funds, ErrorCode.INSUFFICIENT_FUNDS),
        (_late_problem, ErrorCode.INVALID_PARAMS),
    ],
    _a_win: [
        *TOKEN,
        (_absent_account, ErrorCode.NOT_FOUND),
        (_bad_amount, ErrorCode.AMOUNT_PRECISION),
        (_used_id, ErrorCode.TRANSACTION_ID_REUSED),
        (_other_currency, ErrorCode.CURRENCY_MISMATCH),
        (_closed_destination, ErrorCode.ACCOUNT_CLOSED),
        (_won, ErrorCode.ALREADY_REVERSED),
        (_full, ErrorCode.LIMIT_EXCEEDED),
        (_late_problem, ErrorCode.INVALID_PARAMS),
    ],
}
CASES = [(good, first, second) for good, ladder in LADDERS.items() for first, second in pairwise([*ladder, None])]


@pytest.mark.parametrize(
    ("good", "first", "second"),
    CASES,
    ids=[f"{good.__name__}{first[0].__name__}" for good, first, _ in CASES if first],
)
def test_of_two_reasons_the_one_judged_first_is_answered(
    bench: Bench, good: Callable[[Bench], Command], first: tuple[Reason, ErrorCode], second: Any
) -> None:
    reason, code = first
    command = good(bench)
    if second is not None:
        command = second[0](bench, command)

    assert bench.refused(reason(bench, command)).code == code


@pytest.mark.parametrize("good", LADDERS)
def test_each_of_these_commands_is_good_without_a_reason(bench: Bench, good: Callable[[Bench], Command]) -> None:
    assert bench.post(good(bench)).posted


def test_a_used_id_comes_before_a_reference_that_does_not_exist(bench: Bench) -> None:
    for good in (_a_capture, _a_reversal, _a_win):
        command = _no_reference(bench, good(bench))
        assert bench.refused(command) == Refusal(ErrorCode.REFERENCE_NOT_FOUND)
        assert bench.refused(_used_id(bench, command)).code == ErrorCode.TRANSACTION_ID_REUSED


def test_a_kind_that_cannot_be_reversed_comes_before_how_much(bench: Bench) -> None:
    command = _irreversible(bench, _too_much(bench, _a_reversal(bench)))
    assert bench.refused(command) == Refusal(ErrorCode.NOT_REVERSIBLE)


def test_how_much_remains_comes_before_limits_and_funds(bench: Bench) -> None:
    payer, payee = bench.account(balance=MINOR_MAX), bench.account()
    reversal = bench.reversal(bench.posted(bench.transfer(payer, payee, 50)), 51)
    bench.posted(bench.credit(payer, 50))
    bench.posted(bench.debit(payee, 50))

    assert bench.refused(reversal) == Refusal(ErrorCode.ALREADY_REVERSED, {"remaining": 50})
    assert bench.refused(again(reversal, amount=50)) == Refusal(ErrorCode.LIMIT_EXCEEDED)
    bench.posted(bench.debit(payer, 50))
    assert bench.refused(again(reversal, amount=50)).code == ErrorCode.INSUFFICIENT_FUNDS


def test_more_than_the_hold_comes_before_a_full_destination(bench: Bench) -> None:
    hold = bench.posted(bench.hold(bench.account(balance=100), 50, bench.account(balance=MINOR_MAX)))

    assert bench.refused(bench.capture(hold, 51)).code == ErrorCode.AMOUNT_OUT_OF_RANGE
    assert bench.refused(bench.capture(hold, 50)) == Refusal(ErrorCode.LIMIT_EXCEEDED)


# -- the same command -------------------------------------------------------------------------------------------------


def _every_kind(bench: Bench) -> dict[str, Command]:
    """One posted command of each kind that is new here, with everything said that it may say."""
    payer, payee, shut = bench.account(balance=100), bench.account(), bench.account()
    said = {"reference": "r", "reason": "because", "metadata": '{"a":1}'}
    hold = bench.posted(bench.hold(payer, 5, payee, expires_in_s=60, **said))
    released, due = bench.posted(bench.hold(payer, 5)), bench.posted(bench.hold(payer, 5, expires_in_s=60))
    capture = bench.posted(bench.capture(hold, 3, **said))
    bet, back = bench.posted(bench.bet(payer, 5, **said)), bench.posted(bench.bet(payer, 5))
    commands = {
        "hold": hold,
        "capture": capture,
        "release": bench.release(released, **said),
        "reversal": bench.reversal(capture, 1, **said),
        "bet": bet,
        "win": bench.win(payer, bet, 7, **said),
        "rollback": bench.rollback(payer, back, **said),
        "freeze": bench.freeze(payee, **said),
        "unfreeze": bench.unfreeze(payee, **said),
        "close": bench.shut(shut, **said),
        "expiry": bench.expiry(due, **said),
    }
    for kind, command in commands.items():
        if kind == "expiry":
            bench.move_clock(60)
        if kind not in ("hold", "capture", "bet"):
            bench.posted(command)
    return commands


MEMBERS: dict[str, Any] = {"reference": "other", "reason": None, "metadata": '{"a":2}', "refers_to": fresh_id()}
ENVELOPES = {"bet", "win", "rollback"}
"""Kinds whose metadata is that of the first request only."""


def test_every_member_that_makes_the_command_is_compared_and_named(bench: Bench) -> None:
    for kind, command in _every_kind(bench).items():
        assert bench.post(again(command)).replayed, kind
        for member, value in MEMBERS.items():
            if member == "refers_to" and command.refers_to is None:
                continue
            if member == "metadata" and kind in ENVELOPES:
                assert bench.post(again(command, metadata=value)).replayed, kind
                continue
            refusal = bench.refused(again(command, **{member: value}))
            assert refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": [member]}), kind


def test_a_hold_is_compared_with_its_accounts_its_amount_and_its_lifetime(bench: Bench) -> None:
    payer, payee, other = bench.account(balance=100), bench.account(), bench.account(balance=100)
    hold = bench.posted(bench.hold(payer, 5, payee, expires_in_s=60))
    for member, value, name in (
        ("debit", other, "debit_account_id"),
        ("credit", other, "credit_account_id"),
        ("credit", None, "credit_account_id"),
        ("amount", 6, "amount"),
        ("expires_in_s", 61, "expires_in_s"),
    ):
        refusal = bench.refused(again(hold, **{member: value}))
        assert refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": [name]})


def test_a_command_that_refers_to_another_is_compared_without_its_accounts(bench: Bench) -> None:
    account, other = bench.account(balance=100), bench.account()
    capture = bench.posted(bench.capture(bench.posted(bench.hold(account, 5)), 3))

    assert bench.post(again(capture, debit=other)).replayed
    assert bench.refused(again(capture, kind="reversal", amount=4, refers_to=fresh_id())) == Refusal(
        ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": ["kind", "amount", "refers_to"]}
    )


@pytest.mark.parametrize("same_call", [False, True])
def test_everything_that_differs_is_named_in_one_order(bench: Bench, same_call: bool) -> None:
    account, other = bench.account(balance=100), bench.account(balance=100)
    bet = bench.posted(bench.bet(account, 5))
    win = bench.win(account, bet, 5)
    hold = bench.hold(
        other, 6, expires_in_s=60, reference="r", reason="x", metadata="{}", transaction_id=win.transaction_id
    )

    if same_call:
        _, answer = bench.post_all(win, hold)
    else:
        bench.posted(win)
        answer = bench.post(hold)
    names = "kind debit_account_id credit_account_id amount refers_to expires_in_s reference reason metadata"
    assert answer.refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": names.split()})


@pytest.mark.parametrize("same_call", [False, True])
def test_a_cancelled_id_refuses_the_new_kinds_and_their_ids_cannot_be_cancelled(bench: Bench, same_call: bool) -> None:
    account = bench.account(balance=100)
    held = bench.posted(bench.hold(account, 5))
    for command in (bench.hold(account, 1), bench.bet(account, 1), bench.capture(held), bench.freeze(account)):
        cancel = bench.cancel(account, command.transaction_id)
        late = [cancel, command]
        answers = bench.post_all(*late) if same_call else list(map(bench.post, late))
        assert answers[1].refusal == Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)

        posted = again(command, transaction_id=fresh_id())
        early = [posted, bench.cancel(account, posted.transaction_id)]
        answers = bench.post_all(*early) if same_call else list(map(bench.post, early))
        assert answers[1].refusal == Refusal(ErrorCode.ALREADY_POSTED)


def test_an_id_of_others_is_refused_without_a_word_to_the_new_kinds_too(bench: Bench) -> None:
    theirs, mine = bench.account(balance=100), bench.account(balance=100)
    used = bench.posted(bench.hold(theirs, 5))
    token = bench.token_of(mine)
    held = bench.posted(bench.hold(mine, 5, token_id=token))

    for command in (bench.hold(mine, 5), bench.release(held), bench.shut(mine)):
        probe = again(command, token_id=token, transaction_id=used.transaction_id)
        assert bench.refused(probe) == Refusal(ErrorCode.TRANSACTION_ID_REUSED, None)


# -- an id that its call means for two --------------------------------------------------------------------------------


def test_an_id_that_is_refused_on_one_account_and_posted_on_another_is_not_followed_within_the_call(
    bench: Bench,
) -> None:
    poor, rich = bench.account(), bench.account(balance=100)
    hold = bench.hold(poor, 5)
    other = again(hold, debit=rich)
    refused, placed, captured = bench.post_all(hold, other, bench.capture(hold))

    # Which accounts a reference leads to has to be known before the locks; the next call knows better.
    assert (refused.code, placed.posted) == (ErrorCode.INSUFFICIENT_FUNDS, True)
    assert captured.refusal == Refusal(ErrorCode.REFERENCE_NOT_FOUND)
    assert bench.faults() == []
    assert bench.post(bench.capture(hold)).posted


def test_a_hold_refused_for_its_destination_and_placed_for_another_is_not_captured_for_the_first(bench: Bench) -> None:
    payer, shut, payee = bench.account(balance=100), bench.account(), bench.account()
    bench.posted(bench.shut(shut))
    hold = bench.hold(payer, 5, shut)
    refused, placed, released = bench.post_all(hold, again(hold, credit=payee), bench.release(hold))

    assert (refused.code, placed.posted) == (ErrorCode.ACCOUNT_CLOSED, True)
    assert released.refusal == Refusal(ErrorCode.REFERENCE_NOT_FOUND)
    assert bench.post(bench.capture(hold)).credit == After(1, 5, 0, 5)


def test_a_reversal_of_an_id_that_its_call_posts_on_another_account_takes_nothing_from_the_first(bench: Bench) -> None:
    full, other = bench.account(balance=MINOR_MAX), bench.account()
    credit = bench.credit(full, 5)
    refused, placed, reversal = bench.post_all(credit, again(credit, credit=other), bench.reversal(credit))

    assert (refused.code, placed.posted) == (ErrorCode.LIMIT_EXCEEDED, True)
    assert reversal.refusal == Refusal(ErrorCode.REFERENCE_NOT_FOUND)
    assert bench.faults() == []


def test_a_win_on_a_bet_that_its_call_posts_on_another_users_account_goes_nowhere(bench: Bench) -> None:
    poor, rich = bench.account(), bench.account(balance=100)
    bet = bench.bet(poor, 5)
    refused, placed, won = bench.post_all(bet, again(bet, debit=rich), bench.win(poor, bet, 50))

    assert (refused.code, placed.posted) == (ErrorCode.INSUFFICIENT_FUNDS, True)
    assert won.refusal == Refusal(ErrorCode.REFERENCE_NOT_FOUND)
    assert bench.faults() == []


# -- a call that is sent again ----------------------------------------------------------------------------------------


def test_a_resent_call_is_answered_as_before_whatever_became_of_its_references(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold, bet = bench.hold(account, 5), bench.bet(account, 5)
    units = [
        Unit((each,))
        for each in (hold, bench.capture(hold, 6), bench.capture(hold, 5), bet, bench.win(account, bet, 1))
    ]
    first = bench.call(units)
    before = bench.state()

    second = bench.call(units, resent=True)
    assert [answer.code for (answer,) in first] == [0, ErrorCode.AMOUNT_OUT_OF_RANGE, 0, 0, 0]
    assert [answer.code for (answer,) in second] == [1, ErrorCode.AMOUNT_OUT_OF_RANGE, 1, 1, 1]
    assert second[1][0].data == {"remaining": 5}
    assert bench.state() == before


def test_a_resent_refusal_stands_although_the_reference_has_come(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 5)
    early = bench.capture(hold)
    refused = bench.post(early)
    bench.posted(hold)

    assert refused.code == ErrorCode.REFERENCE_NOT_FOUND
    assert bench.post(early, resent=True) == refused
    assert bench.post(again(early)).posted


def test_a_call_that_was_lost_is_executed_when_it_is_sent_again(bench: Bench) -> None:
    account = bench.account(balance=100)
    hold = bench.hold(account, 5)
    units = [Unit((hold, bench.capture(hold)), fresh_id())]
    bench.lose(units)

    assert [answer.posted for answer in bench.call(units, resent=True)[0]] == [True, True]
    assert bench.faults() == []


def test_a_token_that_ended_meanwhile_does_not_turn_a_posted_release_into_a_refusal(bench: Bench) -> None:
    account = bench.account(balance=100)
    token = bench.token_of(account)
    release = bench.release(bench.posted(bench.hold(account, 5, token_id=token)), token_id=token)
    bench.posted(release)
    bench.end(token)

    assert bench.post(release, resent=True).replayed
    assert bench.post(again(release)).code == ErrorCode.SESSION_EXPIRED


# -- what the tables themselves refuse --------------------------------------------------------------------------------


def test_a_kind_that_the_kernel_does_not_know_leaves_nothing_of_its_call(bench: Bench) -> None:
    account = bench.account(balance=100)
    before = bench.state()
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        bench.post_all(bench.hold(account, 5), bench.command("seizure", debit=account, amount=1))
    assert bench.state() == before
