"""A lane: one connection that posts money commands, one kernel call at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import asyncpg
import msgspec
import structlog

from ledgerd import metrics
from ledgerd.engine.commands import (
    AMOUNT_MEMBERS,
    REFERRING,
    AccountFacts,
    Command,
    Outcome,
    Posted,
    Record,
    Refused,
    Side,
    Unit,
)
from ledgerd.engine.ports import CallRefused, StorageUnavailable
from ledgerd.masking import error_text
from ledgerd.storage import rows
from ledgerd.storage.connection import Crossing
from ledgerd.storage.failures import FENCE, Failure, classify
from ledgerd.storage.queries import QUERIES
from ledgerd.times import time_text
from ledgerd_protocol.errors import ERROR_CODES, ErrorCode

RERUNS_MAX = 8
"""A call that loses this many races in a row is answered as unavailable; two lanes need one rerun for one id."""

_POSTED = 0
_REPLAYED = 1

_READ_BACK = REFERRING | {"win", "rollback"}
"""Kinds whose accounts, and perhaps amounts, the kernel finds out."""

T = TypeVar("T")

_FENCE_HINT = (
    "The version of an account moved although its lock was held; the call is run again, and nothing is lost. Does "
    "something write the ledger's tables without the daemon, or do advisory locks not exclude on this server?"
)
_DEADLOCK_HINT = (
    "The daemon takes its locks in order, so another program locks the ledger's rows: look for it in pg_locks. The "
    "call is run again."
)

log = structlog.get_logger(__name__)


class PostgresLane:
    """Posts units through ledgerd.post. Owns its connection; never used by two tasks at once."""

    def __init__(
        self, crossing: Crossing, connection: asyncpg.Connection, statement: Any, *, rerun_within_s: float
    ) -> None:
        """A call that lost a race is run again only while its first run began less than ``rerun_within_s`` ago."""
        self._crossing = crossing
        self._connection = connection
        self._statement = statement
        self._rerun_within_s = rerun_within_s

    async def post(self, units: Sequence[Unit], *, resent: bool) -> list[list[Outcome]]:
        """See `ledgerd.engine.ports.Lane`."""
        if self._connection.is_closed():
            raise StorageUnavailable("the connection was lost before the call", applied=False)
        commands = [command for unit in units for command in unit.commands]
        started = time.perf_counter()
        arguments = _arguments(units, commands, resent=resent)
        kinds = [command.kind for command in commands]
        answer, stored = await self._crossing.run(lambda: self._call(arguments, kinds), self._connection)
        metrics.CALL_SECONDS.observe(time.perf_counter() - started)
        return _outcomes(units, answer, stored)

    async def _call(self, arguments: tuple[Any, ...], kinds: list[str]) -> tuple[asyncpg.Record, dict[str, Record]]:
        """The asyncio side: the call, run again when it lost a race, and the records that only the database knows."""
        started = time.monotonic()
        for _ in range(1 + RERUNS_MAX):
            try:
                answer = await self._statement.fetchrow(*arguments)
            except Exception as error:
                failure = classify(error)
                if failure is Failure.REFUSED:
                    raise CallRefused(error_text(error)) from error
                if failure is not Failure.RERUN:
                    raise
                _count_rerun(error, arguments[4])
                if time.monotonic() - started > self._rerun_within_s:
                    break
            else:
                return answer, await self._stored(answer, kinds, arguments[4])
        raise StorageUnavailable("the call lost every race it ran", applied=False)

    async def _stored(self, answer: asyncpg.Record, kinds: list[str], transaction_ids: list[str]) -> dict[str, Record]:
        wanted = [
            transaction_id
            for transaction_id, kind, code in zip(transaction_ids, kinds, answer["codes"], strict=True)
            if code == _REPLAYED or code == ErrorCode.ALREADY_POSTED or (code == _POSTED and kind in _READ_BACK)
        ]
        if not wanted:
            return {}
        try:
            found = await self._connection.fetch(QUERIES["records"], wanted)
        except asyncpg.PostgresError as error:
            # The call is committed: whatever this read fails of, nobody may be told that nothing happened.
            raise StorageUnavailable(f"the records of the call: {error_text(error)}", applied=None) from error
        return {record.transaction_id: record for record in map(rows.record, found)}


def _count_rerun(error: Exception, transaction_ids: list[str]) -> None:
    metrics.CALLS.labels("rerun").inc()
    state = getattr(error, "sqlstate", None)
    commands, transaction_id = len(transaction_ids), transaction_ids[0]
    if state == FENCE:
        metrics.FENCE_HITS.inc()
        log.error("fence_hit", transaction_id=transaction_id, commands=commands, hint=_FENCE_HINT)
    elif state in {"40P01", "40001"}:
        metrics.DEADLOCKS.inc()
        log.error("deadlock", sqlstate=state, transaction_id=transaction_id, commands=commands, hint=_DEADLOCK_HINT)
    else:
        log.debug("call_rerun", sqlstate=state, transaction_id=transaction_id, commands=commands)


def _arguments(units: Sequence[Unit], commands: list[Command], *, resent: bool) -> tuple[Any, ...]:
    numbers: list[int | None] | None = None
    batch_ids: list[str | None] | None = None
    if any(unit.atomic for unit in units):
        numbers, batch_ids = [], []
        for number, unit in enumerate(units):
            size = len(unit.commands)
            numbers += [number if unit.atomic else None] * size
            batch_ids += [unit.batch_id if unit.atomic else None] * size
    return (
        resent,
        [command.attempt_id for command in commands],
        [command.principal.token_id for command in commands],
        [command.kind for command in commands],
        [command.transaction_id for command in commands],
        [command.debit_account for command in commands],
        [command.credit_account for command in commands],
        [command.amount_minor for command in commands],
        _sparse([command.amount_problem or command.late_problem for command in commands]),
        _sparse([command.currency for command in commands]),
        _sparse([command.reference for command in commands]),
        _sparse([command.reason for command in commands]),
        _sparse([command.metadata for command in commands]),
        _sparse([command.refers_to for command in commands]),
        _sparse([command.expires_in_s for command in commands]),
        numbers,
        batch_ids,
        _sparse([command.installments for command in commands]),
        _sparse([command.interval_days for command in commands]),
    )


def _sparse(values: list[T | None]) -> list[T | None] | None:
    """Null instead of nothing but nulls: the kernel reads the same out of it, and it costs nothing to send."""
    return None if values.count(None) == len(values) else values


def _outcomes(units: Sequence[Unit], answer: asyncpg.Record, stored: dict[str, Record]) -> list[list[Outcome]]:
    read = _outcome_reader(answer, stored)
    outcomes: list[list[Outcome]] = []
    position = 0
    for unit in units:
        of_unit: list[Outcome | None] = []
        for command in unit.commands:
            of_unit.append(read(position, command))
            position += 1
        outcomes.append(_whole(of_unit) if unit.atomic else [outcome for outcome in of_unit if outcome is not None])
    return outcomes


def _whole(outcomes: list[Outcome | None]) -> list[Outcome]:
    """An atomic unit that failed has one refused member and nothing for the others: each gets that refusal."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Refused):
            refusal = Refused(
                code=outcome.code,
                data=outcome.data,
                scale=outcome.scale,
                attempt_id=outcome.attempt_id,
                created_at=outcome.created_at,
                record=outcome.record,
                index=index,
            )
            return [refusal] * len(outcomes)
    return [outcome for outcome in outcomes if outcome is not None]


