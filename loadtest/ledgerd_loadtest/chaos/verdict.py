"""All checks over one history. Pure.

A check that finds more than a few things says how many more: the first ones are what a person looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ledgerd_loadtest.chaos import feed_checks, ledger_checks, time_checks
from ledgerd_loadtest.chaos.history import History, Signs
from ledgerd_loadtest.chaos.sendings import books_of, sendings
from ledgerd_loadtest.witness import limited


def verdict(history: History) -> dict[str, list[str]]:
    """What each check found, by its name; empty where all is well."""
    sent = list(sendings(history))
    books = books_of(history.accounts, history.transactions)
    spans = time_checks.spans_of(sent, books)
    reads = time_checks.reads_of(history)
    seen = time_checks.sightings_of(books, spans, reads, history.told)
    found: dict[str, Iterable[str]] = {
        "accounts add up": ledger_checks.accounts_add_up(history.accounts, books),
        "transactions balance": ledger_checks.transactions_balance(books, history.transactions),
        "holds end once": ledger_checks.holds_end_once(books),
        "advances are paid": ledger_checks.advances_are_paid(history.advances, books),
        "acknowledged is there": ledger_checks.acknowledged_is_there(sent, books),
        "refused is not there": ledger_checks.refused_is_not_there(sent, books),
        "refusals are true": ledger_checks.refusals_are_true(sent, books),
        "done once": ledger_checks.done_once(sent),
        "unknown is resolved": ledger_checks.unknown_is_resolved(sent),
        "versions follow time": time_checks.versions_follow_time(books, spans),
        "one order": time_checks.one_order(books),
        "arrival order": time_checks.arrival_order(sent),
        "reads are true": time_checks.reads_are_true(reads, books, spans, seen),
        "totals are kept": time_checks.totals_are_kept(history),
        "feeds are complete": feed_checks.feeds_are_complete(history.told, history.accounts, books),
        "pages are stable": feed_checks.pages_are_stable(history, books, spans),
        "processes are well": processes_are_well(history.signs),
    }
    return {name: limited(list(problems)) for name, problems in found.items()}


def problems_of(history: History) -> list[str]:
    """All of them, each with the name of its check."""
    return [f"{name}: {problem}" for name, problems in verdict(history).items() for problem in problems]


def processes_are_well(signs: Signs) -> Iterator[str]:
    """No deadlock, no fence hit, no error in a log, nobody ended by itself, and the database's own audit is clean."""
    if signs.deadlocks:
        yield f"{signs.deadlocks} deadlocks or serialization failures"
    if signs.fence_hits:
        yield f"{signs.fence_hits} hits of the fence: a version moved without its lock"
    yield from signs.ended_by_themselves
    yield from (f"logged as an error: {line}" for line in signs.errors_logged)
    yield from (f"ledgerd verify: {line}" for line in signs.verify)
