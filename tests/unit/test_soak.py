"""The pure parts of the soak and fan-out tests: what a witness accepts, and what the verdict finds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
import trio.testing

from ledgerd_loadtest.house import error_lines
from ledgerd_loadtest.processes import parse_open_files_max
from ledgerd_loadtest.soak import Plan, followers, latencies
from ledgerd_loadtest.socket_client import ConnectionFailed, after_handshake, closed
from ledgerd_loadtest.swarm_orders import Disturb, Finish, LineReader, Report, Sample, Told, ToSwarm, line_of
from ledgerd_loadtest.transfers import Reply
from ledgerd_loadtest.witness import (
    Account,
    Change,
    Counts,
    Sent,
    Standing,
    Witness,
    changes_of,
    feed_problems,
    ledger_problems,
    truth_of,
)
from ledgerd_protocol.events import AccountStart, Live, Start, Update

PLAN = Plan(daemons=2, subscribers=30, accounts=10, follow=4, minutes=1, calm_s=10, rate=10, fault_s=5, seed=1)


def start(version: int = 0, balance: str = "0.00", origin: Any = "snapshot") -> Start:
    return Start("e", [AccountStart(7, origin, version, balance, "0.00", balance, "USD")])


def update(version: int, change: str, balance: str, transaction_id: str = "t") -> Update:
    return Update(7, version, balance, "0.00", balance, "USD", change, "0.00", transaction_id, "transfer", "")


def witness_of(*events: Any) -> Witness:
    witness = Witness()
    for event in events:
        witness.take(event)
    return witness


# -- a witness ---------------------------------------------------------------------------------------------------------


def test_a_witness_that_was_told_everything_stands_where_the_ledger_does() -> None:
    witness = witness_of(start(), Live(), update(1, "10.00", "10.00", "a"), update(2, "-2.50", "7.50", "b"))
    assert witness.problems == []
    assert witness.counts.events == 2
    account = Account(2, 750, [Change(1, "a", 1000, 1000), Change(2, "b", -250, 750)])
    assert witness.standings == {7: truth_of(account)}
    assert feed_problems("x", witness.standings, [7], {7: truth_of(account)}) == []


def test_a_resumed_witness_goes_on_and_has_the_same_digest_as_one_that_never_left() -> None:
    stayed = witness_of(start(), update(1, "1.00", "1.00", "a"), update(2, "1.00", "2.00", "b"))
    resumed = start(2, "2.00", "resumed")
    left = witness_of(start(), update(1, "1.00", "1.00", "a"), resumed, update(2, "1.00", "2.00", "b"), Live())
    assert left.problems == []
    assert left.counts.resumes == 1
    assert left.standings == stayed.standings


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([start(), update(2, "1.00", "1.00")], "missing"),
        ([start(), update(1, "1.00", "1.00"), update(1, "1.00", "2.00")], "again"),
        ([start(), update(1, "1.00", "1.01")], "does not add up"),
        ([start(3, "5.00")], "began with version 3"),
        ([start(), update(1, "1.00", "1.00"), start(1, "1.00")], "started over with a snapshot"),
        ([start(), update(1, "1.00", "1.00"), start(1, "9.00", "resumed")], "another balance"),
        ([start(1, "1.00", "resumed")], "never was"),
        ([start(), start(1, "1.00", "resumed"), Live()], "live before all"),
    ],
)
def test_a_witness_objects(events: list[Any], words: str) -> None:
    problems = witness_of(*events).problems
    assert any(words in problem for problem in problems), problems


# -- the verdict -------------------------------------------------------------------------------------------------------


def books() -> tuple[dict[int, Account], dict[str, Sent], dict[str, int]]:
    """Two accounts, funded with 10.00 each, and one transfer of 2.50 from the first to the second."""
    accounts = {
        7: Account(2, 750, [Change(1, "f7", 1000, 1000), Change(2, "t", -250, 750)]),
        8: Account(2, 1250, [Change(1, "f8", 1000, 1000), Change(2, "t", 250, 1250)]),
    }
    return accounts, {"t": Sent(7, 8, 250, {7: 2, 8: 2})}, {"f7": 1000, "f8": 1000}


def test_books_that_are_right_have_no_problems() -> None:
    assert ledger_problems(*books()) == []


def test_a_transfer_that_was_acknowledged_and_is_not_there_is_found() -> None:
    accounts, sent, funded = books()
    sent["lost"] = Sent(7, 8, 1, {7: 3, 8: 3})
    assert [text for text in ledger_problems(accounts, sent, funded) if "lost" in text and "acknowledged" in text]


def test_a_transfer_without_an_answer_is_found() -> None:
    accounts, sent, funded = books()
    sent["t"].versions = None
    assert ledger_problems(accounts, sent, funded) == ["t was never answered"]


def test_a_transfer_that_was_acknowledged_with_another_version_is_found() -> None:
    accounts, sent, funded = books()
    sent["t"].versions = {7: 2, 8: 1}
    assert ledger_problems(accounts, sent, funded) == ["t is in the list of account 8, and not as it was acknowledged"]


def test_a_transaction_nobody_sent_is_found() -> None:
    accounts, _, funded = books()
    assert ledger_problems(accounts, {}, funded) == ["t is in the ledger and was never sent"]


def test_a_transaction_posted_twice_is_found() -> None:
    accounts, sent, funded = books()
    accounts[7] = Account(3, 500, [*accounts[7].changes, Change(3, "t", -250, 500)])
    problems = ledger_problems(accounts, sent, funded)
    assert "t is in the list of account 7 2 times" in problems
    assert any("put in" in problem for problem in problems)


@pytest.mark.parametrize(
    "wrong",
    [
        Account(3, 750, [Change(1, "f7", 1000, 1000), Change(3, "t", -250, 750)]),
        Account(2, 750, [Change(1, "f7", 1000, 1000), Change(2, "t", -250, 751)]),
        Account(2, 751, [Change(1, "f7", 1000, 1000), Change(2, "t", -250, 750)]),
    ],
)
def test_a_list_that_does_not_make_the_balance_is_found(wrong: Account) -> None:
    accounts, sent, funded = books()
    assert any("account 7" in problem for problem in ledger_problems({**accounts, 7: wrong}, sent, funded))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Standing(1, 750, 5), "at version 1"),
        (Standing(2, 749, 5), "balance 749"),
        (Standing(2, 750, 6), "another history"),
    ],
)
def test_a_subscriber_that_was_told_something_else_is_found(seen: Standing, words: str) -> None:
    (problem,) = feed_problems("subscriber 3", {7: seen}, [7], {7: Standing(2, 750, 5)})
    assert words in problem


def test_a_subscriber_that_was_not_told_of_an_account_is_found() -> None:
    assert feed_problems("subscriber 3", {}, [7], {7: Standing()}) != []


def test_changes_of_an_account_are_read_from_a_list_in_the_order_of_versions() -> None:
    def item(name: str, *entries: tuple[int, int, str, str]) -> dict[str, Any]:
        shown = [
            {"account_id": account, "version": version, "balance_change": change, "balance": balance}
            for account, version, change, balance in entries
        ]
        return {"transaction_id": name, "entries": shown}

    items = [item("b", (7, 2, "-1.00", "1.00"), (8, 9, "1.00", "5.00")), item("a", (7, 1, "2.00", "2.00"))]
    assert changes_of(7, items) == [Change(1, "a", 200, 200), Change(2, "b", -100, 100)]


# -- the run -----------------------------------------------------------------------------------------------------------


def test_everybody_follows_different_accounts_and_each_account_is_followed_equally_often() -> None:
    made = followers(PLAN, range(1, 11))
    assert all(len(set(follower.accounts)) == PLAN.follow for follower in made)
    times = Counter(account for follower in made for account in follower.accounts)
    assert sum(times.values()) == PLAN.subscribers * PLAN.follow
    assert max(times.values()) - min(times.values()) <= 2
    assert followers(PLAN, range(1, 11)) == made


def test_only_events_through_another_daemon_are_timed() -> None:
    replies = {"a": Reply(0, 10.0, "hints"), "b": Reply(1, 20.0, "hints")}
    samples = [Sample("a", 1, 10.05), Sample("a", 0, 10.9), Sample("b", 0, 20.01), Sample("unknown", 0, 1.0)]
    found = latencies(samples, replies)
    assert found.keys() == {"hints"}
    assert found["hints"].events == 2
    assert found["hints"].max_s == pytest.approx(0.05)


def test_the_rate_of_sampling_follows_the_size_of_the_run() -> None:
    assert PLAN.sample_stride == 1
    large = msgspec.structs.replace(PLAN, subscribers=1_000, accounts=50, follow=10, minutes=30, rate=50)
    deliveries = 2 * large.transfers_expected * 200
    assert deliveries / large.sample_stride == pytest.approx(200_000, rel=0.1)


async def test_messages_between_the_processes_survive_being_cut_anywhere() -> None:
    reports = [Told(3, {7: Standing(1, 2, 3)}, ["a problem"])]
    messages = [Disturb(on=True), Finish({7: 2}, 1.5), Report(Counts(events=1), reports, [Sample("t", 0, 1.25)])]
    data = b"".join(line_of(message) for message in messages)
    for size in (1, 7, len(data)):
        ours, theirs = trio.testing.memory_stream_pair()
        reader = LineReader(ours)
        for at in range(0, len(data), size):
            await theirs.send_all(data[at : at + size])
        await theirs.aclose()
        lines = [await reader.next() for _ in messages]
        assert [line is not None and line + b"\n" for line in lines] == [line_of(message) for message in messages]
        assert await reader.next() is None
    assert msgspec.json.decode(line_of(messages[1]), type=ToSwarm) == messages[1]
    assert msgspec.json.decode(line_of(messages[2]), type=Report) == messages[2]


# -- what daemons and kernels say --------------------------------------------------------------------------------------


def test_errors_in_a_log_are_shown_and_warnings_are_not() -> None:
    warning, error = '{"level": "warning", "event": "x"}', '{"level": "error", "event": "y"}'
    assert error_lines([warning, error, "", "Traceback (most recent call last):"]) == [
        error,
        "Traceback (most recent call last):",
    ]
    assert error_lines([error] * 9)[-1] == "and 4 more"


def test_the_limit_of_open_files_is_the_soft_one() -> None:
    text = "Limit    Soft Limit  Hard Limit  Units\nMax open files   1024   20000   files\n"
    assert parse_open_files_max(text) == 1024
    assert parse_open_files_max(text.replace("1024", "unlimited")) > 10**9
    with pytest.raises(ValueError, match="open files"):
        parse_open_files_max("Max processes 1 1 processes\n")


def test_what_follows_a_handshake_is_kept_and_a_refusal_has_its_status() -> None:
    assert after_handshake(b"HTTP/1.1 101 Switching") is None
    assert after_handshake(b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\nrest") == b"rest"
    with pytest.raises(ConnectionFailed) as refused:
        after_handshake(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
    assert refused.value.code == 401
    with pytest.raises(ConnectionFailed):
        after_handshake(b"x" * 20_000)


def test_a_close_frame_is_told_with_its_code() -> None:
    assert closed((4503).to_bytes(2, "big") + b"slow").code == 4503
    assert closed(b"").code == 1005
