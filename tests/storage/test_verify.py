"""The audit finds nothing in a ledger that only the kernel has written, and every kind of damage made by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from msgspec import Struct

from ledgerd.storage import verify
from ledgerd.storage.embedded import DAEMON_ROLE, Cluster
from ledgerd.storage.queries import QUERIES
from ledgerd.storage.verify import CHECKS, SHOWN_MAX, Difference, LedgerUnfit, Report, audit
from tests.conftest import Database, _fresh
from tests.model import ABSENT, Command, Unit
from tests.storage.bench import Bench, answers, arguments, fresh_id

KINDS = [
    *("credit", "debit", "transfer", "transfer", "hold", "hold", "capture", "release", "expiry", "reversal"),
    *("bet", "win", "rollback", "limit", "freeze", "unfreeze", "cancel"),
]
DAY_S = 86_400
DAYS_OF_PLAY = 25


class Scene(Struct):
    """A ledger in which everything has happened once: ids to damage. All accounts but the last are in USD."""

    busy: int
    other: int
    frozen: int
    limited: int
    in_euros: int
    credit: str
    debit: str
    transfer: str
    limit: str
    pending: str
    captured: str
    capture: str
    released: str
    reversal: str
    bet: str
    won_bet: str
    win: str
    rollback: str
    tombstone: str
    batch: str
    running: str
    paid_back: str
    payment: str


# -- a history --------------------------------------------------------------------------------------------------------


def advance(bench: Bench, account: int, amount: int, installments: int) -> str:
    unit = Unit((bench.command("advance", credit=account, amount=amount),))
    given = [*arguments([unit])[:17], [installments], [7]]
    row = bench.run(bench.daemon.fetchrow(QUERIES["post"], *given))
    assert answers(row, [unit])[0][0].posted
    return unit.commands[0].transaction_id


def repayment(bench: Bench, advance_id: str, amount: int | None) -> Command:
    return bench.command("advance_payment", debit=ABSENT, refers_to=advance_id, amount=amount)


def play(bench: Bench) -> Scene:
    """Everything once, then much of it at random, over some weeks of the ledger's clock."""
    busy, other, frozen, limited = (bench.account(balance=10_000) for _ in range(4))
    owner = bench.value("SELECT user_id FROM ledgerd.accounts WHERE account_id = $1", busy)
    in_euros = bench.account(owner, "EUR", balance=500)
    do = bench.posted
    credit, debit = do(bench.credit(busy, 300)), do(bench.debit(busy, 20))
    transfer = do(bench.transfer(busy, other, 40))
    limit = do(bench.limit(limited, 70))
    do(bench.debit(limited, 10_050))
    do(bench.freeze(frozen))
    do(bench.credit(frozen, 5))
    captured, released = do(bench.hold(busy, 30, other)), do(bench.hold(busy, 15))
    pending = do(bench.hold(busy, 25, expires_in_s=400 * DAY_S))
    capture = do(bench.capture(captured, 20))
    do(bench.release(released))
    reversal = do(bench.reversal(transfer, 11))
    do(bench.reversal(capture, 5))
    bet, won_bet, lost_bet = (do(bench.bet(busy, amount)) for amount in (7, 8, 9))
    win = do(bench.win(busy, won_bet, 21))
    rollback = do(bench.rollback(busy, bet))
    do(bench.rollback(busy, bet))
    tombstone = do(bench.rollback(busy, bench.bet(busy, 3)))
    assert lost_bet
    batch = fresh_id()
    assert all(answer.posted for answer in bench.post_atomic(batch, *(bench.credit(other, n) for n in (1, 2, 3))))
    do(bench.cancel(busy, fresh_id()))
    running, paid_back = advance(bench, other, 1_000, 4), advance(bench, busy, 100, 3)
    part = do(repayment(bench, running, 33))
    do(repayment(bench, paid_back, None))
    # A payment that fails, because there is nothing to take it from.
    penniless = bench.account()
    advance(bench, penniless, 90, 2)
    do(bench.debit(penniless, 90))
    play_at_random(bench, random.Random(7), [busy, other])
    return Scene(
        busy=busy,
        other=other,
        frozen=frozen,
        limited=limited,
        in_euros=in_euros,
        batch=batch,
        running=running,
        paid_back=paid_back,
        credit=credit.transaction_id,
        debit=debit.transaction_id,
        transfer=transfer.transaction_id,
        limit=limit.transaction_id,
        pending=pending.transaction_id,
        captured=captured.transaction_id,
        capture=capture.transaction_id,
        released=released.transaction_id,
        reversal=reversal.transaction_id,
        bet=bet.transaction_id,
        won_bet=won_bet.transaction_id,
        win=win.transaction_id,
        rollback=rollback.transaction_id,
        tombstone=tombstone.transaction_id,
        payment=part.transaction_id,
    )


