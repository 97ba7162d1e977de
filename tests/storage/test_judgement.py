"""In which order the kernel judges, what it refuses, and what it keeps of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest

from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import MINOR_MAX
from tests.model import ABSENT, Command, Refusal
from tests.storage.bench import Bench, fresh_id

ACCOUNT = {"resource": "account"}
DESTINATION = {"resource": "destination"}

# -- the order --------------------------------------------------------------------------------------------------------
#
# Each function gives a good transfer of a service one reason to be refused; the ladder lists them in the order in which
# they are judged.


def _ended_token(bench: Bench, command: Command) -> Command:
    bench.end(command.token_id)
    return command


def _read_token(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, token_id=bench.token("read"))


def _absent_source(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, debit=ABSENT)


def _absent_destination(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, credit=ABSENT)


def _same_account(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, credit=command.debit)


def _other_currency(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, currency="EUR")


def _bad_amount(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, amount=None, problem=ErrorCode.AMOUNT_PRECISION)


def _used_id(bench: Bench, command: Command) -> Command:
    used = bench.credit(bench.account(), 1)
    bench.post(used)
    return msgspec.structs.replace(command, transaction_id=used.transaction_id)


def _disabled_owner(bench: Bench, command: Command) -> Command:
    bench.disable_owner(command.acting)
    return command


def _closed_source(bench: Bench, command: Command) -> Command:
    bench.set_status(command.acting, "closed")
    return command


def _closed_destination(bench: Bench, command: Command) -> Command:
    assert command.credit is not None
    bench.set_status(command.credit, "closed")
    return command


def _full_destination(bench: Bench, command: Command) -> Command:
    assert command.credit is not None
    bench.post(bench.credit(command.credit, MINOR_MAX))
    return command


def _no_funds(bench: Bench, command: Command) -> Command:
    return msgspec.structs.replace(command, amount=1_000)


Reason = Callable[[Bench, Command], Command]

LADDER: list[tuple[Reason, ErrorCode]] = [
    (_ended_token, ErrorCode.SESSION_EXPIRED),
    (_read_token, ErrorCode.PERMISSION_DENIED),
    (_absent_source, ErrorCode.NOT_FOUND),
    (_absent_destination, ErrorCode.NOT_FOUND),
    (_same_account, ErrorCode.SAME_ACCOUNT),
    (_other_currency, ErrorCode.CURRENCY_MISMATCH),
    (_bad_amount, ErrorCode.AMOUNT_PRECISION),
    (_used_id, ErrorCode.TRANSACTION_ID_REUSED),
    (_disabled_owner, ErrorCode.USER_DISABLED),
    (_closed_source, ErrorCode.ACCOUNT_CLOSED),
    (_closed_destination, ErrorCode.ACCOUNT_CLOSED),
    (_full_destination, ErrorCode.LIMIT_EXCEEDED),
    (_no_funds, ErrorCode.INSUFFICIENT_FUNDS),
]


def _failing(bench: Bench, *reasons: Reason) -> Command:
    """A transfer with these reasons to refuse it, set up from the last to the first."""
    command = bench.transfer(bench.account(balance=10), bench.account(), 5, token_id=bench.token("service"))
    for reason in reversed(reasons):
        command = reason(bench, command)
    return command


# A destination that does not exist cannot be the source as well.
PAIRS = [pair for pair in pairwise(LADDER) if pair[1][0] is not _same_account] + [(LADDER[2], LADDER[4])]


@pytest.mark.parametrize(("reason", "code"), LADDER)
def test_one_reason_alone_refuses_with_its_own_code(bench: Bench, reason: Reason, code: ErrorCode) -> None:
    assert bench.post(_failing(bench, reason)).code == code


@pytest.mark.parametrize(("first", "second", "code"), [(first, second, code) for (first, code), (second, _) in PAIRS])
def test_of_two_reasons_the_one_judged_first_is_answered(
    bench: Bench, first: Reason, second: Reason, code: ErrorCode
) -> None:
    answer = bench.post(_failing(bench, first, second))

    assert answer.code == code
    if first is _absent_source:
        assert answer.data == ACCOUNT


def test_precision_is_answered_before_range_because_the_daemon_says_which(bench: Bench) -> None:
    account = bench.account()
    for problem in (ErrorCode.AMOUNT_PRECISION, ErrorCode.AMOUNT_OUT_OF_RANGE):
        assert bench.post(bench.credit(account, None, problem=problem)).refusal == Refusal(problem)


def test_what_cannot_change_is_judged_before_the_id_so_that_a_replay_needs_the_same_rights(bench: Bench) -> None:
    account = bench.account(balance=10)
    command = bench.debit(account, 1)
    bench.post(command)
    again = msgspec.structs.replace(command, attempt_id=fresh_id(), token_id=bench.token("read"))

    assert bench.post(again).code == ErrorCode.PERMISSION_DENIED


def test_what_can_change_is_judged_after_the_id_so_that_a_replay_needs_no_funds(bench: Bench) -> None:
    account = bench.account(balance=10)
    command = bench.debit(account, 10)
    bench.post(command)
    bench.set_status(account, "closed")
    bench.disable_owner(account)

    assert bench.post(msgspec.structs.replace(command, attempt_id=fresh_id())).replayed


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["service", "operator"])
def test_service_and_operator_move_money_on_any_account(bench: Bench, scope: str) -> None:
    one, two = bench.account(), bench.account()
    token = bench.token(scope)
    answers = bench.post_all(
        bench.credit(one, 10, token_id=token),
        bench.transfer(one, two, 5, token_id=token),
        bench.debit(two, 5, token_id=token),
    )
    assert all(answer.posted for answer in answers)


def test_a_user_pays_from_the_own_account_to_anybodys(bench: Bench) -> None:
    mine, theirs = bench.account(balance=10), bench.account()
    assert bench.post(bench.transfer(mine, theirs, 5, token_id=bench.token_of(mine))).posted


def test_a_user_cannot_pull_money_from_another_account(bench: Bench) -> None:
    mine, theirs = bench.account(), bench.account(balance=10)
    pull = bench.transfer(theirs, mine, 5, token_id=bench.token_of(mine))

    assert bench.post(pull).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)
    assert bench.post(bench.debit(theirs, 5, token_id=bench.token_of(mine))).refusal == Refusal(
        ErrorCode.NOT_FOUND, ACCOUNT
    )


def test_only_the_topup_grant_lets_a_user_credit_and_only_the_own_account(bench: Bench) -> None:
    mine, theirs = bench.account(), bench.account()
    assert bench.post(bench.credit(mine, 1, token_id=bench.token_of(mine))).code == ErrorCode.PERMISSION_DENIED

    token = bench.token_of(mine, "user", "topup")
    assert bench.post(bench.credit(mine, 1, token_id=token)).posted
    assert bench.post(bench.credit(theirs, 1, token_id=token)).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)


def test_a_token_limited_to_one_account_acts_on_that_one_only(bench: Bench) -> None:
    user = bench.user()
    dollars, euros = bench.account(user, balance=10), bench.account(user, "EUR", balance=10)
    token = bench.token_of(dollars, limited=True)

    assert bench.post(bench.debit(dollars, 1, token_id=token)).posted
    assert bench.post(bench.debit(euros, 1, token_id=token)).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)


def test_a_service_token_limited_to_one_account_sees_no_other(bench: Bench) -> None:
    mine, theirs = bench.account(balance=10), bench.account(balance=10)
    token = bench.token_of(mine, "service", limited=True)

    assert bench.post(bench.debit(mine, 1, token_id=token)).posted
    assert bench.post(bench.debit(theirs, 1, token_id=token)).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)


def test_a_reader_moves_nothing(bench: Bench) -> None:
    mine, theirs = bench.account(balance=10), bench.account()
    token = bench.token_of(mine, "read")
    for command in (
        bench.credit(mine, 1, token_id=token),
        bench.debit(mine, 1, token_id=token),
        bench.transfer(mine, theirs, 1, token_id=token),
        bench.cancel(mine, fresh_id(), token_id=token),
        bench.limit(mine, 1, token_id=token),
    ):
        assert bench.post(command).code == ErrorCode.PERMISSION_DENIED


def test_only_an_operator_sets_limits(bench: Bench) -> None:
    account = bench.account()
    for token in (bench.service, bench.token_of(account, "user", "topup")):
        assert bench.post(bench.limit(account, 1, token_id=token)).code == ErrorCode.PERMISSION_DENIED
    assert bench.post(bench.limit(account, 1)).posted


def test_a_token_that_does_not_exist_is_unauthenticated(bench: Bench) -> None:
    assert bench.post(bench.credit(bench.account(), 1, token_id=10**9)).code == ErrorCode.UNAUTHENTICATED


@pytest.mark.parametrize("by", ["revocation", "expiry"])
def test_an_ended_token_moves_no_money_whatever_the_daemon_believes(bench: Bench, by: str) -> None:
    token = bench.token("service")
    bench.end(token, by=by)
    assert bench.post(bench.credit(bench.account(), 1, token_id=token)).code == ErrorCode.SESSION_EXPIRED


def test_no_command_can_name_a_world_account(bench: Bench) -> None:
    account = bench.account(balance=10)
    world = bench.value("SELECT world_account FROM ledgerd.currencies")
    assert world < 0

    assert bench.post(bench.debit(world, 1)).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)
    assert bench.post(bench.credit(world, 1)).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)
    assert bench.post(bench.transfer(account, world, 1)).refusal == Refusal(ErrorCode.NOT_FOUND, DESTINATION)
    assert bench.post(bench.cancel(world, fresh_id())).refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)


def test_a_user_learns_of_the_receiver_only_that_it_cannot_receive(bench: Bench) -> None:
    mine = bench.account(balance=10)
    closed, euros = bench.account(), bench.account(currency="EUR")
    bench.set_status(closed, "closed")
    token = bench.token_of(mine)

    for destination in (ABSENT, closed, euros):
        answer = bench.post(bench.transfer(mine, destination, 1, token_id=token))
        assert answer.refusal == Refusal(ErrorCode.NOT_FOUND, DESTINATION)


def test_a_user_without_the_money_does_not_learn_that_the_receiver_is_full(bench: Bench) -> None:
    mine, full = bench.account(balance=10), bench.account(balance=MINOR_MAX)
    token = bench.token_of(mine)

    assert bench.post(bench.transfer(mine, full, 11, token_id=token)).code == ErrorCode.INSUFFICIENT_FUNDS
    assert bench.post(bench.transfer(mine, full, 10, token_id=token)).code == ErrorCode.LIMIT_EXCEEDED


def test_a_service_is_told_why_the_receiver_cannot_receive(bench: Bench) -> None:
    payer, closed, euros = bench.account(balance=10), bench.account(), bench.account(currency="EUR")
    bench.set_status(closed, "closed")

    assert bench.post(bench.transfer(payer, closed, 1)).code == ErrorCode.ACCOUNT_CLOSED
    assert bench.post(bench.transfer(payer, euros, 1)).code == ErrorCode.CURRENCY_MISMATCH


# -- what can change --------------------------------------------------------------------------------------------------


def test_a_disabled_user_pays_nothing_but_still_receives(bench: Bench) -> None:
    disabled, other = bench.account(balance=10), bench.account(balance=10)
    bench.disable_owner(disabled)

    assert bench.post(bench.debit(disabled, 1)).code == ErrorCode.USER_DISABLED
    assert bench.post(bench.transfer(disabled, other, 1)).code == ErrorCode.USER_DISABLED
    assert bench.post(bench.credit(disabled, 1)).posted
    assert bench.post(bench.transfer(other, disabled, 1)).posted


def test_a_frozen_account_pays_nothing_but_still_receives(bench: Bench) -> None:
    frozen, other = bench.account(balance=10), bench.account(balance=10)
    bench.set_status(frozen, "frozen")

    assert bench.post(bench.debit(frozen, 1)).code == ErrorCode.ACCOUNT_FROZEN
    assert bench.post(bench.transfer(frozen, other, 1)).code == ErrorCode.ACCOUNT_FROZEN
    assert bench.post(bench.credit(frozen, 1)).posted
    assert bench.post(bench.transfer(other, frozen, 1)).posted


def test_a_closed_account_takes_part_in_nothing(bench: Bench) -> None:
    closed, other = bench.account(), bench.account(balance=10)
    bench.set_status(closed, "closed")

    for command in (
        bench.debit(closed, 1),
        bench.credit(closed, 1),
        bench.transfer(closed, other, 1),
        bench.transfer(other, closed, 1),
        bench.limit(closed, 1),
    ):
        assert bench.post(command).code == ErrorCode.ACCOUNT_CLOSED


# -- what is kept of a refusal ----------------------------------------------------------------------------------------


def test_a_refusal_is_recorded_with_its_reason_and_changes_nothing_else(bench: Bench) -> None:
    account = bench.account(balance=10)
    before = bench.state()
    command = bench.debit(account, 25, reference="r", reason="because")
    answer = bench.post(command)

    assert answer.data == {"available": 10, "requested": 25, "version": 1}
    assert bench.state() == before
    (attempt,) = bench.stored_attempts().values()
    assert attempt.refusal == answer.refusal
    assert attempt.command == msgspec.structs.replace(command, currency="USD")


def test_every_attempt_at_one_id_is_recorded_under_its_own_number(bench: Bench) -> None:
    account = bench.account()
    command = bench.debit(account, 25)
    second = msgspec.structs.replace(command, attempt_id=fresh_id())
    bench.post_all(command, second)

    assert bench.stored_attempts().keys() == {command.attempt_id, second.attempt_id}


def test_a_refusal_of_an_account_that_does_not_exist_is_recorded_too(bench: Bench) -> None:
    command = bench.transfer(ABSENT, bench.account(), 25, currency="USD")
    bench.post(command)

    (attempt,) = bench.stored_attempts().values()
    assert attempt.refusal == Refusal(ErrorCode.NOT_FOUND, ACCOUNT)
    assert (attempt.command.debit, attempt.command.currency) == (ABSENT, "USD")


def test_posted_and_replayed_commands_leave_no_attempt(bench: Bench) -> None:
    command = bench.credit(bench.account(), 25)
    bench.post(command)
    bench.post(msgspec.structs.replace(command, attempt_id=fresh_id()))

    assert bench.stored_attempts() == {}


def test_attempts_are_no_part_of_an_accounts_history(bench: Bench) -> None:
    account = bench.account(balance=5)
    bench.post(bench.debit(account, 6))
    bench.post(bench.debit(account, 5))

    assert bench.stored_account(account).version == 2
    assert bench.value("SELECT count(*) FROM ledgerd.entries WHERE account_id = $1", account) == 2
