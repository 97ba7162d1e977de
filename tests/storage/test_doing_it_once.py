"""The same transaction_id moves money once; another form of it moves none."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest

from ledgerd_protocol.errors import ErrorCode
from tests.model import Command, Refusal, Unit
from tests.storage.bench import Bench, fresh_id


def again(command: Command, **changes: Any) -> Command:
    return msgspec.structs.replace(command, attempt_id=fresh_id(), **changes)


def test_the_same_command_again_is_replayed_and_moves_nothing(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 500, reference="r", reason="because", metadata='{"a":1}')
    assert bench.post(command).posted
    before = bench.state()

    assert bench.post(again(command)).replayed
    assert bench.state() == before


def test_what_is_stored_stays_as_it_was_when_the_balance_has_moved_on(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 500)
    bench.post(command)
    bench.post(bench.debit(account, 400))

    assert bench.post(again(command)).replayed
    stored = bench.stored_transactions()[command.transaction_id]
    assert stored.credit is not None
    assert (stored.credit.version, stored.credit.balance) == (1, 500)


def test_an_omitted_currency_and_the_accounts_own_are_the_same_form(bench: Bench) -> None:
    account = bench.account(currency="EUR")
    command = bench.credit(account, 1)
    bench.post(command)

    assert bench.post(again(command, currency="EUR")).replayed


def test_another_token_that_may_do_it_gets_the_stored_outcome_too(bench: Bench) -> None:
    account = bench.account(balance=10)
    command = bench.debit(account, 1, token_id=bench.token_of(account))
    bench.post(command)

    assert bench.post(again(command, token_id=bench.service)).replayed


@pytest.mark.parametrize(
    ("member", "value", "mismatch"),
    [
        ("amount", 501, "amount"),
        ("reference", None, "reference"),
        ("reason", "another", "reason"),
        ("metadata", '{"a":2}', "metadata"),
    ],
)
@pytest.mark.parametrize("same_call", [False, True])
def test_another_form_is_refused_and_the_differing_member_is_named(
    bench: Bench, member: str, value: Any, mismatch: str, same_call: bool
) -> None:
    account = bench.account()
    command = bench.credit(account, 500, reference="r", reason="because", metadata='{"a":1}')
    other = again(command, **{member: value})

    if same_call:
        first, second = bench.post_all(command, other)
    else:
        first, second = bench.post(command), bench.post(other)
    assert first.posted
    assert second.refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": [mismatch]})
    assert bench.stored_account(account).balance == 500


def test_every_differing_member_is_named_at_once(bench: Bench) -> None:
    account, other = bench.account(balance=10), bench.account(balance=10)
    command = bench.debit(account, 1)
    bench.post(command)

    accounts = {"debit": other, "credit": account}
    altered = again(command, kind="transfer", **accounts, amount=2, reference="r", reason="x", metadata="{}")
    assert bench.post(altered).refusal == Refusal(
        ErrorCode.TRANSACTION_ID_REUSED,
        {
            "mismatch": [
                "kind",
                "debit_account_id",
                "credit_account_id",
                "amount",
                "reference",
                "reason",
                "metadata",
            ]
        },
    )


@pytest.mark.parametrize("same_call", [False, True])
def test_an_id_that_belongs_to_others_is_refused_without_a_word(bench: Bench, same_call: bool) -> None:
    theirs, mine = bench.account(), bench.account(balance=10)
    command = bench.credit(theirs, 5)
    probe = bench.debit(mine, 5, token_id=bench.token_of(mine), transaction_id=command.transaction_id)

    if same_call:
        _, answer = bench.post_all(command, probe)
    else:
        bench.post(command)
        answer = bench.post(probe)
    assert answer.refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, None)


@pytest.mark.parametrize("same_call", [False, True])
def test_a_token_limited_to_one_account_does_not_see_its_users_other_account(bench: Bench, same_call: bool) -> None:
    user = bench.user()
    dollars, euros = bench.account(user, balance=10), bench.account(user, "EUR")
    command = bench.credit(euros, 5)
    token = bench.token_of(dollars, limited=True)
    probe = bench.debit(dollars, 5, token_id=token, transaction_id=command.transaction_id)

    if same_call:
        _, answer = bench.post_all(command, probe)
    else:
        bench.post(command)
        answer = bench.post(probe)
    assert answer.refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, None)


def test_the_receiver_of_a_transfer_sees_it_and_is_told_what_differs(bench: Bench) -> None:
    payer, payee = bench.account(balance=10), bench.account(balance=10)
    command = bench.transfer(payer, payee, 5, token_id=bench.token_of(payer))
    bench.post(command)

    probe = bench.debit(payee, 5, token_id=bench.token_of(payee), transaction_id=command.transaction_id)
    answer = bench.post(probe)
    assert answer.code == ErrorCode.TRANSACTION_ID_REUSED
    assert answer.data == {"mismatch": ["kind", "debit_account_id", "credit_account_id"]}


def test_an_id_twice_in_one_call_is_posted_once(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 5)

    first, second = bench.post_all(command, again(command))
    assert (first.posted, second.replayed) == (True, True)
    assert bench.stored_account(account).balance == 5


def test_a_refused_command_leaves_its_id_free(bench: Bench) -> None:
    account = bench.account()
    command = bench.debit(account, 5)
    assert bench.post(command).code == ErrorCode.INSUFFICIENT_FUNDS

    bench.post(bench.credit(account, 9))
    assert bench.post(again(command, amount=7)).posted


def test_a_refused_command_leaves_its_id_free_for_a_later_one_of_the_same_call(bench: Bench) -> None:
    account = bench.account()
    command = bench.debit(account, 5)
    refused, _, posted = bench.post_all(command, bench.credit(account, 5), again(command))

    assert refused.code == ErrorCode.INSUFFICIENT_FUNDS
    assert posted.posted


# -- a call that is sent again ----------------------------------------------------------------------------------------


def test_a_resent_call_answers_the_refusal_that_is_stored_and_does_not_judge_again(bench: Bench) -> None:
    account = bench.account(balance=3)
    command = bench.debit(account, 5)
    refused = bench.post(command)
    bench.post(bench.credit(account, 100))
    before = bench.state()

    assert bench.post(command, resent=True) == refused
    assert bench.state() == before
    assert list(bench.stored_attempts()) == [command.attempt_id]


def test_a_resent_call_that_was_posted_is_replayed(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 5)
    bench.post(command)

    assert bench.post(command, resent=True).replayed
    assert bench.stored_account(account).balance == 5


def test_a_resent_call_that_never_arrived_is_executed(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 5)
    bench.lose([Unit((command,))])

    assert bench.post(command, resent=True).posted


@pytest.mark.parametrize("by", ["revocation", "expiry"])
def test_a_token_that_ended_meanwhile_does_not_turn_a_posted_call_into_a_refusal(bench: Bench, by: str) -> None:
    account = bench.account(balance=10)
    token = bench.token_of(account)
    command = bench.debit(account, 5, token_id=token)
    bench.post(command)
    bench.end(token, by=by)

    assert bench.post(command, resent=True).replayed
    assert bench.post(again(command)).code == ErrorCode.SESSION_EXPIRED


def test_what_another_token_posted_is_no_answer_for_a_token_that_ended(bench: Bench) -> None:
    account = bench.account(balance=10)
    token = bench.token_of(account)
    command = bench.debit(account, 5, token_id=token)
    bench.post(again(command, token_id=bench.service))
    bench.end(token)

    assert bench.post(command, resent=True).code == ErrorCode.SESSION_EXPIRED


def test_a_token_that_ended_before_the_resent_call_moves_nothing_new(bench: Bench) -> None:
    account = bench.account(balance=10)
    token = bench.token_of(account)
    command = bench.debit(account, 5, token_id=token)
    bench.lose([Unit((command,))])
    bench.end(token)

    assert bench.post(command, resent=True).code == ErrorCode.SESSION_EXPIRED
    assert bench.stored_account(account).balance == 10


def test_a_resent_atomic_unit_answers_the_member_that_was_refused_whatever_holds_now(bench: Bench) -> None:
    rich, poor = bench.account(balance=10), bench.account()
    batch, first, second = fresh_id(), bench.debit(rich, 10), bench.debit(poor, 1)
    refused = bench.post_atomic(batch, first, second)
    assert [answer.code for answer in refused] == [None, ErrorCode.INSUFFICIENT_FUNDS]
    bench.post(bench.debit(rich, 1))

    assert bench.post_atomic(batch, first, second, resent=True) == refused
    assert list(bench.stored_attempts()) == [second.attempt_id]


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancelling_an_unused_id_leaves_a_tombstone_that_refuses_every_later_arrival(bench: Bench) -> None:
    account = bench.account()
    late = bench.credit(account, 5)
    assert bench.post(bench.cancel(account, late.transaction_id)).posted

    assert bench.post(late).refusal == Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)
    assert bench.post(again(late)).refusal == Refusal(ErrorCode.TRANSACTION_ID_CANCELLED)
    assert bench.stored_account(account).balance == 0


def test_a_tombstone_takes_no_version_and_no_money(bench: Bench) -> None:
    account = bench.account(balance=7)
    before = bench.stored_account(account)
    cancel = bench.cancel(account, fresh_id())
    answer = bench.post(cancel)

    assert (answer.debit, answer.credit) == (None, None)
    assert bench.stored_account(account) == before
    (row,) = bench.fetch("SELECT * FROM ledgerd.transactions WHERE transaction_id = $1", cancel.transaction_id)
    assert (row["status"], row["amount"], row["debit_version"], row["credit_version"]) == ("cancelled", 0, None, None)


def test_cancelling_twice_is_replayed(bench: Bench) -> None:
    account = bench.account()
    cancel = bench.cancel(account, fresh_id())

    first, second = bench.post_all(cancel, again(cancel))
    assert (first.posted, second.replayed) == (True, True)
    assert bench.post(again(cancel)).replayed


def test_cancelling_a_posted_id_is_already_posted(bench: Bench) -> None:
    account = bench.account()
    command = bench.credit(account, 5)
    bench.post(command)

    assert bench.post(bench.cancel(account, command.transaction_id)).refusal == Refusal(ErrorCode.ALREADY_POSTED)
    assert bench.stored_account(account).balance == 5


def test_cancelling_is_possible_when_the_account_is_closed_and_its_owner_disabled(bench: Bench) -> None:
    account = bench.account()
    bench.set_status(account, "closed")
    bench.disable_owner(account)

    assert bench.post(bench.cancel(account, fresh_id())).posted


def test_a_tombstone_of_others_is_refused_without_a_word(bench: Bench) -> None:
    theirs, mine = bench.account(), bench.account(balance=5)
    transaction_id = fresh_id()
    bench.post(bench.cancel(theirs, transaction_id))

    for command in (
        bench.debit(mine, 1, token_id=bench.token_of(mine), transaction_id=transaction_id),
        bench.cancel(mine, transaction_id, token_id=bench.token_of(mine)),
    ):
        assert bench.post(command).refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, None)


def test_nobody_cancels_on_an_account_of_others(bench: Bench) -> None:
    theirs, mine = bench.account(), bench.account()
    cancel = bench.cancel(theirs, fresh_id(), token_id=bench.token_of(mine))

    assert bench.post(cancel).refusal == Refusal(ErrorCode.NOT_FOUND, {"resource": "account"})


# -- atomic batches ---------------------------------------------------------------------------------------------------


def test_an_atomic_batch_stands_as_a_whole(bench: Bench) -> None:
    one, two = bench.account(balance=10), bench.account()
    answers = bench.post_atomic(fresh_id(), bench.debit(one, 4), bench.transfer(one, two, 6), bench.debit(two, 1))

    assert all(answer.posted for answer in answers)
    assert (bench.stored_account(one).balance, bench.stored_account(two).balance) == (0, 5)


def test_an_atomic_batch_falls_as_a_whole(bench: Bench) -> None:
    one, two = bench.account(balance=10), bench.account()
    before = bench.state()
    last = bench.debit(two, 100)
    members = bench.debit(one, 4), bench.transfer(one, two, 6), last, bench.credit(two, 1)
    answers = bench.post_atomic(fresh_id(), *members)

    assert [answer.code for answer in answers] == [None, None, ErrorCode.INSUFFICIENT_FUNDS, None]
    assert answers[2].data == {"available": 6, "requested": 100, "version": 1}
    assert bench.state() == before
    assert list(bench.stored_attempts()) == [last.attempt_id]


def test_a_limit_set_by_a_batch_falls_with_it(bench: Bench) -> None:
    account = bench.account(balance=10)
    batch = Unit((bench.limit(account, 50), bench.debit(account, 100)), fresh_id())
    fallen, (after,) = bench.call([batch, Unit((bench.debit(account, 11),))])

    assert [answer.code for answer in fallen] == [None, ErrorCode.INSUFFICIENT_FUNDS]
    assert after.data == {"available": 10, "requested": 11, "version": 1}
    assert bench.stored_account(account).overdraft_limit == 0


def test_commands_beside_a_fallen_batch_stand(bench: Bench) -> None:
    account = bench.account(balance=10)
    before, fallen, after = bench.call(
        [
            Unit((bench.debit(account, 1),)),
            Unit((bench.debit(account, 2), bench.debit(account, 100)), fresh_id()),
            Unit((bench.debit(account, 3),)),
        ]
    )

    assert before[0].debit is not None
    assert after[0].debit is not None
    assert [answer.code for answer in fallen] == [None, ErrorCode.INSUFFICIENT_FUNDS]
    assert (before[0].debit.version, after[0].debit.version) == (2, 3)
    assert bench.stored_account(account).balance == 6


def test_an_id_of_a_fallen_batch_is_free_in_the_same_call(bench: Bench) -> None:
    account = bench.account(balance=10)
    member = bench.debit(account, 1)
    _, (answer,) = bench.call([Unit((member, bench.debit(account, 100)), fresh_id()), Unit((again(member, amount=5),))])

    assert answer.posted


@pytest.mark.parametrize("same_call", [False, True])
def test_an_atomic_batch_again_is_replayed_as_a_whole(bench: Bench, same_call: bool) -> None:
    account = bench.account(balance=10)
    unit = Unit((bench.debit(account, 1), bench.debit(account, 2)), fresh_id())
    repeat = Unit(tuple(map(again, unit.commands)), unit.batch_id)

    _, answers = bench.call([unit, repeat]) if same_call else (bench.call([unit]), bench.call([repeat])[0])
    assert all(answer.replayed for answer in answers)
    assert bench.stored_account(account).balance == 7


@pytest.mark.parametrize("same_call", [False, True])
@pytest.mark.parametrize("change", ["shrunk", "extended", "replaced", "swapped", "altered"])
def test_another_batch_under_the_same_batch_id_is_refused(bench: Bench, change: str, same_call: bool) -> None:
    account = bench.account(balance=10)
    one, two = bench.debit(account, 1), bench.debit(account, 2)
    batch = fresh_id()
    members, mismatch, index = {
        "shrunk": ((one,), "items", 0),
        "extended": ((one, two, bench.debit(account, 3)), "items", 0),
        "replaced": ((bench.debit(account, 1), bench.debit(account, 2)), "items", 0),
        "swapped": ((two, one), "batch_id", 0),
        "altered": ((one, again(two, amount=3)), "amount", 1),
    }[change]
    unit, other = Unit((one, two), batch), Unit(tuple(map(again, members)), batch)

    if same_call:
        _, answers = bench.call([unit, other])
    else:
        bench.call([unit])
        (answers,) = bench.call([other])
    expected: list[Refusal | None] = [None] * len(members)
    expected[index] = Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": [mismatch]})
    assert [answer.refusal for answer in answers] == expected
    assert bench.stored_account(account).balance == 7


@pytest.mark.parametrize("same_call", [False, True])
def test_an_item_that_was_posted_outside_refuses_the_whole_batch(bench: Bench, same_call: bool) -> None:
    account = bench.account(balance=10)
    outside = bench.debit(account, 1)
    batch = Unit((bench.debit(account, 2), again(outside)), fresh_id())

    if same_call:
        _, answers = bench.call([Unit((outside,)), batch])
    else:
        bench.post(outside)
        (answers,) = bench.call([batch])
    assert answers[0].code is None
    assert answers[1].refusal == Refusal(ErrorCode.TRANSACTION_ID_REUSED, {"mismatch": ["batch_id"]})
    assert bench.stored_account(account).balance == 9


def test_an_id_twice_within_an_atomic_batch_refuses_it(bench: Bench) -> None:
    account = bench.account(balance=10)
    one = bench.debit(account, 1)
    answers = bench.post_atomic(fresh_id(), one, again(one))

    assert [answer.code for answer in answers] == [None, ErrorCode.TRANSACTION_ID_REUSED]
    assert bench.stored_account(account).balance == 10


def test_a_cancelled_id_refuses_the_batch_that_arrives_with_it(bench: Bench) -> None:
    account = bench.account(balance=10)
    batch = str(uuid.uuid4())
    late = bench.debit(account, 1)
    bench.post(bench.cancel(account, late.transaction_id))

    answers = bench.post_atomic(batch, bench.debit(account, 2), late)
    assert [answer.code for answer in answers] == [None, ErrorCode.TRANSACTION_ID_CANCELLED]


def test_a_batch_that_was_refused_may_be_sent_again_with_its_ids(bench: Bench) -> None:
    account = bench.account()
    unit = Unit((bench.debit(account, 1), bench.debit(account, 2)), fresh_id())
    bench.call([unit])
    bench.post(bench.credit(account, 10))

    (answers,) = bench.call([Unit(tuple(map(again, unit.commands)), unit.batch_id)])
    assert all(answer.posted for answer in answers)
