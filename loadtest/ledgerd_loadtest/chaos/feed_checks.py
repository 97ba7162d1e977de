"""Whether subscribers and readers of pages were shown everything, once, and nothing else. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ledgerd_loadtest.chaos.history import History, LedgerAccount, Operation, Told
from ledgerd_loadtest.chaos.sendings import Books
from ledgerd_loadtest.chaos.time_checks import Span

PAGING = "paging"
"""The workload that reads reports page by page; the line of its operations says which report they are of."""


def feeds_are_complete(told: list[Told], accounts: Mapping[int, LedgerAccount], books: Books) -> Iterator[str]:
    """A subscriber was told each version of each account once, in order, as the ledger has it."""
    for each in told:
        name = f"{each.subscriber}, account {each.account_id}"
        yield from (f"{name}: {problem}" for problem in each.problems)
        versions = [version for version, _, _ in each.changes]
        if versions != list(range(1, len(versions) + 1)):
            yield f"{name} was not told each version once and in order"
            continue
        if len(versions) != accounts[each.account_id].version:
            yield f"{name} was told of {len(versions)} versions of {accounts[each.account_id].version}"
        for version, transaction_id, balance in each.changes:
            posting = books.at(each.account_id, version)
            side = None if posting is None else posting.side(each.account_id)
            if posting is None or side is None or (posting.transaction_id, side.balance) != (transaction_id, balance):
                yield f"{name} was told that version {version} is {transaction_id}, which the ledger has otherwise"


def pages_are_stable(history: History, books: Books, spans: Mapping[str, Span]) -> Iterator[str]:
    """All pages of a report show what had been committed when the first was read, once each."""
    reports: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        if operation.workload == PAGING and operation.method == "transaction_report" and operation.outcome == "ok":
            reports[operation.line].append(operation)
    for name, pages in reports.items():
        yield from _report_problems(name, pages, books, spans)


def _report_problems(name: str, pages: list[Operation], books: Books, spans: Mapping[str, Span]) -> Iterator[str]:
    first, last = pages[0], pages[-1]
    if "cursor" in first.params or first.answered_s is None:
        return  # the first page was not had
    shown = Counter(each for page in pages for each in page.result["ids"])
    yield from (f"{name} shows {each} {count} times" for each, count in shown.items() if count > 1)
    for each in shown:
        if each not in books.postings:
            yield f"{name} shows {each}, which is not there"
        elif (spans[each].invoked_s or 0.0) > first.answered_s:
            yield f"{name} shows {each}, which was asked for when its first page had been read"
    if last.result["next_cursor"] is None:
        for posting in books.by_account[first.params["account_id"]]:
            at = spans[posting.transaction_id].acknowledged_s
            if at is not None and at < first.invoked_s and posting.transaction_id not in shown:
                yield f"{name} leaves out {posting.transaction_id}, which had been acknowledged before"
