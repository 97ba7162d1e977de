"""Each check finds the history that is wrong in its way, and none objects to one that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ledgerd_loadtest.chaos.history import History, LedgerAdvance, Operation, Signs, read, write
from ledgerd_loadtest.chaos.run import doubtful
from tests.chaos.replay import replay
from tests.chaos.story import Story, a_day


def of(history: History, name: str) -> Operation:
    return next(each for each in history.operations if each.params.get("transaction_id") == name)


def refused(story: Story, name: str, error: str, *, outcome: str = "refused", **data: Any) -> Operation:
    params = story.transfer_params(name, 7, 8, 250)
    return story.call("transfer", params, outcome=outcome, error=error, data=data)


def test_a_history_in_which_all_is_well_has_no_problems() -> None:
    story = a_day()
    assert story.red() == set()
    assert replay(story.history) == []


def test_a_history_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    history = a_day().history
    write(history, tmp_path / "history")
    assert read(tmp_path / "history") == history


# -- acknowledged, refused, unknown ------------------------------------------------------------------------------------


def test_an_acknowledged_transaction_that_is_gone_is_found() -> None:
    story = a_day()
    del story.history.transactions["back"]
    assert "acknowledged is there" in story.red()


def test_an_acknowledged_transaction_that_is_there_with_another_version_is_found() -> None:
    story = a_day()
    of(story.history, "back").result["entries"][0]["version"] = 2
    del story.history.transactions["there"]
    assert "acknowledged is there" in story.red()


def test_an_answer_under_another_id_is_found() -> None:
    story = a_day()
    shown = story.history.transactions["back"].transaction
    of(story.history, "back").result = {**shown, "transaction_id": "stranger"}
    assert "acknowledged is there" in story.red()


def test_an_id_that_was_new_to_two_callers_is_found() -> None:
    story = a_day()
    story.call("transfer", of(story.history, "back").params, story.history.transactions["back"].transaction)
    assert story.red() == {"acknowledged is there", "done once"}


def test_an_id_that_is_answered_from_the_record_is_well() -> None:
    story = a_day()
    shown = story.history.transactions["back"].transaction
    story.call("transfer", of(story.history, "back").params, {**shown, "replayed": True})
    assert story.red() == set()


def test_an_id_that_is_refused_after_it_was_acknowledged_is_found() -> None:
    story = a_day()
    params = of(story.history, "there").params
    data = {"available": "0.00", "requested": "2.50", "version": 0}
    story.call("transfer", params, outcome="refused", error="insufficient_funds", data=data)
    assert story.red() == {"done once"}


def test_a_refused_command_that_is_there_is_found() -> None:
    story = a_day()
    operation = of(story.history, "there")
    operation.outcome, operation.result, operation.error = "refused", None, "timeout"
    assert story.red() == {"refused is not there"}


def test_a_refused_command_that_was_sent_again_and_done_is_well() -> None:
    story = Story()
    story.credit("fund 7", 7, 1_000)
    refused(story, "x", "unavailable")
    story.transfer("x", 7, 8, 250)
    story.credit("fund 8", 8, 1_000)
    assert story.red() == set()


def test_a_transaction_that_nobody_sent_is_found() -> None:
    story = a_day()
    story.posted("stranger", "transfer", 7, 8, 1)
    assert story.red() == {"refused is not there"}


def test_a_transaction_with_another_amount_than_was_sent_is_found() -> None:
    story = a_day()
    of(story.history, "there").params["amount"] = "2.51"
    assert story.red() == {"acknowledged is there", "refused is not there"}


def test_a_command_whose_outcome_stays_unknown_is_found() -> None:
    story = a_day()
    refused(story, "x", "unavailable", outcome="unknown")
    assert story.red() == {"unknown is resolved"}
    assert [each.params["transaction_id"] for each in doubtful(story.history.operations)] == ["x"]


def test_an_unknown_command_that_is_asked_about_in_the_end_is_well() -> None:
    story = a_day()
    operation = refused(story, "x", "unavailable", outcome="unknown")
    cancel = {"transaction_id": "x", "account_id": 7}
    tombstone = {**story.history.transactions["there"].transaction, "transaction_id": "x", "kind": "cancel"}
    story.call("transaction_cancel", cancel, {**tombstone, "amount": "0.00", "entries": []}, workload="settle")
    story.call("transfer", operation.params, outcome="refused", error="transaction_id_cancelled", data={})
    assert story.red() == set()


def test_a_command_that_was_cancelled_for_good_and_is_there_is_found() -> None:
    story = a_day()
    shown = {**story.history.transactions["back"].transaction, "kind": "cancel", "entries": []}
    story.call("transaction_cancel", {"transaction_id": "back", "account_id": 8}, shown)
    assert "acknowledged is there" in story.red()


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_refusal_for_money_that_was_there_is_found() -> None:
    story = a_day()
    refused(story, "x", "insufficient_funds", available="1.00", requested="2.50", version=2)
    assert story.red() == {"refusals are true"}


def test_a_refusal_for_money_that_was_not_there_is_well() -> None:
    story = Story()
    story.credit("fund 7", 7, 100)
    refused(story, "x", "insufficient_funds", available="1.00", requested="2.50", version=1)
    assert story.red() == set()


def test_an_id_that_is_refused_as_anothers_and_is_nobodys_is_found() -> None:
    story = a_day()
    refused(story, "x", "transaction_id_reused")
    assert story.red() == {"refusals are true"}


def test_an_altered_command_with_a_used_id_is_rightly_refused() -> None:
    story = a_day()
    params = {**of(story.history, "there").params, "amount": "9.00"}
    story.call("transfer", params, outcome="refused", error="transaction_id_reused", data={})
    assert story.red() == set()


# -- the ledger in itself ----------------------------------------------------------------------------------------------


def test_money_from_nowhere_is_found() -> None:
    story = a_day()
    entry = story.history.transactions["back"].transaction["entries"][1]
    entry["balance_change"], entry["balance"], entry["available"] = "1.01", "8.51", "8.51"
    assert {"accounts add up", "transactions balance"} <= story.red()


def test_a_version_that_is_missing_is_found() -> None:
    story = a_day()
    story.history.accounts[7].version += 1
    assert "accounts add up" in story.red()


def test_an_overdrawn_account_is_found() -> None:
    story = Story()
    story.credit("fund", 7, 100)
    story.debit("once", 7, 100)
    story.debit("twice", 7, 100)
    assert story.red() == {"accounts add up"}


def test_a_transaction_that_is_listed_twice_is_found() -> None:
    story = a_day()
    story.history.transactions["there"].in_lists = 4
    assert story.red() == {"transactions balance"}


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_a_hold_ends_once_and_not_less_or_more(ends: int) -> None:
    story = Story()
    story.credit("fund", 7, 1_000)
    params = {"transaction_id": "hold", "account_id": 7, "amount": "1.00", "expires_in_s": 60}
    story.call("hold_place", params, story.posted("hold", "hold", 7, None, 100, held=100))
    for number in range(ends):
        posted = story.posted(f"end {number}", "capture", 7, None, 100, held=-100 if number == 0 else 0, hold_id="hold")
        story.call("hold_capture", {"transaction_id": f"end {number}", "hold_id": "hold"}, posted)
    assert ("holds end once" in story.red()) == (ends != 1)


def test_an_advance_whose_payment_was_taken_and_not_marked_is_found() -> None:
    story = Story()
    story.credit("fund", 7, 1_000)
    story.posted("paid", "advance_payment", 7, None, 100, advance_id="advance")
    payments = [{"paid": "1.00"}]
    advance = {"advance_id": "advance", "principal": "3.00", "outstanding": "2.00", "payments": payments}
    story.history.advances = [LedgerAdvance(advance=advance)]
    assert story.red() == set()
    payments[0]["paid"] = "0.00"
    assert story.red() == {"advances are paid"}


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_version_that_is_older_than_what_was_acknowledged_before_it_was_asked_for_is_found() -> None:
    story = a_day()
    back = of(story.history, "back")
    back.invoked_s, back.answered_s = 0.0, 0.1  # acknowledged before anybody sent what has the lower version
    assert "versions follow time" in story.red()


def test_transactions_that_overlap_may_come_in_either_order() -> None:
    story = Story()
    story.credit("fund 7", 7, 1_000)
    story.transfer("a", 7, 8, 1)
    story.transfer("b", 7, 8, 2)
    of(story.history, "b").invoked_s = 1.0
    of(story.history, "a").answered_s = 9.0
    assert story.red() == set()


def test_accounts_that_disagree_about_the_order_are_found() -> None:
    story = Story()
    story.credit("fund 7", 7, 1_000)
    story.credit("fund 8", 8, 1_000)
    story.transfer("a", 7, 8, 100)
    story.transfer("b", 7, 8, 100)
    for name, version, balance in (("a", 3, "12.00"), ("b", 2, "11.00")):
        entry = story.history.transactions[name].transaction["entries"][1]
        entry["version"], entry["balance"], entry["available"] = version, balance, balance
    assert "one order" in story.red()


def test_a_pipeline_that_is_done_out_of_order_is_found() -> None:
    story = Story()
    story.credit("fund 7", 7, 1_000)
    second = story.transfer("second", 7, 8, 1, in_order=1)
    first = story.transfer("first", 7, 8, 1, in_order=0)
    for each in (first, second):
        each.invoked_s, each.answered_s = 2.0, 9.0
    story.history.operations[1:] = [first, second]
    assert story.red() == {"arrival order"}


# -- reads -------------------------------------------------------------------------------------------------------------


def test_a_read_of_the_past_is_found() -> None:
    story = a_day()
    past = story.history.operations[-1]
    past.result = [[7, 2, 750, 750]]
    assert story.red() == {"reads are true"}


def test_a_read_of_what_an_event_had_shown_and_was_not_committed_is_found() -> None:
    story = a_day()
    told = story.history.told[0]
    told.arrived_s[-1] = 2.9  # the event of version 3 came before the count that still found version 2
    assert story.red() == {"reads are true"}


def test_a_read_of_what_never_was_is_found() -> None:
    story = a_day()
    story.history.operations[-1].result = [[7, 3, 851, 851]]
    assert story.red() == {"reads are true"}


def test_a_read_of_the_future_is_found() -> None:
    story = a_day()
    first = story.call("balance_get", {"account_id": 8}, [[8, 3, 1150, 1150]])
    first.invoked_s, first.answered_s = 0.1, 0.2
    assert "reads are true" in story.red()


def test_a_count_that_finds_another_total_is_found() -> None:
    story = a_day()
    count = next(each for each in story.history.operations if each.method == "account_list")
    count.result[1] = [8, 1, 1000, 1000]  # one side of a transfer, and not the other
    assert "totals are kept" in story.red()


# -- feeds and pages ---------------------------------------------------------------------------------------------------


def test_a_subscriber_who_was_not_told_everything_is_found() -> None:
    story = a_day()
    for told, missing in zip(story.history.told, (-1, 1), strict=True):
        del told.changes[missing], told.arrived_s[missing]
    assert story.red() == {"feeds are complete"}


def test_a_subscriber_who_was_told_of_something_else_is_found() -> None:
    story = a_day()
    story.history.told[0].changes[2] = (3, "another", 850)
    assert story.red() == {"feeds are complete"}


def paged(story: Story, pages: list[list[str]]) -> None:
    cursor: dict[str, str] = {}
    for number, ids in enumerate(pages):
        following = None if number + 1 == len(pages) else f"after {number}"
        result = {"ids": ids, "next_cursor": following}
        params = {"account_id": 7, **cursor}
        story.call("transaction_report", params, result, workload="paging", line="report 1")
        cursor = {"cursor": f"after {number}"}


@pytest.mark.parametrize(
    ("pages", "well"),
    [
        ([["back", "there"], ["fund 7"]], True),
        ([["back", "there"], ["there", "fund 7"]], False),
        ([["back", "there"], []], False),
        ([["back", "there"], ["fund 7", "nothing"]], False),
    ],
)
def test_a_report_shows_everything_once_and_nothing_else(pages: list[list[str]], well: bool) -> None:
    story = a_day()
    paged(story, pages)
    assert ("pages are stable" not in story.red()) == well


def test_a_page_that_shows_what_came_after_the_first_one_is_found() -> None:
    story = a_day()
    paged(story, [["back"], ["there", "fund 7"]])
    late = of(story.history, "there")
    late.invoked_s = story.history.operations[-2].answered_s + 0.1
    late.answered_s = late.invoked_s + 0.1
    assert "pages are stable" in story.red()


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signs",
    [
        Signs(deadlocks=1),
        Signs(fence_hits=1),
        Signs(ended_by_themselves=["daemon 0 ended"]),
        Signs(errors_logged=["a traceback"]),
        Signs(verify=["broken    conservation"]),
    ],
)
def test_a_process_that_is_not_well_is_found(signs: Signs) -> None:
    story = a_day()
    story.history.signs = signs
    assert story.red() == {"processes are well"}


# -- the model ---------------------------------------------------------------------------------------------------------


def test_a_ledger_that_does_not_follow_the_rules_is_found_by_the_model() -> None:
    story = a_day()
    story.debit("too much", 7, 10_000)
    assert any("insufficient_funds" in problem.lower() for problem in replay(story.history))
