"""The audit of everything that is stored, in one snapshot, while daemons go on writing.

Rules of this file:

- One transaction, REPEATABLE READ and READ ONLY, and that is asserted: what is compared was true at one moment. It
  takes no lock that a writer could wait for. What it does cost is that vacuum keeps, until its end, what was replaced
  meanwhile.
- Rows are counted, compared and grouped where they are. What comes over are sums, and of every check the first
  `SHOWN_MAX` differences and how many there are; so memory does not grow with the ledger, neither here nor, beyond
  work_mem, there.
- The work is cut into slices of about a second: ranges of accounts, pages of the table, ranges of ids. A slice is what
  progress counts.

The queries and what they compare are in sql/verify.sql. Whoever may SELECT what the daemon's role may can run it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct

from ledgerd.storage import migrations
from ledgerd.storage.queries import AUDIT

SHOWN_MAX = 20
"""Differences of one check that are told one by one."""

ENTRIES_PER_SLICE = 250_000
PAGES_PER_SLICE = 8_192
REFERENCES_PER_SLICE = 100_000
SAMPLED_PAGES = 1_000
ADVANCES_PER_SLICE = 1_000

OVERDUE = timedelta(minutes=5)
"""How long after its time a hold may still be pending before it is worth a warning: the daemons look every second, but
they may have been down."""

_SESSION = {
    "application_name": "ledgerd verify",
    "timezone": "UTC",
    # Whatever the role's are: a whole audit takes as long as it takes, and its transaction never idles for long.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}

_VERSION_MAX = 2**63 - 1
_PAGE_MAX = 2**32 - 1

_FIRST_OF_EACH = f"""
SELECT n.* FROM (
    SELECT
        f.*,
        count(*) OVER (PARTITION BY f.check_name) AS differences,
        row_number() OVER (PARTITION BY f.check_name ORDER BY f.account_id, f.advance_id, f.transaction_id) AS place
    FROM (%s) AS f
) AS n
WHERE n.place <= {SHOWN_MAX}
ORDER BY n.check_name, n.place
"""  # noqa: S608 - a number and queries, all of them ours


class LedgerUnfit(Exception):
    """The database has no ledger, or not that of this release."""


class Check(Struct, frozen=True):
    """Something that must hold. A difference of a warning is worth a look, and no damage."""

    name: str
    says: str
    is_warning: bool = False


CHECKS = (
    Check("conservation", "what came from outside is what the balances add up to, per currency"),
    Check("balances", "balances and held sums are the sums of entries, and of pending holds"),
    Check("versions", "every account's versions are 1, 2, 3 ... without hole or double"),
    Check("running_balances", "every entry follows from the one before it, and nothing is overdrawn"),
    Check("times", "time never runs backwards along an account"),
    Check("statuses", "account status and overdraft limit are what the last transaction about them set"),
    Check("sides", "both sides of every transaction exist, in one currency, and are as its kind has them"),
    Check("holds", "a hold is pending, or ended once, and let go no more than it held"),
    Check("overdue_holds", "no hold is pending long after its time", is_warning=True),
    Check("reversals", "no more was given back than was paid, to where it came from"),
    Check("bets", "a bet is won once or given back once, to its own account"),
    Check("batches", "atomic batches are whole"),
    Check("advances", "payments, events and transactions of every advance add up to its principal"),
)


class Difference(Struct, frozen=True, omit_defaults=True):
    """Where something does not hold. Amounts in ``detail`` are minor units."""

    detail: str
    account_id: int | None = None
    transaction_id: str | None = None
    advance_id: str | None = None


class Verdict(Struct):
    """What became of one check: how many differences, and the first of them."""

    check: Check
    differences: int = 0
    shown: list[Difference] = []


class Report(Struct, frozen=True):
    """A whole audit: when its snapshot was taken, and what it looked at."""

    as_of: datetime
    accounts: int
    entries: int
    advances: int
    verdicts: list[Verdict]

    @property
    def broken(self) -> list[Verdict]:
        """The checks that found damage."""
        return [verdict for verdict in self.verdicts if verdict.differences and not verdict.check.is_warning]


class Slices(Struct, frozen=True):
    """The ranges that the ledger of one snapshot is cut into: arguments of the queries."""

    once: list[tuple[Any, ...]]
    accounts: list[tuple[Any, ...]]
    versions: list[tuple[Any, ...]]
    pages: list[tuple[Any, ...]]
    ids: list[tuple[Any, ...]]
    references: list[tuple[Any, ...]]
    advances: list[tuple[Any, ...]]


class Step(Struct, frozen=True):
    """A query of sql/verify.sql, run over all slices of a kind; ``weight`` is its share of the work, by experience."""

    query: str
    by: Literal["once", "accounts", "versions", "pages", "ids", "references", "advances"]
    checks: tuple[str, ...]
    weight: int
    more: tuple[Any, ...] = ()


STEPS = (
    Step("world_changes", "pages", ("conservation",), 8),
    Step("accounts", "accounts", ("balances", "versions", "times", "statuses"), 25),
    Step("entries", "versions", ("versions", "running_balances", "times", "statuses"), 45),
    Step("transactions", "pages", ("sides", "holds", "batches", "advances"), 12),
    Step("references", "references", ("holds", "reversals", "bets", "advances"), 6),
    Step("pending_holds", "once", ("holds",), 1),
    Step("overdue_holds", "once", ("overdue_holds",), 1, (OVERDUE,)),
    Step("batches", "ids", ("batches",), 2),
    Step("advances", "advances", ("advances",), 5),
)


def verify(dsn: str, *, on_progress: Callable[[float], None], on_verdict: Callable[[Verdict], None]) -> Report:
    """Check everything; ``on_progress`` is told the share that is done, ``on_verdict`` each check as it is finished.

    Raises LedgerUnfit, MigrationMismatch, OSError, asyncpg.PostgresError or asyncpg.InterfaceError.
    """
    return asyncio.run(audit(dsn, on_progress=on_progress, on_verdict=on_verdict))


async def audit(
    dsn: str,
    *,
    on_progress: Callable[[float], None] = lambda _: None,
    on_verdict: Callable[[Verdict], None] = lambda _: None,
) -> Report:
    """The same within asyncio."""
    connection = await asyncpg.connect(dsn, server_settings=_SESSION)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            report = await Audit(connection, on_progress, on_verdict).run()
    except BaseException:
        connection.terminate()  # it may be in the middle of something that takes long
        raise
    await connection.close()
    return report


class Audit:
    """One audit, on a connection whose transaction is all it sees."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        on_progress: Callable[[float], None],
        on_verdict: Callable[[Verdict], None],
    ) -> None:
        self._connection = connection
        self._on_progress = on_progress
        self._on_verdict = on_verdict
        self._verdicts = {check.name: Verdict(check, shown=[]) for check in CHECKS}
        self._done = 0.0

    async def run(self) -> Report:
        """See `audit`."""
        await self._connection.execute(AUDIT["settings"])
        began = await self._assert_one_snapshot(None)
        await self._assert_fit()
        sizes = await self._connection.fetchrow(AUDIT["sizes"])
        slices = await self._cut(sizes)
        for number, step in enumerate(STEPS):
            if step.query == "world_changes":
                await self._conservation(step, slices)
            else:
                await self._run_step(step, getattr(slices, step.by))
            left = set(itertools.chain.from_iterable(later.checks for later in STEPS[number + 1 :]))
            for name in step.checks:
                if name not in left:
                    self._on_verdict(self._verdicts[name])
        await self._assert_one_snapshot(began["snapshot"])
        return Report(
            as_of=began["started_at"],
            accounts=sizes["accounts"],
            entries=sum(entries for *_, entries in slices.accounts),
            advances=sizes["advances"],
            verdicts=list(self._verdicts.values()),
        )

    async def _assert_one_snapshot(self, expected: str | None) -> asyncpg.Record:
        row = await self._connection.fetchrow(AUDIT["snapshot"])
        assert row["isolation"] == "repeatable read", row["isolation"]
        assert row["read_only"] == "on"
        assert expected in (None, row["snapshot"]), "the snapshot changed"
        return row

    async def _assert_fit(self) -> None:
        if await self._connection.fetchval("SELECT to_regclass('ledgerd.migrations')") is None:
            raise LedgerUnfit("the database has no ledger: is it the right one?")
        rows = await self._connection.fetch("SELECT number, checksum FROM ledgerd.migrations")
        missing = migrations.pending({row["number"]: row["checksum"] for row in rows})
        if missing:
            raise LedgerUnfit(
                f"the database lacks {len(missing)} migration(s) of this release: run `ledgerd migrate --apply`, or "
                "verify with the release that serves it"
            )

    async def _cut(self, sizes: asyncpg.Record) -> Slices:
        accounts = await self._connection.fetch(AUDIT["account_slices"], ENTRIES_PER_SLICE)
        advances = await self._connection.fetch(AUDIT["advance_slices"], ADVANCES_PER_SLICE)
        starts = range(0, max(sizes["pages"], 1), PAGES_PER_SLICE)
        return Slices(
            once=[()],
            accounts=[(row["first_account"], row["last_account"], row["entries"]) for row in accounts],
            versions=[ranges for row in accounts for ranges in _versions(row)],
            # A page's number and the row on it. Whatever is written meanwhile is in no page of this snapshot.
            pages=[((first, 0), (min(first + PAGES_PER_SLICE, _PAGE_MAX), 0)) for first in starts],
            ids=_ids([UUID(int=digit << 124) for digit in range(1, 16)]),
            references=_ids(await self._cut_references(sizes["pages"])),
            advances=[(row["first_advance"], row["last_advance"]) for row in advances],
        )

    async def _cut_references(self, pages: int) -> list[UUID]:
        """Ids that cut those that are referred to into equal parts. Ids that begin with a time all look alike, so that
        where they are is known only from a sample."""
        share = min(SAMPLED_PAGES / max(pages, 1), 1.0)
        rows = await self._connection.fetch(AUDIT["sampled_references"], share * 100)
        sample = sorted(row["refers_to"] for row in rows)
        parts = min(round(len(sample) / share / REFERENCES_PER_SLICE) + 1, len(sample) + 1)
        return sorted({sample[len(sample) * part // parts] for part in range(1, parts)})

    async def _run_step(self, step: Step, slices: Sequence[tuple[Any, ...]]) -> None:
        sql = _FIRST_OF_EACH % AUDIT[step.query]
        for arguments in slices:
            given = arguments[:2] if step.by == "accounts" else arguments
            for row in await self._connection.fetch(sql, *given, *step.more):
                self._note(row)
            self._advance(step, len(slices))
        if not slices:
            self._advance(step, 1)

    def _note(self, row: asyncpg.Record) -> None:
        verdict = self._verdicts[row["check_name"]]
        if row["place"] == 1:
            verdict.differences += row["differences"]
        if len(verdict.shown) < SHOWN_MAX:
            verdict.shown.append(
                Difference(row["detail"], row["account_id"], _text(row["transaction_id"]), _text(row["advance_id"]))
            )

    def _advance(self, step: Step, slices: int) -> None:
        self._done += step.weight / slices
        self._on_progress(min(self._done / sum(each.weight for each in STEPS), 1.0))

    async def _conservation(self, step: Step, slices: Slices) -> None:
        """The only check over all there is: what left the world against what is there, neither defined as the other."""
        verdict = self._verdicts["conservation"]
        world: dict[int, int] = {}
        for pages in slices.pages:
            for row in await self._connection.fetch(AUDIT[step.query], *pages):
                account = row["world_account"]
                world[account] = world.get(account, 0) + int(row["change"])
            self._advance(step, len(slices.pages))
        for row in await self._connection.fetch(AUDIT["balances_of_currencies"]):
            outside, inside = world.pop(row["world_account"], 0), int(row["balances"])
            if outside != -inside:
                detail = f"{row['currency']}: the world's side is {outside}, the balances add up to {inside}"
                verdict.shown.append(Difference(detail, row["world_account"]))
        verdict.shown += [Difference(f"{change} moved for no currency", account) for account, change in world.items()]
        verdict.differences = len(verdict.shown)
        del verdict.shown[SHOWN_MAX:]


def _versions(row: asyncpg.Record) -> Iterator[tuple[Any, ...]]:
    """A range of accounts, or one account with more versions than a slice has, cut along its versions."""
    first, last, version = row["first_account"], row["last_account"], row["version"]
    if first != last or version <= ENTRIES_PER_SLICE:
        yield first, last, 0, _VERSION_MAX
        return
    for above in range(0, version, ENTRIES_PER_SLICE):
        up_to = above + ENTRIES_PER_SLICE
        yield first, last, above, up_to if up_to < version else _VERSION_MAX


def _ids(cuts: Sequence[UUID]) -> list[tuple[Any, ...]]:
    """All ids there can be, in ranges that begin at these."""
    firsts = [UUID(int=0), *(cut for cut in cuts if cut.int)]
    lasts = [*(UUID(int=first.int - 1) for first in firsts[1:]), UUID(int=2**128 - 1)]
    return list(zip(firsts, lasts, strict=True))


def _text(number: UUID | None) -> str | None:
    return None if number is None else str(number)
