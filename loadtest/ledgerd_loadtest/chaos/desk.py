"""Calls that are written down: when each was made, over which line, and what came back.

A *line* is a client of one daemon that reconnects by itself, and never repeats a command that was answered, whatever
the answer. A call that is not answered in time is given up, and its outcome is unknown: it may be carried out yet.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import trio

from ledgerd_loadtest.chaos.history import History, Operation
from ledgerd_protocol.call import PASSING, OutcomeUnknown
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import Retry
from ledgerd_protocol.errors import LedgerError

CALL_S = 8.0
"""How long an answer is waited for: most commands are given up before the daemon drops them itself."""

TRIES = 3
"""How often a workload asks again, with the same id and perhaps elsewhere, before it leaves that to the end."""

PAUSE_S = 0.2

_RETRY = Retry(
    connect_timeout_s=3.0, first_connect_s=60.0, reconnect_s=86_400.0, call_s=0.0, delay_s_max=0.5, silence_s=40.0
)

_KEPT = frozenset(
    (
        *("transaction_id", "kind", "status", "amount", "debit_account_id", "credit_account_id", "entries"),
        *("created_at", "replayed", "hold_id", "expires_at", "reverses", "advance_id"),
    )
)
"""Of a transaction, what a verdict looks at."""


class Line:
    """A named client of one daemon."""

    def __init__(self, name: str, daemon: int, client: Client) -> None:
        self.name = name
        self.daemon = daemon
        self.client = client


class Desk:
    """Makes calls for the workloads and keeps the history."""

    def __init__(self, history: History, lines: Sequence[Line], dice: random.Random) -> None:
        self.history = history
        self.lines = lines
        self.dice = dice

    def begin(self, workload: str, line: str, daemon: int, method: str, params: dict[str, Any]) -> Operation:
        """Write down that a call is made now."""
        operation = Operation(
            number=len(self.history.operations),
            workload=workload,
            line=line,
            daemon=daemon,
            method=method,
            params=params,
            invoked_s=time.monotonic(),
        )
        self.history.operations.append(operation)
        return operation

    async def call(
        self,
        workload: str,
        method: str,
        params: dict[str, Any],
        *,
        line: Line | None = None,
        keep: Callable[[Any], Any] | None = None,
        wait_s: float = CALL_S,
    ) -> Operation:
        """One call, over a line by lot unless one is given; ``keep`` says what of the result is written down."""
        line = line or self.dice.choice(self.lines)
        operation = self.begin(workload, line.name, line.daemon, method, params)
        with trio.move_on_after(wait_s):
            try:
                raw = await line.client.call_raw(method, params)
            except LedgerError as error:
                refused(operation, error)
            except OutcomeUnknown:
                pass
            else:
                answered(operation, msgspec.json.decode(raw), keep)
        return operation

    async def post(self, workload: str, method: str, params: dict[str, Any], *, line: Line | None = None) -> Operation:
        """A command, again with the same id until its outcome is known or patience is at an end; the last call."""
        for _ in range(TRIES):
            operation = await self.call(workload, method, params, line=line)
            if definite(operation):
                break
            line = None
            await trio.sleep(PAUSE_S)
        return operation


def answered(operation: Operation, result: Any, keep: Callable[[Any], Any] | None = None) -> None:
    """Write down a result, now."""
    operation.answered_s = time.monotonic()
    operation.outcome = "ok"
    operation.result = trimmed(result) if keep is None else keep(result)


def refused(operation: Operation, error: LedgerError) -> None:
    """Write down a refusal, now; one that does not say that nothing happened leaves the outcome unknown."""
    operation.answered_s = time.monotonic()
    operation.outcome = "unknown" if error.applied is None else "refused"
    operation.error = error.code.text
    operation.data = dict(error.data)


def definite(operation: Operation) -> bool:
    """Whether the answer is one about the command, and not about the moment."""
    return operation.outcome == "ok" or (
        operation.outcome == "refused" and operation.error not in {code.text for code in PASSING}
    )


def trimmed(result: Any) -> Any:
    """A result without what no verdict looks at."""
    if not isinstance(result, dict):
        return result
    if "outcomes" in result:
        return {"outcomes": [trimmed_outcome(outcome) for outcome in result["outcomes"]]}
    if "transaction" in result:  # an advance
        return {"transaction": trimmed(result["transaction"])}
    if "transaction_id" in result:
        return {name: value for name, value in result.items() if name in _KEPT}
    return result


def trimmed_outcome(outcome: dict[str, Any]) -> dict[str, Any]:
    """One of a batch."""
    return {"result": trimmed(outcome["result"])} if "result" in outcome else {"error": outcome["error"]["data"]}


@asynccontextmanager
async def open_desk(
    history: History, urls: Sequence[str], token: str, lines_per_daemon: int, dice: random.Random
) -> AsyncIterator[Desk]:
    """A desk with several lines to each daemon. Raises CannotConnect, ConnectionEnded."""
    async with AsyncExitStack() as stack:
        lines = []
        for daemon, url in enumerate(urls):
            for number in range(lines_per_daemon):
                client = await stack.enter_async_context(open_client(url, token=token, retry=_RETRY))
                lines.append(Line(f"daemon {daemon} line {number}", daemon, client))
        yield Desk(history, lines, dice)