def _outcome_reader(answer: asyncpg.Record, stored: dict[str, Record]) -> Callable[[int, Command], Outcome | None]:
    codes = answer["codes"]
    data = answer["data"]
    now = answer["created_at"]
    created_at = time_text(now)
    debit_columns = [answer[name] for name in ("debit_versions", "debit_balances", "debit_held", "debit_available")]
    credit_columns = [
        answer[name] for name in ("credit_versions", "credit_balances", "credit_held", "credit_available")
    ]

    def read(i: int, command: Command) -> Outcome | None:
        code = codes[i]
        if code == _POSTED:
            if command.kind in _READ_BACK:
                return Posted(stored[command.transaction_id])
            record = _fresh_record(i, command, created_at, debit_columns, credit_columns)
            if command.kind == "hold":
                return Posted(_pending(record, now, command))
            return Posted(record)
        if code == _REPLAYED:
            return Posted(stored[command.transaction_id], replayed=True)
        if code is None:
            return None
        facts = command.debit_facts or command.credit_facts
        return Refused(
            code=ERROR_CODES[code],
            data=_refusal_data(data[i], facts),
            scale=0 if facts is None else facts.scale,
            attempt_id=command.attempt_id,
            created_at=created_at,
            record=stored.get(command.transaction_id) if code == ErrorCode.ALREADY_POSTED else None,
        )

    return read


def _refusal_data(text: str | None, facts: AccountFacts | None) -> dict[str, object] | None:
    """The further members of a refusal; without amounts where nobody here knows the currency they are in."""
    if text is None:
        return None
    data: dict[str, object] = json.loads(text)
    return data if facts else {name: value for name, value in data.items() if name not in AMOUNT_MEMBERS}


def _fresh_record(
    i: int, command: Command, created_at: str, debit_columns: list[list[int]], credit_columns: list[list[int]]
) -> Record:
    debit, credit = command.debit_facts, command.credit_facts
    facts = debit or credit
    assert facts is not None
    amount = command.amount_minor or 0
    change = rows.moved(command.kind, amount)
    sides: tuple[Side, ...] = ()
    if debit is not None and debit_columns[0][i] is not None:
        sides = (_side(i, debit, "debit", debit_columns, -change, amount if command.kind == "hold" else 0),)
    if credit is not None and credit_columns[0][i] is not None:
        sides = (*sides, _side(i, credit, "credit", credit_columns, change))
    return Record(
        transaction_id=command.transaction_id,
        kind=command.kind,
        status="cancelled" if command.kind == "cancel" else "posted",
        amount=amount,
        currency=facts.currency,
        scale=facts.scale,
        debit_account=None if debit is None else debit.account_id,
        credit_account=None if credit is None else credit.account_id,
        sides=sides,
        reference=command.reference,
        reason=command.reason,
        metadata=command.metadata,
        created_at=created_at,
        actor=command.principal.actor,
        refers_to=command.refers_to,
    )


def _pending(record: Record, created_at: datetime, command: Command) -> Record:
    assert command.expires_in_s is not None
    expires_at = rows.expiry_text(created_at, command.expires_in_s)
    return msgspec.structs.replace(record, status="pending", expires_at=expires_at)


def _side(
    i: int, facts: AccountFacts, direction: str, columns: list[list[int]], change: int, held_change: int = 0
) -> Side:
    versions, balances, held, available = columns
    return Side(
        account_id=facts.account_id,
        user_id=facts.user_id,
        direction=direction,
        version=versions[i],
        balance=balances[i],
        held=held[i],
        available=available[i],
        balance_change=change,
        held_change=held_change,
    )
