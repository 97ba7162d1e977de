"""What clients send, and what guards the door, is in no log line, no metric and no page, at the most talkative level.

Everything a client can say is a canary here, by every method, valid and not; and what goes wrong is made to quote it.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
import structlog
import trio

from ledgerd import logs
from ledgerd.config import Config
from ledgerd.engine.commands import Unit
from ledgerd.gateway.http import serve_http
from ledgerd.log_rate import LogRate
from ledgerd.masking import traceback_text
from ledgerd.storage.books import PostgresBooks
from ledgerd.storage.generation import open_generation
from ledgerd_protocol.messages import SubscribeOptions
from ledgerd_protocol.methods import METHODS
from tests.conftest import Database
from tests.gateway.fakes import Client, handshake
from tests.gateway.house import House, Person, open_house, until
from tests.gateway.test_http import get

CANARY = "canary"
PASSWORD = "canary-password"
EMAIL = "canary@canary.example"
TOKEN = "lgd_" + "canary-" * 6 + "c"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged meanwhile."""
    root, ours = logging.getLogger(), logging.getLogger("ledgerd")
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    stream = io.StringIO()
    logs.configure("debug", stream)
    root.handlers[0]._rate = LogRate(lines_max=1_000_000)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)
    sys.excepthook = hook
    structlog.reset_defaults()


@pytest.fixture
def guarded(database: Database) -> Database:
    """The database behind a connection string with a password; the private cluster trusts everybody anyway."""
    assert "postgresql://" in database.daemon_dsn
    user, _, rest = database.daemon_dsn.partition("@")
    return msgspec.structs.replace(database, daemon_dsn=f"{user}:{PASSWORD}@{rest}")


def events(log: io.StringIO) -> set[str]:
    return {json.loads(line)["event"] for line in log.getvalue().splitlines()}


def assert_silent(log: io.StringIO) -> None:
    told = [line for line in log.getvalue().splitlines() if CANARY in line]
    assert told == []


# -- what clients say --------------------------------------------------------------------------------------------------


def said(person: Person, other: Person) -> dict[str, Any]:
    """For each parameter of any method, a value that is a canary where it may be one."""
    text = "canary text"
    return {
        **dict.fromkeys(("name", "reference", "reason", "label", "echo", "cursor", "subscription", "user"), text),
        **dict.fromkeys(("round", "game_code", "supplier_user", "supplier_transaction_id"), text),
        **dict.fromkeys(("transaction_id", "batch_id", "hold_id", "advance_id"), None),
        **dict.fromkeys(("original_transaction_id", "request_uuid", "reference_transaction_uuid"), None),
        **dict.fromkeys(("transaction_uuid", "reward_uuid"), None),
        **dict.fromkeys(("account_id", "source_account_id"), person.account_id),
        "destination_account_id": other.account_id,
        **dict.fromkeys(("user_id", "source_user_id"), person.user_id),
        "destination_user_id": other.user_id,
        **dict.fromkeys(("amount", "above", "below", "overdraft_limit"), "0.01"),
        "bet": text,
        "email": EMAIL,
        "password": PASSWORD,
        "new_password": PASSWORD,
        "token": TOKEN,
        "metadata": {"canary": text},
        "meta": {"canary": text},
        "currency": "USD",
        "channel": "balances",
        "options": {"account_ids": [person.account_id]},
        "direction": "debit",
        "kind": "credit",
        "order": "newest_first",
        "status": "posted",
        "scopes": ["user"],
        "users": [text],
        "items": [
            {"method": "credit", "params": {"account_id": person.account_id, "amount": "0.01", "reference": text}}
        ],
        **dict.fromkeys(("at", "created_from", "created_before", "expires_at"), "2199-01-01T00:00:00Z"),
        **dict.fromkeys(("all", "atomic", "attempts", "with_total", "is_aggregated", "is_free", "round_closed"), False),
        **dict.fromkeys(("limit", "installments", "interval_days", "min_version", "version", "monitor_id"), 1),
        "expires_in_s": 60,
        "token_id": 1_000_000,
    }


def messages(method: str, values: dict[str, Any]) -> Iterator[Any]:
    """Parameters: valid as far as possible, each alone wrong, and one too many."""
    names = [field.name for field in msgspec.structs.fields(METHODS[method].params)]
    whole = {name: str(uuid4()) if values[name] is None else values[name] for name in names}
    if method == "transfer":
        whole = {name: value for name, value in whole.items() if not name.endswith("user_id")}
    elif {"account_id", "user_id"} <= whole.keys():
        del whole["user_id"]
    yield whole
    for name in names:
        yield {**whole, name: "canary of a wrong kind"}
        yield {**whole, name: {"canary": ["canary"]}}
        yield {other: value for other, value in whole.items() if other != name}
    yield {**whole, "canary": "canary"}
    yield ["canary"]