def play_at_random(bench: Bench, chance: random.Random, accounts: list[int]) -> None:
    """Commands that are mostly good; what is refused changes nothing, which is as good a history."""
    accounts = [*accounts, *(bench.account(balance=1_000) for _ in range(6))]
    sent: list[Command] = []

    def referred(*kinds: str) -> Command:
        fitting = [command for command in sent if command.kind in kinds]
        return chance.choice(fitting) if fitting else bench.credit(accounts[0], 1)

    def command() -> Command:
        account, amount = chance.choice(accounts), chance.randint(1, 200)
        kind = chance.choice(KINDS)
        match kind:
            case "transfer":
                return bench.transfer(*chance.sample(accounts, 2), amount)
            case "hold":
                return bench.hold(account, amount, expires_in_s=chance.choice([60, 3 * DAY_S]))
            case "capture":
                return bench.capture(referred("hold"), chance.choice([None, 10]))
            case "release" | "expiry":
                return bench.command(kind, debit=ABSENT, refers_to=referred("hold").transaction_id)
            case "reversal":
                return bench.reversal(referred("credit", "debit", "transfer", "capture"), chance.choice([None, 5]))
            case "win":
                bet = referred("bet")
                return bench.win(bet.acting, bet, amount)
            case "rollback":
                bet = referred("bet") if chance.random() < 0.7 else bench.bet(account, 1)
                return bench.rollback(bet.acting, bet)
            case "limit":
                return bench.limit(account, amount)
            case "freeze" | "unfreeze":
                return bench.command(kind, debit=account)
            case "cancel":
                return bench.cancel(account, fresh_id())
            case "bet":
                return bench.bet(account, amount)
            case "debit":
                return bench.debit(account, amount)
            case _:
                return bench.credit(account, amount)

    for _ in range(DAYS_OF_PLAY):
        bench.move_clock(DAY_S)
        units = []
        for _ in range(12):
            commands = [command() for _ in range(chance.choice([1, 1, 1, 3]))]
            units.append(Unit(tuple(commands), fresh_id() if len(commands) > 1 else None))
            sent += commands
        bench.call(units)
        bench.run(bench.daemon.fetch("SELECT * FROM ledgerd.collect_due(100)"))
    for row in bench.fetch("SELECT * FROM ledgerd.expired_holds(interval '0', 1000)"):
        bench.posted(bench.command("expiry", debit=ABSENT, refers_to=str(row["hold_id"])))


@pytest.fixture(scope="module")
def played(cluster: Cluster, template: str) -> Iterator[tuple[str, Scene]]:
    """The name of a database with a history, to copy; and what is in it."""
    made = _fresh(cluster, template)
    database = next(made)
    bench = Bench(database)
    scene = play(bench)
    bench.close()
    yield database.name, scene
    for _ in made:
        pass


@pytest.fixture
def database(cluster: Cluster, played: tuple[str, Scene]) -> Iterator[Database]:
    """A copy of that database."""
    yield from _fresh(cluster, played[0])


@pytest.fixture
def scene(played: tuple[str, Scene]) -> Scene:
    return played[1]


def verified(bench: Bench, *, as_owner: bool = False) -> Report:
    return bench.run(audit(bench.database.dsn if as_owner else bench.database.daemon_dsn))


def found(report: Report) -> dict[str, list[Difference]]:
    return {verdict.check.name: verdict.shown for verdict in report.verdicts if verdict.differences}


# -- a sound ledger ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_owner", [False, True])
def test_a_ledger_that_only_the_kernel_has_written_is_clean(bench: Bench, as_owner: bool) -> None:
    report = verified(bench, as_owner=as_owner)

    assert found(report) == {}
    assert report.broken == []
    assert [verdict.check for verdict in report.verdicts] == list(CHECKS)
    assert report.entries > 200
    assert report.advances == 3
    kinds = {row["kind"] for row in bench.fetch("SELECT DISTINCT kind::text FROM ledgerd.transactions")}
    assert len(kinds) >= 17, kinds


