"""Methods that read transactions."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from ledgerd.engine.commands import AccountRef, Principal, Record
from ledgerd.engine.views import balance_view, transaction_view, visible_record
from ledgerd.gateway.access import not_found, own_ref, owns, seen_account
from ledgerd.gateway.call import Call, Read
from ledgerd.gateway.clock import now_text, utc_text
from ledgerd.gateway.methods.pages import fitting, whose
from ledgerd.gateway.methods.sizes import TRANSACTION_BYTES_MAX
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import TransactionGet, TransactionList
from ledgerd_protocol.results import Opening, Transaction, TransactionPage

ATTEMPTS_SHOWN_MAX = 100
_ATTEMPT_BYTES_MAX = 160


async def transaction_get(call: Call, params: TransactionGet) -> Transaction:
    """Answer `transaction_get`. Who asks for attempts is shown them with ``not_found`` too: nothing is posted *yet*."""
    principal, books = call.principal, call.desk.books
    record = await books.transaction(params.transaction_id)
    attempts = None
    if params.attempts:
        attempts = (await books.attempts(params.transaction_id, principal))[:ATTEMPTS_SHOWN_MAX]
    if record is None or not await _sees(call, principal, record):
        error = not_found("transaction")
        if attempts:
            error.data["attempts"] = [
                {"attempt_id": attempt.attempt_id, "reason": attempt.code.text, "created_at": attempt.created_at}
                for attempt in attempts
            ]
        raise error
    return transaction_view(record, principal, attempts=attempts)


async def _sees(call: Call, principal: Principal, record: Record) -> bool:
    """Whether the caller may know of the transaction. A tombstone has no sides: its account's owner sees it too."""
    if visible_record(principal, record):
        return True
    account_id = record.debit_account
    if record.sides or account_id is None:
        return False
    (facts,) = await call.desk.directory.find([(AccountRef(account_id=account_id), record.currency)])
    return owns(principal, facts)


async def transaction_list(call: Call, params: TransactionList) -> TransactionPage:
    """Answer `transaction_list`: an account's transactions in the order of its versions.

    New ones have higher versions than any page that was read newest first: they never appear while paging.
    """
    principal, desk = call.principal, call.desk
    created_from = _time(params.created_from, "/created_from")
    created_before = _time(params.created_before, "/created_before")
    ref = own_ref(principal, params.account_id, params.user_id)
    facts = await seen_account(call, ref, params.currency)
    filters: list[Any] = [
        facts.account_id,
        _or_none(params.kind),
        _or_none(params.status),
        _or_none(params.reference),
        created_from,
        created_before,
        params.order,
        *whose(principal),
    ]
    after_version, as_of = None, now_text()
    if params.cursor is not UNSET:
        after_version, as_of = desk.cursors.read("transaction_list", filters, params.cursor)
    found = await desk.books.transactions(
        facts.account_id,
        newest_first=params.order == "newest_first",
        after_version=after_version,
        limit=params.limit + 1,
        kind=_or_none(params.kind),
        status=_or_none(params.status),
        reference=_or_none(params.reference),
        created_from=created_from,
        created_before=created_before,
    )
    records = found.records
    items, done = fitting(call, records, limit=params.limit, view=lambda record: transaction_view(record, principal))
    last = found.edge
    if done < len(records):
        last = _version_of(records[done - 1], facts.account_id)
    opening = None
    if done:
        oldest = records[done - 1] if params.order == "newest_first" else records[0]
        opening = await _opening(call, facts.account_id, _version_of(oldest, facts.account_id) - 1)
    return TransactionPage(
        items=items,
        next_cursor=None if last is None else desk.cursors.write("transaction_list", filters, [last, as_of]),
        as_of=as_of,
        opening=opening,
    )


async def _opening(call: Call, account_id: int, version: int) -> Opening:
    """The account after a version that it has had."""
    state = await call.desk.books.balance_at(account_id, version=version)
    if state is None:
        raise LedgerError(ErrorCode.INTERNAL_ERROR)
    balance = balance_view(state)
    return Opening(version=version, balance=balance.balance, held=balance.held, available=balance.available)


def _time(text: str | UnsetType, pointer: str) -> str | None:
    return None if text is UNSET else utc_text(text, pointer)


def _or_none(value: str | UnsetType) -> str | None:
    return None if value is UNSET else value


def _version_of(record: Record, account_id: int) -> int:
    for side in record.sides:
        if side.account_id == account_id:
            return side.version
    raise LedgerError(ErrorCode.INTERNAL_ERROR)


METHODS = {
    "transaction_get": Read(transaction_get, TRANSACTION_BYTES_MAX + ATTEMPTS_SHOWN_MAX * _ATTEMPT_BYTES_MAX),
    "transaction_list": Read(transaction_list, None),
}