async def answered(client: Client, method: str, params: Any) -> None:
    """Send and wait for the answer, whatever it is; events may come before."""
    number = await client.ask(method, params)
    while (await client.receive()).get("id") != number:
        pass


async def test_nothing_that_any_method_is_given_is_logged_or_measured(guarded, log):
    async with open_house(guarded, open_sign_up=True, login_failures_per_min=0) as house:
        person, other = await house.person("100"), await house.person()
        values = said(person, other)
        for method in sorted(METHODS):
            client = await house.client("operator", "user", user_id=person.user_id)
            for params in messages(method, values):
                await answered(client, method, params)
        told = [json.loads(line) for line in log.getvalue().splitlines()]
        answers = {line["method"] for line in told if line["event"] in ("request_answered", "request_refused")}
        assert answers == set(METHODS)
        assert {line["code"] for line in told if line["event"] == "request_refused"} >= {"invalid_params", "not_found"}
        assert {"user_registered", "token_created", "password_refused", "token_refused"} <= events(log)
        assert_silent(log)
        async with http_door() as url:
            for path in ("/metrics", "/livez", "/readyz", "/canary?canary=canary"):
                assert CANARY not in (await get(url, path))[1]


def test_every_parameter_that_is_a_text_is_a_canary() -> None:
    person = Person(1, 1, None)  # type: ignore[arg-type]
    values = said(person, person)
    names = {field.name for method in METHODS.values() for field in msgspec.structs.fields(method.params)}
    assert names == values.keys()
    assert "account_ids" in {field.name for field in msgspec.structs.fields(SubscribeOptions)}


async def test_nothing_that_is_no_request_at_all_is_logged(guarded, log):
    frames = [
        "canary",
        '{"canary": "canary"',
        '{"jsonrpc": "2.0", "id": 1, "method": "canary"}',
        '{"jsonrpc": "2.0", "id": 1, "method": "system_ping", "params": {"echo": "canary", "echo": "canary"}}',
        '[{"canary": 1}, "canary", {"jsonrpc": "2.0", "id": 1, "method": "canary", "params": {"canary": 1}}]',
        '{"jsonrpc": "2.0", "id": 1, "method": "user_get", "params": {"user_id": "canary"}}',
        "[" * 100 + '"canary"' + "]" * 100,
    ]
    async with open_house(guarded) as house:
        for frame in frames:
            await house.operator.send(frame)
            await house.operator.receive()
        for unwelcome in ("x" * 300_000 + CANARY, CANARY.encode()):
            client = await house.client("operator")
            await client.send(unwelcome)
            await client.closed()
        assert_silent(log)


async def test_nothing_of_a_handshake_is_logged(guarded, log):
    forged: list[dict[str, str | None]] = [
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": "Basic canary"},
        {"Authorization": "canary"},
        {"Authorization": "Bearer canary\xff"},
        {"Sec-WebSocket-Protocol": "canary"},
        {"Sec-WebSocket-Protocol": "ledgerd.v1, ledgerd.bearer.canary"},
        {"Sec-WebSocket-Protocol": "ledgerd.v1, ledgerd.bearer.bGdkX2NhbmFyeQ"},
        {"Origin": "https://canary.example"},
        {"Host": "canary.example"},
        {"Sec-WebSocket-Version": "canary"},
        {"Connection": "canary"},
    ]
    async with open_house(guarded) as house:
        for headers in forged:
            status, _ = await handshake(house.listener.connect(), headers)
            assert status != 101 or "Sec-WebSocket" in str(headers)
        for broken in (
            b"canary\r\n\r\n",
            b"GET /canary HTTP/1.1\r\nHost: \xff\r\nAuthorization: Bearer canary\r\n\r\n",
        ):
            stream = house.listener.connect()
            await stream.send_all(broken)
            with trio.move_on_after(1):
                await stream.receive_some()
            await stream.aclose()
        assert {"connection_refused", "token_refused"} <= events(log)
        assert_silent(log)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def of_postgres(kind: type[asyncpg.PostgresError], message: str) -> asyncpg.PostgresError:
    fields = {
        "C": kind.sqlstate,
        "M": message,
        "D": f"Key (email)=({EMAIL}) already exists.",
        "H": "canary",
        "W": "canary",
    }
    error = asyncpg.PostgresError.new(fields, query="SELECT 'canary'")
    assert CANARY in str(error)
    return error


def failing(error: Exception) -> Callable[..., Any]:
    async def fail(*_: Any, **__: Any) -> Any:
        secret = PASSWORD  # a local variable of a frame in the traceback
        assert secret
        raise error

    return fail