def test_an_empty_ledger_is_clean(cluster: Cluster, template: str) -> None:
    made = _fresh(cluster, template)
    report = asyncio.run(audit(next(made).daemon_dsn))
    for _ in made:
        pass
    assert found(report) == {}


def test_every_check_is_told_once_and_progress_ends_with_all(bench: Bench) -> None:
    told, shares = [], []
    bench.run(
        audit(bench.database.dsn, on_progress=shares.append, on_verdict=lambda verdict: told.append(verdict.check.name))
    )
    assert sorted(told) == sorted(check.name for check in CHECKS)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_slices_of_any_size_see_the_same(bench: Bench, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ENTRIES_PER_SLICE", 7)
    monkeypatch.setattr(verify, "PAGES_PER_SLICE", 1)
    monkeypatch.setattr(verify, "REFERENCES_PER_SLICE", 5)
    monkeypatch.setattr(verify, "ADVANCES_PER_SLICE", 1)
    assert found(verified(bench)) == {}

    bench.execute("UPDATE ledgerd.transactions SET credit_balance = credit_balance + 1 WHERE credit_version % 10 = 3")
    in_slices = verified(bench)
    monkeypatch.undo()
    whole = verified(bench)
    assert [verdict.differences for verdict in in_slices.verdicts] == [
        verdict.differences for verdict in whole.verdicts
    ]
    assert whole.broken


def test_it_is_clean_while_daemons_write_and_stops_none_of_them(bench: Bench, scene: Scene) -> None:
    async def write(connection: asyncpg.Connection, stop: asyncio.Event) -> int:
        kernel = await connection.prepare(QUERIES["post"])
        posted = 0
        while not stop.is_set():
            hold = bench.hold(scene.busy, 1)
            commands = [bench.transfer(scene.busy, scene.other, 1), bench.transfer(scene.other, scene.busy, 1), hold]
            units = [Unit((command,)) for command in [*commands, bench.release(hold)]]
            row = await kernel.fetchrow(*arguments(units))
            posted += sum(answer.posted for (answer,) in answers(row, units))
        return posted

    async def work() -> list[Report]:
        stop = asyncio.Event()
        # Whoever waited for the audit would fail.
        connection = await asyncpg.connect(bench.database.daemon_dsn, server_settings={"lock_timeout": "1000"})
        writer = asyncio.create_task(write(connection, stop))
        reports = [await audit(bench.database.daemon_dsn) for _ in range(5)]
        stop.set()
        assert await writer > 20
        await connection.close()
        return reports

    reports = bench.run(work())
    assert [found(report) for report in reports] == [{}] * 5
    assert reports[0].entries < reports[-1].entries


def test_it_waits_for_as_long_as_it_takes_whatever_the_roles_time_limits(bench: Bench) -> None:
    bench.execute(f"ALTER ROLE {DAEMON_ROLE} IN DATABASE {bench.database.name} SET statement_timeout = 1")
    assert found(verified(bench)) == {}


def test_a_database_without_a_ledger_and_one_that_lacks_migrations_are_refused(
    empty_database: Database, bench: Bench
) -> None:
    with pytest.raises(LedgerUnfit, match="has no ledger"):
        asyncio.run(audit(empty_database.dsn))
    bench.execute("DELETE FROM ledgerd.migrations WHERE number = (SELECT max(number) FROM ledgerd.migrations)")
    with pytest.raises(LedgerUnfit, match="lacks 1 migration"):
        verified(bench)


# -- damage -----------------------------------------------------------------------------------------------------------

FRESH = "00000000-0000-4000-8000-000000000001"


def set_(changes: str, transaction: str) -> str:
    return f"UPDATE ledgerd.transactions SET {changes} WHERE transaction_id = '{{{transaction}}}'"


def account(changes: str, which: str = "busy") -> str:
    return f"UPDATE ledgerd.accounts SET {changes} WHERE account_id = {{{which}}}"


def copied(transaction: str, side: str, changes: str = "") -> str:
    """Another transaction like one that is there, after all that happened on its account."""
    head = f"(SELECT a.version + 1 FROM ledgerd.accounts AS a WHERE a.account_id = t.{side}_account)"
    return (
        "INSERT INTO ledgerd.transactions SELECT (jsonb_populate_record(t, jsonb_build_object("
        f"'transaction_id', '{FRESH}', '{side}_version', {head}{changes}))).* FROM ledgerd.transactions AS t "
        f"WHERE t.transaction_id = '{{{transaction}}}'"
    )


def payment(changes: str, where: str) -> str:
    return f"UPDATE ledgerd.advance_payments SET {changes} WHERE advance_id = '{{running}}' AND {where}"


FAILED = "(SELECT p.advance_id FROM ledgerd.advance_payments AS p WHERE p.status = 'failed' LIMIT 1)"

DAMAGE = {
    # check, what is done, what is named
    "a balance": ("balances", account("balance = balance + 1"), "busy"),
    "a balance, and with it the sum": ("conservation", account("balance = balance + 1"), None),
    "the amount of a credit": ("conservation", set_("amount = amount + 1", "credit"), None),
    "the amount of a transfer": ("balances", set_("amount = amount + 1", "transfer"), "busy"),
    "a huge balance of an entry": ("running_balances", set_("debit_balance = 9223372036854775807", "debit"), "debit"),
    "held": ("balances", account("held = held + 1"), "busy"),
    "a currency's world": (
        "conservation",
        "UPDATE ledgerd.currencies SET world_account = -99 WHERE currency = 'USD'",
        None,
    ),
    "a transaction is gone": ("versions", "DELETE FROM ledgerd.transactions WHERE transaction_id = '{debit}'", "busy"),
    "a version twice, on either side": (
        "versions",
        (
            "UPDATE ledgerd.transactions SET credit_version = (SELECT debit_version FROM ledgerd.transactions "
            "WHERE transaction_id = '{debit}') WHERE transaction_id = '{credit}'"
        ),
        "busy",
    ),
    "the version of an account": ("versions", account("version = version + 1"), "busy"),
    "the balance of an entry": ("running_balances", set_("debit_balance = debit_balance + 1", "debit"), "debit"),
    "the held sum of an entry": ("running_balances", set_("credit_held = credit_held + 1", "win"), "win"),
    "the held change of an entry": ("running_balances", set_("held_change = held_change + 1", "pending"), "pending"),
    "what was available": ("running_balances", set_("credit_available = credit_available + 1", "win"), "win"),
    "an overdrawn entry": ("running_balances", set_("debit_available = -1", "debit"), "debit"),
    "the amount of a limit": ("running_balances", set_("amount = amount + 1", "limit"), "limit"),
    "a time": ("times", set_("created_at = created_at - interval '1 hour'", "debit"), "debit"),
    "the time of an account": ("times", account("updated_at = created_at"), "busy"),
    "a status": ("statuses", account("status = 'active'", "frozen"), "frozen"),
    "a status without a transaction": ("statuses", account("status = 'closed'"), "busy"),
    "an overdraft limit": ("statuses", account("overdraft_limit = overdraft_limit + 1", "limited"), "limited"),
    "a disabled owner": ("statuses", account("owner_disabled = true"), "busy"),
    "something after the end": (
        "statuses",
        "UPDATE ledgerd.transactions SET kind = 'close' WHERE debit_account = {frozen} AND kind = 'freeze'",
        "frozen",
    ),
    "an account that does not exist": ("sides", set_("debit_account = 987654321", "debit"), "debit"),
    "no world": ("sides", set_("credit_account = -77", "debit"), "debit"),
    "another currency": ("sides", set_("debit_account = {in_euros}, debit_version = 999", "debit"), "debit"),
    "the world of another currency": (
        "sides",
        (
            "UPDATE ledgerd.transactions SET debit_account = (SELECT world_account FROM ledgerd.currencies "
            "WHERE currency = 'EUR') WHERE transaction_id = '{credit}'"
        ),
        "credit",
    ),
    "a side without a version": ("sides", set_("credit_version = NULL", "transfer"), "transfer"),
    "a credit from an account": ("sides", set_("kind = 'credit'", "transfer"), "transfer"),
    "a freeze with an amount": (
        "sides",
        "UPDATE ledgerd.transactions SET amount = 1 WHERE kind = 'freeze' AND debit_account = {frozen}",
        "frozen",
    ),
    "a status of a transaction": ("sides", set_("status = 'pending'", "credit"), "credit"),
    "a reference from nowhere": ("sides", set_("refers_to = '{credit}'", "debit"), "debit"),
    "a pending hold is gone": ("holds", "DELETE FROM ledgerd.holds WHERE hold_id = '{pending}'", "pending"),
    "a hold's sum is gone": ("balances", "DELETE FROM ledgerd.holds WHERE hold_id = '{pending}'", "busy"),
    "an ended hold pends": (
        "holds",
        (
            "INSERT INTO ledgerd.holds SELECT transaction_id, debit_account, "
            "created_at + make_interval(secs => expires_in_s) FROM ledgerd.transactions "
            "WHERE transaction_id = '{captured}'"
        ),
        "captured",
    ),
    "nothing pends": ("holds", f"INSERT INTO ledgerd.holds VALUES ('{FRESH}', {{busy}}, now())", "busy"),
    "a pending hold on another account": (
        "holds",
        "UPDATE ledgerd.holds SET account_id = {other} WHERE hold_id = '{pending}'",
        "pending",
    ),
    "a pending hold with another time": (
        "holds",
        "UPDATE ledgerd.holds SET expires_at = expires_at + interval '1 s' WHERE hold_id = '{pending}'",
        "pending",
    ),
    "a hold ended twice": ("holds", copied("capture", "debit", ", 'credit_version', 9999"), "captured"),
    "a capture of more": ("holds", set_("amount = 31", "capture"), "capture"),
    "a capture of what is no hold": ("holds", set_("refers_to = '{credit}'", "capture"), "capture"),
    "a capture on another account": (
        "holds",
        set_("credit_account = {frozen}, credit_version = 9999", "capture"),
        "capture",
    ),
    "a capture that let less go": ("holds", set_("held_change = held_change + 1", "capture"), "capture"),
    "a capture that came late": ("holds", set_("created_at = created_at + interval '500 days'", "capture"), "capture"),
    "a debit that holds": ("holds", set_("held_change = 1", "debit"), "debit"),
    "a hold without an end": ("holds", set_("expires_in_s = NULL", "pending"), "pending"),
    "more given back than was paid": ("reversals", set_("amount = 41", "reversal"), "transfer"),
    "a reversal of a bet": ("reversals", set_("refers_to = '{bet}'", "reversal"), "reversal"),
    "a reversal of nothing": ("reversals", set_(f"refers_to = '{FRESH}'", "reversal"), "reversal"),
    "a reversal the same way": (
        "reversals",
        set_("debit_account = credit_account, credit_account = debit_account, debit_version = 9999", "reversal"),
        "reversal",
    ),
    "a bet won twice": ("bets", copied("win", "credit"), "won_bet"),
    "a win of no bet": ("bets", set_("refers_to = '{credit}'", "win"), "win"),
    "a win on another account": ("bets", set_("credit_account = {frozen}, credit_version = 9999", "win"), "win"),
    "a bet won and given back": ("bets", set_("refers_to = '{won_bet}', amount = 8", "rollback"), "won_bet"),
    "a rollback of more than the stake": ("bets", set_("amount = amount + 1", "rollback"), "rollback"),
    "a bet after its rollback": ("bets", set_("refers_to = '{won_bet}'", "tombstone"), "won_bet"),
    "a batch without its first member": (
        "batches",
        "DELETE FROM ledgerd.transactions WHERE batch_id = '{batch}' AND batch_index = 0",
        None,
    ),
    "a batch without its second member": (
        "batches",
        (
            "UPDATE ledgerd.transactions SET batch_id = NULL, batch_index = NULL "
            "WHERE batch_id = '{batch}' AND batch_index = 1"
        ),
        None,
    ),
    "a member without a number": (
        "batches",
        "UPDATE ledgerd.transactions SET batch_index = NULL WHERE batch_id = '{batch}' AND batch_index = 2",
        None,
    ),
    "what is outstanding": (
        "advances",
        "UPDATE ledgerd.advances SET outstanding = outstanding - 1 WHERE advance_id = '{running}'",
        "running",
    ),
    "a principal": (
        "advances",
        "UPDATE ledgerd.advances SET principal = principal + 1 WHERE advance_id = '{running}'",
        "running",
    ),
    "a payment asks for more": (
        "advances",
        payment("amount = amount + 1", "status = 'due' OR status = 'not_due'"),
        "running",
    ),
    "a payment was never made": (
        "advances",
        (
            "UPDATE ledgerd.advance_payments SET paid = amount - 1, status = 'failed' WHERE advance_id = '{paid_back}' "
            "AND number = 1"
        ),
        "paid_back",
    ),
    "a payment that failed is due again": (
        "advances",
        f"UPDATE ledgerd.advance_payments SET status = 'due' WHERE status = 'failed' AND advance_id = {FAILED}",
        None,
    ),
    "what was rolled over": (
        "advances",
        f"UPDATE ledgerd.advance_payments SET rolled_over = 0 WHERE rolled_over > 0 AND advance_id = {FAILED}",
        None,
    ),
    "a payment is gone": (
        "advances",
        "DELETE FROM ledgerd.advance_payments WHERE advance_id = '{paid_back}' AND number = 2",
        "paid_back",
    ),
    "a payment of another amount": ("advances", set_("amount = amount + 1", "payment"), "running"),
    "a payment of another advance": ("advances", set_("refers_to = '{paid_back}'", "payment"), "running"),
    "a payment of no advance": ("advances", set_("refers_to = '{credit}'", "payment"), "payment"),
    "an event is gone": (
        "advances",
        "DELETE FROM ledgerd.advance_events WHERE advance_id = '{running}' AND event = 2",
        "running",
    ),
    "an event of another amount": (
        "advances",
        "UPDATE ledgerd.advance_events SET amount = amount + 1 WHERE advance_id = '{running}' AND type LIKE '%paid'",
        "running",
    ),
    "completed too early": (
        "advances",
        f"UPDATE ledgerd.advance_events SET type = 'completed' WHERE type = 'requested' AND advance_id = {FAILED}",
        None,
    ),
    "not queued": ("advances", f"DELETE FROM ledgerd.advance_queue WHERE advance_id = {FAILED}", None),
    "queued too late": (
        "advances",
        f"UPDATE ledgerd.advance_queue SET due_at = due_at + interval '1 day' WHERE advance_id = {FAILED}",
        None,
    ),
    "an advance is gone": (
        "advances",
        (
            "SET session_replication_role = replica; DELETE FROM ledgerd.advances WHERE advance_id = '{running}'; "
            "SET session_replication_role = origin"
        ),
        "running",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_named(bench: Bench, scene: Scene, damage: str) -> None:
    check, statement, named = DAMAGE[damage]
    names: dict[str, Any] = {name: getattr(scene, name) for name in scene.__struct_fields__}
    # Whoever damages a ledger by hand finds a way around its constraints.
    for constraint in bench.fetch(
        "SELECT conrelid::regclass::text AS relation, conname FROM pg_constraint "
        "WHERE contype = 'c' AND connamespace = 'ledgerd'::regnamespace"
    ):
        bench.execute(f"ALTER TABLE {constraint['relation']} DROP CONSTRAINT {constraint['conname']}")
    before = bench.value("SELECT count(*) FROM ledgerd.transactions")
    bench.execute(statement.format(**names))
    assert before

    report = verified(bench)

    assert check in [verdict.check.name for verdict in report.broken]
    if named is not None:
        ids = {
            number
            for difference in found(report)[check]
            for number in (difference.account_id, difference.transaction_id, difference.advance_id)
        }
        assert names[named] in ids, found(report)[check]


def test_of_many_differences_the_first_are_shown_and_all_are_counted(bench: Bench) -> None:
    bench.execute("UPDATE ledgerd.transactions SET debit_balance = debit_balance + 1 WHERE debit_version % 2 = 0")
    damaged = bench.value("SELECT count(*) FROM ledgerd.transactions WHERE debit_version % 2 = 0")
    (verdict,) = [each for each in verified(bench).verdicts if each.check.name == "running_balances"]
    assert len(verdict.shown) == SHOWN_MAX < damaged < verdict.differences


def test_a_hold_that_nobody_expired_is_a_warning(bench: Bench, scene: Scene) -> None:
    bench.move_clock(401 * DAY_S)
    report = verified(bench)
    assert [difference.transaction_id for difference in found(report).pop("overdue_holds")].count(scene.pending) == 1
    assert report.broken == []
