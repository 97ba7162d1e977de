"""Many commands in one request: `transaction_batch`."""

from __future__ import annotations

from functools import partial
from uuid import UUID, uuid5

import msgspec
from msgspec import UNSET

from ledgerd.engine.commands import Command, Outcome, Refused
from ledgerd.engine.views import refusal_error
from ledgerd.gateway.call import Call, Money, Plan
from ledgerd.gateway.methods import holds, money
from ledgerd.gateway.methods.commands import outcome_result
from ledgerd.gateway.methods.sizes import OUTCOME_BYTES, result_bytes_max
from ledgerd_protocol.codec import decode_items
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import MoneyParams, TransactionBatch
from ledgerd_protocol.methods import BATCHABLE
from ledgerd_protocol.results import BatchOutcome, BatchResult

_COMMANDS = {**money.COMMANDS, **holds.COMMANDS}

assert _COMMANDS.keys() == BATCHABLE, "every command that may stand in a batch has exactly one builder"


def transaction_batch(call: Call, params: TransactionBatch) -> Plan:
    """Answer `transaction_batch`. All mistakes of all items are found before anything is executed."""
    items = decode_items(params)
    operator = "operator" in call.principal.scopes
    if sum(result_bytes_max(item, operator=operator) + OUTCOME_BYTES for _, item in items) > call.result_bytes_max:
        raise LedgerError(ErrorCode.BATCH_TOO_LARGE, "The answer could be larger than a message may be.")
    commands: list[Command] = []
    refused: dict[int, Refused] = {}
    problems: list[dict[str, str]] = []
    for index, (method, item) in enumerate(items):
        if method.scopes.isdisjoint(call.principal.scopes):
            refused[index] = Refused(code=ErrorCode.PERMISSION_DENIED)
        assert isinstance(item, MoneyParams)
        if item.transaction_id is UNSET:
            assert params.batch_id is not UNSET
            item = msgspec.structs.replace(item, transaction_id=str(uuid5(UUID(params.batch_id), str(index))))
        try:
            commands.append(_COMMANDS[method.name](call, item))
        except LedgerError as error:
            problems += [
                {"pointer": f"/items/{index}/params{found['pointer']}", "detail": found["detail"]}
                for found in error.data["errors"]
            ]
    if problems:
        raise LedgerError(
            ErrorCode.INVALID_PARAMS, f"{len(problems)} parameters are not valid; see data.errors.", errors=problems
        )
    if len(commands) > 1:
        # The request itself has been counted; each of its commands counts like a request.
        call.desk.requests.require(call.principal.token_id, len(commands) - 1)
    return Plan(
        commands,
        partial(_conclude_batch, commands, params.atomic),
        refused=refused,
        atomic=params.atomic,
        batch_id=None if params.batch_id is UNSET else params.batch_id,
    )


def _conclude_batch(commands: list[Command], atomic: bool, outcomes: list[Outcome]) -> BatchResult:
    if atomic:
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if refusals:
            raise _atomic_error(commands, refusals)
    results: list[BatchOutcome] = []
    for command, outcome in zip(commands, outcomes, strict=True):
        try:
            results.append(BatchOutcome(result=outcome_result(command, outcome)))
        except LedgerError as error:
            results.append(BatchOutcome(error=error.to_wire()))
    return BatchResult(results)


def _atomic_error(commands: list[Command], refusals: list[Refused]) -> LedgerError:
    """The one refusal that an atomic batch is answered with: of the member that was refused first.

    When no member is to blame (the database is away, the batch is too large) it is of the whole, and has no index.
    """
    for refused in refusals:
        if refused.index is not None:
            return refusal_error(refused, commands[refused.index])
    return refusal_error(refusals[0])


METHODS = {"transaction_batch": Money(transaction_batch)}