FAULTS = [
    of_postgres(asyncpg.UniqueViolationError, 'duplicate key "canary"'),
    of_postgres(asyncpg.InvalidTextRepresentationError, 'invalid input syntax: "canary"'),
    of_postgres(asyncpg.RaiseError, "canary"),
    asyncpg.DataError(f"invalid input for query argument $1: {EMAIL!r}"),
    asyncpg.InterfaceError("canary"),
    ValueError(f"invalid literal: {PASSWORD}"),
    KeyError(EMAIL),
    UnicodeEncodeError("ascii", "canary", 0, 1, "canary"),
    RuntimeError({"params": {"password": PASSWORD}}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_bug_that_quotes_what_it_met_is_told_without_it(guarded, log, fault):
    async with open_house(guarded) as house:
        client = await house.client("operator")
        house.books.user = failing(fault)  # type: ignore[method-assign]
        await client.ask("user_get", {"user_id": 1})
        assert (await client.closed())[0] == 1011
        crashes = [json.loads(line) for line in log.getvalue().splitlines() if "session_crashed" in line]
        assert [type(fault).__name__ in line["exception"] for line in crashes] == [True]
        assert_silent(log)


async def post(house: House, **metadata: str) -> Any:
    person = await house.person()
    return await house.operator.refused(
        "credit", {"account_id": person.account_id, "amount": "1", "metadata": metadata}
    )


async def test_a_call_that_the_database_refuses_is_told_without_what_was_in_it(guarded, log):
    async with open_house(guarded) as house:
        for lane in house._generation.lanes:
            lane._statement = Statement(of_postgres(asyncpg.CheckViolationError, "canary"))
        assert (await post(house, canary="canary"))["data"]["code"] == "internal_error"
        assert "call_refused" in events(log)
        assert_silent(log)


async def test_races_that_are_lost_are_told_without_the_rows(guarded, log):
    async with open_house(guarded, statement_timeout_s=0.05) as house:
        person = await house.person()
        for lane in house._generation.lanes:
            for kind in (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError):
                lane._statement = Statement(of_postgres(kind, "deadlock detected"), then=lane._statement)
        await house.operator.call("credit", {"account_id": person.account_id, "amount": "1"})
        assert {"call_rerun", "deadlock"} <= events(log)
        assert_silent(log)


async def test_an_answer_that_cannot_be_given_is_told_without_it(guarded, log, monkeypatch):
    def broken(self: Unit, outcomes: Any) -> None:
        raise ValueError(CANARY, outcomes)

    async with open_house(guarded) as house:
        person = await house.person()
        client = await house.client("operator")
        monkeypatch.setattr(Unit, "answer", broken)
        await client.ask("credit", {"account_id": person.account_id, "amount": "1", "reference": CANARY})
        await until(partial(_told, log, "answer_failed"))
        monkeypatch.undo()
        assert_silent(log)


async def _told(log: io.StringIO, event: str) -> bool:
    await trio.lowlevel.checkpoint()
    return event in events(log)


class Statement:
    """A prepared statement that fails once and is then what it was, if it was."""

    def __init__(self, error: Exception, then: Any = None) -> None:
        self._error: Exception | None = error
        self._then = then

    async def fetchrow(self, *arguments: Any) -> Any:
        error = self._error
        if self._then is not None:
            self._error = None
        if error is not None:
            raise error
        return await self._then.fetchrow(*arguments)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:canary/canary@127.0.0.1:1/bank",
        "postgresql://me:canary#canary@127.0.0.1:1/bank",
        "postgresql://me:canary@127.0.0.1:1/bank",
        "canary://me:canary@127.0.0.1:1/bank",
        "postgresql://me@127.0.0.1:1/bank?password=canary",
        "postgresql://me:canary@127.0.0.1:1/bank?sslmode=canary",
        "canary",
    ],
)
async def test_a_connection_string_that_cannot_be_used_is_not_quoted(dsn):
    config = Config(dsn=dsn, connect_timeout_s=5)
    with pytest.raises(ExceptionGroup) as caught:
        async with open_generation(config, PostgresBooks()):
            raise AssertionError
    assert CANARY not in traceback_text(caught.value)
    (leaf,) = caught.value.exceptions
    while isinstance(leaf, ExceptionGroup):
        (leaf,) = leaf.exceptions
    assert CANARY not in str(leaf)


# -- the HTTP door -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def http_door() -> AsyncIterator[str]:
    """The URL of a side door."""
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_http(Config(http="127.0.0.1:0"), ready=lambda: (True, "ready"), task_status=task_status)

        yield str((await nursery.start(serve))[0])
        nursery.cancel_scope.cancel()
