"""Reports: what a page shows, where the next one begins, and that nothing appears that was committed later."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerd.engine.states import FailedCommand, ReportItem, ReportPlace, ReportScope, ReportStretch
from ledgerd.storage import reports
from ledgerd.storage.commit_order import Snapshot
from ledgerd.storage.queries import QUERIES
from tests.model import Command, Unit
from tests.storage.bench import Bench, arguments, fresh_id

LONG_AGO = "2020-01-01T00:00:00.000000Z"
EVERYTHING = ReportScope(accounts=None, all_attempts=True, token_id=1, user_id=None, attempts_of=None)


def of_account(account: int) -> ReportScope:
    """What an operator sees of an account."""
    return ReportScope(accounts=(account,), all_attempts=True, token_id=1, user_id=None, attempts_of=account)


def own(bench: Bench, *accounts: int, token: int = 0, attempts_of: int | None = None) -> ReportScope:
    """What the owner of the accounts sees."""
    user = bench.value("SELECT user_id FROM ledgerd.accounts WHERE account_id = $1", accounts[0])
    return ReportScope(accounts=accounts, all_attempts=False, token_id=token, user_id=user, attempts_of=attempts_of)


def id_of(item: ReportItem) -> str:
    return item.attempt_id if isinstance(item, FailedCommand) else item.transaction_id


async def page(
    connection: asyncpg.Connection,
    scope: ReportScope,
    *,
    created_from: str = LONG_AGO,
    created_before: str | None = None,
    after: ReportPlace | None = None,
    snapshot: bytes | None = None,
    status: str | None = None,
    limit: int = 100,
    count: bool = False,
) -> ReportStretch:
    return await reports.read(
        connection,
        scope,
        created_from=created_from,
        created_before=created_before,
        after=after,
        snapshot=snapshot,
        status=status,
        limit=limit,
        count=count,
    )


def place_after(found: ReportStretch, limit: int) -> ReportPlace | None:
    """Where a page of ``limit`` items ended that was asked for one more."""
    if len(found.items) <= limit:
        return None if found.edge is None else ReportPlace(found.edge, None)
    last = found.items[limit - 1]
    return ReportPlace(last.created_at, id_of(last), isinstance(last, FailedCommand))


async def pages(
    connection: asyncpg.Connection, scope: ReportScope, *, limit: int = 100, **filters: Any
) -> list[list[ReportItem]]:
    """All pages of a report."""
    after, snapshot, made = None, None, []
    while True:
        found = await page(connection, scope, after=after, snapshot=snapshot, limit=limit + 1, **filters)
        made.append(found.items[:limit])
        snapshot = snapshot or found.snapshot
        after = place_after(found, limit)
        if after is None:
            return made


def shown(bench: Bench, scope: ReportScope, **filters: Any) -> list[str]:
    """The ids of all items of a report, in the order of its pages."""
    found = bench.run(pages(bench.daemon, scope, **filters))
    return [id_of(item) for items in found for item in items]


def in_order(items: list[ReportItem]) -> bool:
    keys = [(item.created_at, id_of(item), isinstance(item, FailedCommand)) for item in items]
    return keys == sorted(keys, reverse=True) and len(set(keys)) == len(keys)


def lively(bench: Bench, accounts: list[int], calls: int, seed: int = 1) -> list[str]:
    """Calls of several commands each, some of which are refused; the ids of what was stored."""
    choose = random.Random(seed)
    ids: list[str] = []
    for _ in range(calls):
        commands = []
        for _ in range(choose.randint(1, 6)):
            account = choose.choice(accounts)
            match choose.randrange(5):
                case 0:
                    commands.append(bench.credit(account, choose.randint(1, 100)))
                case 1:
                    commands.append(bench.debit(account, choose.choice((1, 10**9))))
                case 2:
                    commands.append(bench.transfer(account, choose.choice(accounts), choose.choice((1, 10**9))))
                case 3:
                    commands.append(bench.command("hold", debit=account, amount=1, expires_in_s=60))
                case _:
                    commands.append(bench.cancel(account, fresh_id()))
        answers = bench.post_all(*commands)
        pairs = zip(commands, answers, strict=True)
        ids += [command.transaction_id if answer.posted else command.attempt_id for command, answer in pairs]
    return ids


# -- snapshots -------------------------------------------------------------------------------------------------------


@given(st.integers(3, 2**62), st.lists(st.integers(1, 2**40), max_size=300), st.integers(0, 1000))
def test_a_snapshot_survives_being_written_small(lowest: int, steps: list[int], rest: int) -> None:
    unfinished = [lowest]
    for step in steps:
        unfinished.append(unfinished[-1] + step)
    for written in (
        Snapshot(lowest, unfinished[-1] + 1 + rest, tuple(unfinished)),
        Snapshot(lowest, lowest, ()),
    ):
        assert reports.unpacked(reports.packed(written)) == written


def test_a_hundred_open_transactions_take_five_hundred_bytes_at_most() -> None:
    billions_apart = [2**40 + number * 2**34 for number in range(100)]
    snapshot = Snapshot(billions_apart[0], billions_apart[-1] + 1, tuple(billions_apart))
    assert len(reports.packed(snapshot)) <= 520
    usual = [2**34 + number * 90 for number in range(100)]
    assert len(reports.packed(Snapshot(usual[0], usual[-1] + 1, tuple(usual)))) <= 120


# -- versions by time ------------------------------------------------------------------------------------------------


def test_the_version_at_a_time_is_that_of_a_look_at_every_version(bench: Bench) -> None:
    accounts = [bench.account(balance=50) for _ in range(3)]
    lively(bench, accounts, 40)
    for account in accounts:
        stored = bench.fetch(
            "SELECT created_at, CASE WHEN debit_account = $1 THEN debit_version ELSE credit_version END AS version "
            "FROM ledgerd.transactions WHERE (debit_account = $1 AND debit_version IS NOT NULL) "
            "OR (credit_account = $1 AND credit_version IS NOT NULL)",
            account,
        )
        times = {row["created_at"] for row in stored}
        for time in times | {time - timedelta(microseconds=1) for time in times}:
            expected = max((row["version"] for row in stored if row["created_at"] <= time), default=0)
            assert bench.run(bench.daemon.fetchval(QUERIES["version_at"], account, time)) == expected
        head = bench.value("SELECT version FROM ledgerd.accounts WHERE account_id = $1", account)
        for sql, version in (("'infinity'", head), ("'-infinity'", 0), ("NULL", None)):
            assert bench.value(f"SELECT ledgerd.version_at($1, {sql})", account) == version


def test_an_account_without_transactions_or_that_does_not_exist_is_at_version_zero(bench: Bench) -> None:
    now = datetime.now(UTC)
    for account in (bench.account(), 10**6, -1):
        assert bench.run(bench.daemon.fetchval(QUERIES["version_at"], account, now)) == 0


def test_a_clock_that_goes_back_does_not_disturb_the_versions_at_a_time(bench: Bench) -> None:
    account = bench.account(balance=5)
    bench.move_clock(3600)
    bench.post(bench.credit(account, 1))
    bench.move_clock(-7200)
    bench.post_all(*(bench.credit(account, 1) for _ in range(5)))
    ids = shown(bench, of_account(account), limit=2)
    assert len(ids) == len(set(ids)) == 7


# -- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_pages_put_together_are_everything_newest_first_whoever_asks(bench: Bench, limit: int) -> None:
    accounts = [bench.account() for _ in range(4)]
    ids = lively(bench, accounts, 25)
    everything = bench.run(pages(bench.daemon, EVERYTHING, limit=limit))
    items = [item for found in everything for item in found]
    assert sorted(map(id_of, items)) == sorted(ids)
    assert in_order(items)
    assert all(len(found) == limit for found in everything[:-1])
    for account in accounts:
        of_one = bench.run(pages(bench.daemon, of_account(account), limit=limit))
        expected = [
            id_of(item)
            for item in items
            if account == (item.debit_account or item.credit_account)
            or (not isinstance(item, FailedCommand) and account in [side.account_id for side in item.sides])
        ]
        assert [id_of(item) for found in of_one for item in found] == expected


def test_a_failed_command_is_shown_as_it_was_sent_with_its_error(bench: Bench) -> None:
    account, other = bench.account(balance=10), bench.account()
    command = bench.transfer(account, other, 500, reference="order 7", reason="a lamp")
    assert bench.post(command).code == 3001
    (item,) = bench.run(page(bench.daemon, EVERYTHING, status="failed")).items
    assert isinstance(item, FailedCommand)
    assert (item.attempt_id, item.transaction_id) == (command.attempt_id, command.transaction_id)
    assert (item.kind, item.code.text, item.amount, item.currency, item.scale) == (
        "transfer", "insufficient_funds", 500, "USD", 2,
    )  # fmt: skip
    assert (item.debit_account, item.credit_account) == (account, other)
    assert (item.reference, item.reason, item.actor.scopes) == ("order 7", "a lamp", ("service",))


def test_an_error_of_a_newer_daemon_does_not_break_a_report(bench: Bench) -> None:
    account = bench.account()
    bench.post(bench.debit(account, 5))
    bench.execute("UPDATE ledgerd.attempts SET code = 3999, currency = 'XYZ'")
    (item,) = bench.run(page(bench.daemon, EVERYTHING)).items
    assert isinstance(item, FailedCommand)
    assert (item.code.text, item.scale) == ("unknown_error", None)


def test_attempts_of_a_user_are_those_of_its_own_tokens_and_of_no_others(bench: Bench) -> None:
    account, other = bench.account(), bench.account()
    token, second = bench.token_of(account), bench.token_of(account)
    ended = bench.token_of(account)
    mine = [bench.debit(account, 5, token_id=each) for each in (token, second, ended)]
    bench.post_all(*mine, bench.debit(account, 5), bench.debit(other, 5, token_id=bench.token_of(other)))
    strange = bench.debit(other, 5, token_id=token)
    assert bench.post(strange).code == 2001
    bench.end(ended)
    ids = [command.attempt_id for command in mine]
    assert sorted(shown(bench, own(bench, account))) == sorted([*ids, strange.attempt_id])
    assert sorted(shown(bench, own(bench, account, attempts_of=account))) == sorted(ids)
    assert len(shown(bench, of_account(account))) == 4
    # A token of nobody sees its own.
    nobody = ReportScope(accounts=(), all_attempts=False, token_id=bench.service, user_id=None, attempts_of=None)
    assert len(shown(bench, nobody)) == 1


def test_a_tombstone_is_in_the_report_of_its_account(bench: Bench) -> None:
    account, other = bench.account(balance=5), bench.account(balance=5)
    cancelled = fresh_id()
    bench.post(bench.cancel(account, cancelled))
    for scope in (EVERYTHING, of_account(account), own(bench, account)):
        assert cancelled in shown(bench, scope)
        assert shown(bench, scope, status="cancelled") == [cancelled]
    assert shown(bench, of_account(other), status="cancelled") == []


def test_the_interval_has_its_beginning_and_lacks_its_end(bench: Bench) -> None:
    account = bench.account()
    commands = [bench.credit(account, 1) for _ in range(4)]
    refused = bench.debit(account, 10**6)
    for command in (*commands[:2], refused, *commands[2:]):
        bench.post(command)
    times = {id_of(item): item.created_at for item in bench.run(page(bench.daemon, EVERYTHING)).items}
    for scope in (EVERYTHING, of_account(account), own(bench, account, token=bench.service)):
        bounds: dict[str, Any] = {
            "created_from": times[commands[1].transaction_id],
            "created_before": times[commands[3].transaction_id],
        }
        expected = [commands[2].transaction_id, refused.attempt_id, commands[1].transaction_id]
        assert shown(bench, scope, **bounds) == expected
        assert bench.run(page(bench.daemon, scope, **bounds, count=True)).total == 3
        empty: dict[str, Any] = {"created_from": times[refused.attempt_id], "created_before": times[refused.attempt_id]}
        assert shown(bench, scope, **empty) == []


STATUSES = ["posted", "pending", "captured", "released", "expired", "failed", "cancelled"]


def holds_in_every_state(bench: Bench, account: int) -> dict[str, str]:
    """Holds by the status they have now."""
    holds = {status: bench.command("hold", debit=account, amount=1, expires_in_s=60) for status in STATUSES[1:5]}
    bench.post_all(*holds.values())
    for kind, status in (("capture", "captured"), ("release", "released")):
        assert bench.post(bench.command(kind, debit=account, refers_to=holds[status].transaction_id)).posted
    bench.move_clock(61)
    assert bench.post(bench.command("expiry", debit=account, refers_to=holds["expired"].transaction_id)).posted
    return {status: command.transaction_id for status, command in holds.items()}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_that_of_now_and_every_item_of_it_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    account, other = bench.account(balance=50), bench.account(balance=50)
    by_status = holds_in_every_state(bench, account)
    lively(bench, [account, other], 10)
    everything = [item for found in bench.run(pages(bench.daemon, EVERYTHING)) for item in found]
    # A page looks no further than this, however few there are of the status.
    monkeypatch.setattr(reports, "LOOK_FILTERED", 3)
    monkeypatch.setattr(reports, "LOOK_BEYOND", 1)
    for scope in (EVERYTHING, of_account(account)):
        of_scope = shown(bench, scope)
        expected = [
            id_of(item)
            for item in everything
            if (isinstance(item, FailedCommand) if status == "failed" else getattr(item, "status", "") == status)
            and id_of(item) in of_scope
        ]
        assert expected
        assert by_status.get(status, expected[0]) in expected
        for limit in (1, 2, 100):
            assert shown(bench, scope, status=status, limit=limit) == expected
        assert bench.run(page(bench.daemon, scope, status=status, count=True)).total == len(expected)


@pytest.mark.parametrize("look", [1, 1_001])
def test_a_whole_call_with_one_time_is_cut_nowhere(bench: Bench, monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    account, other = bench.account(balance=10**6), bench.account()
    commands = [bench.transfer(account, other, 1) for _ in range(60)] + [bench.debit(other, 10**9) for _ in range(20)]
    random.Random(2).shuffle(commands)
    bench.post_all(*commands)
    bench.post(bench.credit(account, 1))
    monkeypatch.setattr(reports, "LOOK_BEYOND", look)
    for scope, number in ((EVERYTHING, 82), (of_account(account), 62), (of_account(other), 80)):
        for limit in (1, 7, 59, 60, 61):
            items = [item for found in bench.run(pages(bench.daemon, scope, limit=limit)) for item in found]
            assert len(items) == number
            assert in_order(items)


def test_a_transfer_between_two_accounts_of_one_report_is_there_once(bench: Bench) -> None:
    user = bench.user()
    one, two = bench.account(user, "USD", balance=5), bench.account(user, "EUR", balance=7)
    # One user has one account per currency, so this is a report of two users.
    other = bench.account()
    moved = bench.transfer(one, other, 5)
    bench.post(moved)
    assert shown(bench, own(bench, one, two, other)).count(moved.transaction_id) == 1
    assert len(shown(bench, own(bench, one, two))) == 3


@pytest.mark.parametrize("status", [None, *STATUSES])
def test_the_total_is_the_number_of_items_on_all_pages(bench: Bench, status: str | None) -> None:
    accounts = [bench.account() for _ in range(3)]
    lively(bench, accounts, 20)
    scopes = [
        EVERYTHING,
        of_account(accounts[0]),
        own(bench, accounts[1]),
        own(bench, *accounts[:2], token=bench.service),
    ]
    for scope in scopes[:3]:
        first = bench.run(page(bench.daemon, scope, status=status, limit=4, count=True))
        assert first.total == len(shown(bench, scope, status=status))
        assert bench.run(page(bench.daemon, scope, status=status)).total is None


# -- nothing that was committed later --------------------------------------------------------------------------------


async def slow(bench: Bench, *commands: Command) -> tuple[asyncpg.Connection, Any]:
    """A transaction that has posted the commands and not committed yet."""
    connection = await asyncpg.connect(bench.database.daemon_dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetchrow(QUERIES["post"], *arguments([Unit((command,)) for command in commands]))
    return connection, transaction


@pytest.mark.parametrize("whose", ["everything", "the account's", "the owner's"])
def test_a_slow_transaction_that_began_before_the_first_page_never_appears_in_that_report(
    bench: Bench, whose: str
) -> None:
    user = bench.user()
    account, other = bench.account(user, balance=10), bench.account(user, "EUR", balance=10)
    token = bench.token("user", user=user)
    late, failed = bench.credit(account, 5), bench.debit(account, 10**9, token_id=token)
    scope = {
        "everything": EVERYTHING,
        "the account's": of_account(account),
        "the owner's": own(bench, account, other, token=token),
    }[whose]
    for _ in range(3):
        bench.post_all(bench.debit(account, 1, token_id=token), bench.debit(account, 10**9, token_id=token))

    async def scenario() -> None:
        connection, transaction = await slow(bench, late, failed)
        # Begun later, and committed before the first page.
        await bench.daemon.fetchrow(QUERIES["post"], *arguments([Unit((bench.credit(other, 1),))]))
        first = await page(bench.daemon, scope, limit=2, count=True)
        await transaction.commit()
        seen, after = [id_of(item) for item in first.items[:1]], place_after(first, 1)
        while after is not None:
            found = await page(bench.daemon, scope, limit=2, after=after, snapshot=first.snapshot)
            seen += [id_of(item) for item in found.items[:1]]
            after = place_after(found, 1)
        assert not {late.transaction_id, failed.attempt_id} & set(seen)
        assert len(seen) == len(set(seen)) == first.total
        anew = [id_of(item) for found in await pages(bench.daemon, scope) for item in found]
        assert {late.transaction_id, failed.attempt_id} <= set(anew)
        await connection.close()

    bench.run(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_pages_are_what_the_first_could_see_while_others_write_fast_and_slowly(bench: Bench, seed: int) -> None:
    choose = random.Random(seed)
    accounts = [bench.account(balance=1000) for _ in range(4)]
    lively(bench, accounts, 15, seed)

    async def write(over: asyncio.Event) -> None:
        connection = await asyncpg.connect(bench.database.daemon_dsn)
        while not over.is_set():
            account = choose.choice(accounts)
            commands = [bench.credit(account, 1), bench.debit(account, choose.choice((1, 10**9)))]
            async with connection.transaction():
                await connection.fetchrow(QUERIES["post"], *arguments([Unit((each,)) for each in commands]))
                for _ in range(choose.choice((0, 0, 20))):
                    await connection.fetchval("SELECT 1")
        await connection.close()

    async def read(scope: ReportScope, limit: int) -> None:
        first = await page(bench.daemon, scope, limit=limit + 1, count=True)
        items, after = first.items[:limit], place_after(first, limit)
        while after is not None:
            found = await page(bench.daemon, scope, limit=limit + 1, after=after, snapshot=first.snapshot)
            items += found.items[:limit]
            after = place_after(found, limit)
        snapshot = reports.unpacked(first.snapshot).text
        visible = await bench.owner.fetch(
            "SELECT transaction_id AS id FROM ledgerd.transactions "
            "WHERE pg_visible_in_snapshot(xact, $1::text::pg_snapshot) "
            "AND ($2::bigint IS NULL OR debit_account = $2 OR credit_account = $2) "
            "UNION ALL SELECT attempt_id FROM ledgerd.attempts "
            "WHERE pg_visible_in_snapshot(xact, $1::text::pg_snapshot) "
            "AND ($2::bigint IS NULL OR coalesce(debit_account, credit_account) = $2)",
            snapshot,
            None if scope.accounts is None else scope.accounts[0],
        )
        assert sorted(map(id_of, items)) == sorted(str(row["id"]) for row in visible)
        assert first.total == len(items)
        assert in_order(items)

    async def scenario() -> None:
        over = asyncio.Event()
        writers = [asyncio.create_task(write(over)) for _ in range(3)]
        try:
            for scope in (EVERYTHING, of_account(accounts[0]), EVERYTHING, of_account(accounts[1])):
                await read(scope, choose.choice((3, 10, 40)))
        finally:
            over.set()
            await asyncio.gather(*writers)

    bench.run(scenario())


def test_rows_from_before_a_dump_and_restore_are_on_every_page(bench: Bench) -> None:
    account = bench.account()
    for _ in range(6):
        bench.post_all(bench.credit(account, 1), bench.debit(account, 10**9))
    # Ids of the old server, where many more had been given.
    bench.execute("UPDATE ledgerd.transactions SET xact = (xact::text::bigint + 1000000000)::text::xid8")
    bench.execute("UPDATE ledgerd.attempts SET xact = (xact::text::bigint + 1000000000)::text::xid8")
    # As the first daemon finds it; tests of the identity restore a real dump.
    bench.execute("UPDATE ledgerd.settings SET ids_from = pg_snapshot_xmax(pg_current_snapshot())")
    assert len(shown(bench, EVERYTHING, limit=2)) == 12
    assert len(shown(bench, of_account(account), limit=2)) == 12


# -- how it is read --------------------------------------------------------------------------------------------------


def _nodes(plan: Any) -> list[Any]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_no_page_reads_a_whole_table(bench: Bench, mode: str) -> None:
    account = bench.account()
    bench.execute(
        "INSERT INTO ledgerd.transactions (debit_account, credit_account, amount, credit_version, credit_balance, "
        "credit_held, credit_available, token_id, created_at, transaction_id, kind, status) "
        "SELECT -1, $1, 1, i, i, 0, i, 1, now() - (30000 - i) * interval '1 s', gen_random_uuid(), 'credit', 'posted' "
        "FROM generate_series(1, 30000) AS i",
        account,
    )
    bench.execute("UPDATE ledgerd.accounts SET version = 30000 WHERE account_id = $1", account)
    bench.execute("ANALYZE")

    async def read_of_transactions(scope: ReportScope, status: str | None) -> int:
        await bench.daemon.execute(f"SET plan_cache_mode = {mode}")
        values = (None if scope.accounts is None else list(scope.accounts), True, 1, None, None)
        begins, upto = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) - timedelta(hours=2)
        place = (begins, upto, fresh_id(), True, "1:1:", status, 101, 1102)
        row = await bench.daemon.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {QUERIES['report']}", *values, *place)
        nodes = [node for node in _nodes(json.loads(row)[0]["Plan"]) if node.get("Relation Name") == "transactions"]
        assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Actual Loops"]]
        return sum(round(node["Actual Rows"] * node["Actual Loops"]) for node in nodes)

    for scope in (EVERYTHING, of_account(account)):
        for status in (None, "captured"):
            assert bench.run(read_of_transactions(scope, status)) < 3_000
