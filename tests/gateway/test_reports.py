"""The report over the wire: who sees what, how long an interval may be, and which cursors are good."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio

from ledgerd.engine.commands import ActorInfo
from ledgerd.engine.states import FailedCommand, ReportPlace
from ledgerd.gateway.methods.reports import ACCOUNTS_MAX
from ledgerd.storage import reports
from ledgerd.storage.commit_order import Snapshot
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.messages import REPORT_CURSOR_MAX
from tests.conftest import Database
from tests.gateway.fake_books import NOW, account, record, side
from tests.gateway.fakes import Client, Door, open_door
from tests.gateway.house import House, fresh_id, open_house

MINE, OTHERS = 11, 12


def time_ago(**passed: float) -> str:
    return (datetime.now(UTC) - timedelta(**passed)).isoformat()


def failed(number: int, **changes: Any) -> FailedCommand:
    made = FailedCommand(
        attempt_id=f"01890000-0000-7000-9000-{number:012}",
        transaction_id=f"01890000-0000-7000-8000-{number:012}",
        kind="debit",
        code=ErrorCode.INSUFFICIENT_FUNDS,
        amount=1250,
        currency="USD",
        scale=2,
        debit_account=MINE,
        credit_account=None,
        reference="order 7",
        reason="a lamp",
        created_at=NOW,
        actor=ActorInfo(token_id=9, user_id=1, scopes=("user",)),
    )
    return msgspec.structs.replace(made, **changes)


def items(number: int) -> list[Any]:
    return [
        failed(at) if at % 3 == 0 else record(f"01890000-0000-7000-8000-{at:012}", [side(MINE, 1, version=at)])
        for at in range(number, 0, -1)
    ]


async def read_all(client: Client, **params: Any) -> list[list[Any]]:
    """The items of all pages."""
    pages: list[list[Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await client.call("transaction_report", {**params, **cursor})
        pages.append(page["items"])
        if page["next_cursor"] is None:
            return pages
        cursor = {"cursor": page["next_cursor"]}


# -- what a page is --------------------------------------------------------------------------------------------------


async def test_a_refused_command_is_shown_with_what_it_said_and_why_it_was_refused() -> None:
    async with open_door() as door:
        door.books.reported = [failed(1)]
        (shown,) = (await (await door.user(1)).call("transaction_report"))["items"]
        assert shown == {
            "attempt_id": "01890000-0000-7000-9000-000000000001",
            "transaction_id": "01890000-0000-7000-8000-000000000001",
            "kind": "debit",
            "status": "failed",
            "error": "insufficient_funds",
            "amount": "12.50",
            "currency": "USD",
            "debit_account_id": MINE,
            "credit_account_id": None,
            "reference": "order 7",
            "reason": "a lamp",
            "created_at": NOW,
        }
        operator = await door.client(door.books.token("operator"))
        (shown,) = (await operator.call("transaction_report"))["items"]
        assert shown["actor"] == {"token_id": 9, "user_id": 1, "scopes": ["user"]}


@pytest.mark.parametrize(
    "changes", [{"amount": None}, {"scale": None, "currency": "XYZ"}, {"currency": None, "scale": None}]
)
async def test_a_refused_command_without_an_amount_of_a_currency_shows_null(changes: dict[str, Any]) -> None:
    async with open_door() as door:
        door.books.reported = [failed(1, **changes)]
        (shown,) = (await (await door.user(1)).call("transaction_report"))["items"]
        assert shown["amount"] is None
        assert shown["currency"] == changes.get("currency", "USD")


@pytest.mark.parametrize("limit", [1, 4, 10, 11, 1000])
async def test_pages_put_together_are_the_whole_report(limit: int) -> None:
    async with open_door() as door:
        door.books.reported = items(11)
        pages = await read_all(await door.user(1), limit=limit)
        shown = [item.get("attempt_id", item["transaction_id"]) for page in pages for item in page]
        assert shown == [getattr(item, "attempt_id", item.transaction_id) for item in door.books.reported]
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)


async def test_a_page_ends_early_rather_than_exceed_a_frame() -> None:
    async with open_door(frame_out_bytes_max=5_000) as door:
        door.books.reported = [failed(number, reason="é" * 250) for number in range(40, 0, -1)]
        client = await door.user(1)
        await client.ask("transaction_report", {"limit": 40})
        text = await client.connection.get_message()
        assert isinstance(text, str)
        assert len(text.encode()) <= 5_000
        assert sum(map(len, await read_all(client, limit=40))) == 40


async def test_a_page_may_be_short_or_empty_and_the_next_one_goes_on_where_it_looked() -> None:
    async with open_door() as door:
        door.books.report_edges = [None, "2026-11-20T11:00:00.000000Z", NOW]
        client = await door.user(1)
        assert await read_all(client) == [[], [], []]
        assert [asked["after"] for _, asked in door.books.asked] == [
            None,
            ReportPlace(NOW, None),
            ReportPlace("2026-11-20T11:00:00.000000Z", None),
        ]


async def test_totals_are_counted_once_and_stay_on_every_page() -> None:
    async with open_door() as door:
        door.books.reported = items(11)
        client = await door.user(1)
        first = await client.call("transaction_report", {"limit": 4, "with_total": True})
        assert (first["total_items"], first["total_pages"]) == (11, 3)
        door.books.reported = [failed(99), *door.books.reported]
        second = await client.call(
            "transaction_report", {"limit": 5, "cursor": first["next_cursor"], "with_total": True}
        )
        assert (second["total_items"], second["total_pages"]) == (11, 3)
        assert second["as_of"] == first["as_of"]
        assert [asked["count"] for _, asked in door.books.asked] == [True, False]
        without = await client.call("transaction_report", {"limit": 4})
        assert (without["total_items"], without["total_pages"]) == (None, None)


async def test_later_pages_are_read_with_the_snapshot_and_the_interval_of_the_first() -> None:
    async with open_door() as door:
        door.books.reported = items(11)
        client = await door.user(1)
        begins = time_ago(days=5)
        first = await client.call("transaction_report", {"limit": 4, "created_from": begins})
        door.books.snapshot = b"another"
        await client.call("transaction_report", {"limit": 4, "created_from": begins, "cursor": first["next_cursor"]})
        (_, one), (_, two) = door.books.asked
        assert (one["snapshot"], two["snapshot"]) == (None, b"snapshot")
        assert one["created_from"] == two["created_from"]
        assert isinstance(two["after"], ReportPlace)


# -- the interval ----------------------------------------------------------------------------------------------------


def spelled(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with times for how long ago they are."""
    now = datetime.now(UTC)
    return {
        name: (now - value).isoformat() if isinstance(value, timedelta) else value for name, value in params.items()
    }


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"created_from": timedelta(days=5, minutes=2)}, "/created_from"),
        ({"created_from": "0001-01-01T00:00:00Z"}, "/created_from"),
        ({"created_from": timedelta(days=1), "created_before": timedelta(days=2)}, "/created_before"),
        ({"created_from": timedelta(days=1), "created_before": timedelta(days=-4, minutes=-1)}, "/created_before"),
        ({"created_before": timedelta(days=5, minutes=2)}, "/created_before"),
        ({"created_before": "0001-01-01T00:00:00Z"}, "/created_before"),
        ({"created_from": "2026-02-30T00:00:00Z"}, "/created_from"),
        ({"created_before": "2026-02-30T00:00:00Z"}, "/created_before"),
        ({"created_from": "0001-01-01T00:00:00+10:00"}, "/created_from"),
        ({"created_from": "2026-03-07"}, "/created_from"),
        ({"created_before": 5}, "/created_before"),
        ({"status": "lost"}, "/status"),
        ({"account_id": 0}, "/account_id"),
        ({"account_id": 2**63}, "/account_id"),
        ({"user_id": 0}, "/user_id"),
        ({"user_id": "1"}, "/user_id"),
        ({"account_id": 11, "user_id": 1}, "/user_id"),
        ({"currency": "usd"}, "/currency"),
        ({"limit": 0}, "/limit"),
        ({"limit": 1001}, "/limit"),
        ({"with_total": 1}, "/with_total"),
        ({"cursor": "A" * (REPORT_CURSOR_MAX + 1)}, "/cursor"),
        ({"cursor": 5}, "/cursor"),
        ({"kind": "debit"}, "/kind"),
    ],
)
async def test_a_parameter_out_of_its_range_is_refused_with_its_place(params: dict[str, Any], pointer: str) -> None:
    async with open_door() as door:
        error = await (await door.user(1)).refused("transaction_report", spelled(params))
        assert error["code"] == -32602
        assert pointer in [problem["pointer"] for problem in error["data"]["errors"]]
        assert not door.books.asked


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"created_from": timedelta(days=5)},
        {"created_from": timedelta(days=5, seconds=50)},
        {"created_before": timedelta(days=4.9)},
        {"created_before": "9999-12-31T23:59:59.999999Z"},
        {"created_from": timedelta(days=-1)},
        {"created_from": "2999-01-01T00:00:00Z", "created_before": "2999-01-06T00:00:00Z"},
        {"created_from": "2999-01-01T00:00:00Z", "created_before": "2999-01-01T00:00:00Z"},
    ],
)
async def test_an_interval_of_five_days_or_less_is_taken(params: dict[str, Any]) -> None:
    async with open_door() as door:
        params = spelled(params)
        await (await door.user(1)).call("transaction_report", params)
        ((_, asked),) = door.books.asked
        begins = datetime.fromisoformat(asked["created_from"])
        if "created_from" not in params:
            ends = datetime.fromisoformat(params.get("created_before", NOW))
            expected = max(datetime.now(UTC), ends if "created_before" in params else begins) - timedelta(days=5)
            assert abs(begins - expected) < timedelta(minutes=1)


# -- whose it is -----------------------------------------------------------------------------------------------------


async def test_what_is_looked_at_is_what_the_caller_may_see() -> None:
    async with open_door() as door:

        async def scope(client: Client, **params: Any) -> tuple[Any, bool, int | None, int | None]:
            await client.call("transaction_report", params)
            looked = door.books.asked[-1][0]
            return looked.accounts, looked.all_attempts, looked.user_id, looked.attempts_of

        user, limited = await door.user(1), await door.user(1, account_id=13)
        for scopes in ("service", "operator"):
            assert await scope(await door.client(door.books.token(scopes))) == (None, True, None, None)
        service = await door.service()
        assert await scope(service, account_id=OTHERS) == ((OTHERS,), True, None, OTHERS)
        assert await scope(service, user_id=1, currency="EUR") == ((13,), True, None, 13)
        assert await scope(user) == ((MINE, 13), False, 1, None)
        assert await scope(user, account_id=13) == ((13,), False, 1, 13)
        assert await scope(user, currency="EUR") == ((13,), False, 1, 13)
        assert await scope(limited) == ((13,), False, 1, 13)
        assert await scope(limited, user_id=1) == ((13,), False, 1, 13)
        assert await scope(await door.client(door.books.token("service", account_id=MINE))) == (
            (MINE,),
            False,
            None,
            MINE,
        )
        assert await scope(await door.client(door.books.token("read"))) == ((), False, None, None)
        for client, params in (
            (user, {"account_id": OTHERS}),
            (user, {"user_id": 2}),
            (limited, {"account_id": MINE}),
            (service, {"account_id": 999}),
        ):
            assert (await client.refused("transaction_report", params))["data"]["resource"] == "account"
        assert (await user.refused("transaction_report", {"account_id": 13, "currency": "USD"}))["code"] == 3002
        assert (await service.refused("transaction_report", {"currency": "USD"}))["code"] == -32602


async def test_a_report_needs_a_scope_that_reads() -> None:
    async with open_door() as door:
        assert (await (await door.client()).refused("transaction_report"))["code"] == 1001
        topup = await door.client(door.books.token("topup", user_id=1))
        assert (await topup.refused("transaction_report"))["code"] == 1004


async def test_a_user_with_very_many_accounts_is_asked_to_name_one() -> None:
    async with open_door() as door:
        for number in range(ACCOUNTS_MAX):
            door.books.states[1000 + number] = account(1000 + number, 1, currency=f"X{number}")
        error = await (await door.user(1)).refused("transaction_report")
        assert [problem["pointer"] for problem in error["data"]["errors"]] == ["/account_id"]


# -- cursors ---------------------------------------------------------------------------------------------------------


async def first_cursor(door: Door, client: Client, **params: Any) -> str:
    door.books.reported = items(11)
    return str((await client.call("transaction_report", {"limit": 4, **params}))["next_cursor"])


async def refused_cursor(client: Client, **params: Any) -> bool:
    return bool((await client.refused("transaction_report", params))["code"] == 2010)


async def test_a_cursor_is_good_for_its_report_and_filters_only() -> None:
    async with open_door() as door:
        client = await door.user(1)
        begins = time_ago(days=2)
        cursor = await first_cursor(door, client, created_from=begins, status="posted")
        same = {"created_from": begins, "status": "posted", "cursor": cursor}
        await client.call("transaction_report", {**same, "limit": 7, "with_total": True})
        for other in (
            {"status": "failed"},
            {"created_from": time_ago(days=1)},
            {"created_before": NOW},
            {"account_id": 13},
        ):
            assert await refused_cursor(client, **{**same, **other})
        assert await refused_cursor(client, cursor=cursor)
        data = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        data[-3] ^= 1
        forged = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        for strange in (forged, "", "!!!", "é", "AAAA" * 20):
            assert await refused_cursor(client, **{**same, "cursor": strange})


async def test_a_cursor_of_another_list_is_refused_by_the_report_and_the_reports_by_the_list() -> None:
    async with open_door() as door:
        client = await door.user(1)
        door.books.listed = [
            record(f"01890000-0000-7000-8000-{version:012}", [side(MINE, 1, version=version)])
            for version in range(1, 9)
        ]
        listed = (await client.call("transaction_list", {"limit": 2}))["next_cursor"]
        cursor = await first_cursor(door, client)
        assert await refused_cursor(client, cursor=listed)
        assert (await client.refused("transaction_list", {"cursor": cursor}))["code"] == 2010


@pytest.mark.parametrize("method", ["transaction_report", "transaction_list"])
async def test_a_cursor_is_good_for_the_same_view_of_things_only(method: str) -> None:
    async with open_door() as door:
        door.books.reported = items(11)
        door.books.listed = [
            record(f"01890000-0000-7000-8000-{version:012}", [side(MINE, 1, version=version)])
            for version in range(1, 9)
        ]
        client = await door.user(1)
        asked = {"account_id": MINE, "limit": 2}
        cursor = (await client.call(method, asked))["next_cursor"]
        again = {**asked, "cursor": cursor}
        await (await door.user(1, "read")).call(method, again)
        for other in (await door.user(1, account_id=MINE), await door.service()):
            assert (await other.refused(method, again))["code"] == 2010
        assert (await (await door.user(2)).refused(method, again))["code"] == 2001


async def test_a_cursor_is_refused_after_a_restore_and_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_door() as door:
        client = await door.user(1)
        cursor = await first_cursor(door, client)
        door.books.epoch = "another"
        assert await refused_cursor(client, cursor=cursor)
        door.books.epoch = "e1"
        await client.call("transaction_report", {"cursor": cursor})
        monkeypatch.setattr("ledgerd.gateway.methods.reports.now_text", lambda: "2020-01-01T00:00:00.000000Z")
        outdated = await first_cursor(door, client)
        assert await refused_cursor(client, cursor=outdated)


async def test_a_hundred_open_transactions_fit_into_a_cursor_and_a_thousand_are_too_many() -> None:
    async with open_door() as door:
        client = await door.user(1)
        far = [2**40 + number * 2**28 for number in range(100)]
        door.books.snapshot = reports.packed(Snapshot(far[0], far[-1] + 1, tuple(far)))
        assert len(await first_cursor(door, client, with_total=True)) <= REPORT_CURSOR_MAX
        near = range(2**40, 2**40 + 1_000_000, 1000)
        door.books.snapshot = reports.packed(Snapshot(near[0], near[-1] + 1, tuple(near)))
        door.books.reported = items(11)
        error = await client.refused("transaction_report", {"limit": 4})
        assert (error["data"]["code"], error["data"]["retryable"]) == ("overloaded", True)
        assert (await client.call("transaction_report", {"limit": 100}))["next_cursor"] is None


# -- on a real database ----------------------------------------------------------------------------------------------


async def a_busy_day(house: House) -> Any:
    """Two people who move money, some of it more than they have; the first of them."""
    ada, bob = await house.person("100.00"), await house.person("50.00")
    await ada.client.call(
        "transfer", {"destination_account_id": bob.account_id, "amount": "10.00", "reference": "lunch"}
    )
    await ada.client.refused("debit", {"amount": "999.00", "reason": "a yacht"})
    await bob.client.refused("transfer", {"destination_account_id": ada.account_id, "amount": "999.00"})
    await house.service.refused("debit", {"account_id": ada.account_id, "amount": "999.00"})
    await ada.client.call("transaction_cancel", {"transaction_id": fresh_id()})
    await ada.client.call("hold_place", {"amount": "5.00"})
    return ada


async def test_users_see_their_transactions_and_their_own_attempts_and_operators_everything(database: Database) -> None:
    async with open_house(database) as house:
        ada = await a_busy_day(house)

        async def told(client: Client, **params: Any) -> list[tuple[str, str, str | None]]:
            page = await client.call("transaction_report", params)
            return [(item["kind"], item["status"], item.get("error")) for item in page["items"]]

        mine = [
            ("hold", "pending", None),
            ("cancel", "cancelled", None),
            ("debit", "failed", "insufficient_funds"),
            ("transfer", "posted", None),
            ("credit", "posted", None),
        ]
        assert await told(ada.client) == mine
        assert await told(ada.client, account_id=ada.account_id) == mine
        assert await told(await house.client("read", user_id=ada.user_id, account_id=ada.account_id)) == mine
        everything = await told(house.operator)
        assert len(everything) == 8
        assert await told(house.service) == everything
        assert len(await told(house.service, account_id=ada.account_id)) == 6
        assert await told(ada.client, status="failed") == [mine[2]]
        assert await told(ada.client, status="pending") == [mine[0]]


async def test_what_became_of_a_hold_since_is_shown_on_the_next_page(database: Database) -> None:
    async with open_house(database) as house:
        ada = await house.person("100.00")
        hold_id = (await ada.client.call("hold_place", {"amount": "5.00"}))["transaction_id"]
        await ada.client.call("debit", {"amount": "1.00"})
        first = await ada.client.call("transaction_report", {"limit": 1, "with_total": True})
        await house.service.call("hold_capture", {"hold_id": hold_id})
        rest = await ada.client.call("transaction_report", {"cursor": first["next_cursor"]})
        assert [(item["kind"], item["status"]) for item in rest["items"]] == [
            ("hold", "captured"),
            ("credit", "posted"),
        ]
        assert (first["total_items"], rest["total_items"], rest["total_pages"]) == (3, 3, 1)


async def test_a_report_is_of_one_moment_while_others_write(database: Database) -> None:
    async with open_house(database) as house:
        people = [await house.person("100.00") for _ in range(3)]
        for person in people:
            for _ in range(8):
                await person.client.call("debit", {"amount": "0.01"})
        over = trio.Event()

        async def write(client: Client) -> None:
            while not over.is_set():
                await client.call("debit", {"amount": "0.01"})
                await client.refused("debit", {"amount": "9999.00"})

        async with trio.open_nursery() as nursery:
            for person in people:
                nursery.start_soon(write, await house.client("user", user_id=person.user_id))
            for limit in (3, 10):
                before = {item["transaction_id"] for page in await read_all(house.service, limit=1000) for item in page}
                first = await house.operator.call("transaction_report", {"limit": limit, "with_total": True})
                seen, cursor = list(first["items"]), first["next_cursor"]
                while cursor is not None:
                    page = await house.operator.call("transaction_report", {"limit": limit, "cursor": cursor})
                    seen += page["items"]
                    cursor = page["next_cursor"]
                ids = [item.get("attempt_id", item["transaction_id"]) for item in seen]
                assert len(ids) == len(set(ids)) == first["total_items"]
                assert before <= {item["transaction_id"] for item in seen}
                assert all(item["created_at"] <= seen[0]["created_at"] for item in seen)
            over.set()


@pytest.mark.parametrize(
    "params",
    [
        {"created_before": "9999-12-31T23:59:59.999999Z"},
        {"created_from": "9999-12-31T23:59:59.999999Z"},
        {"created_from": "9999-12-31T00:00:00Z", "created_before": "9999-12-31T23:59:59.999999Z"},
        {"account_id": 1, "status": "cancelled", "with_total": True},
        {"limit": 1000, "with_total": True, "status": "expired"},
        {"account_id": 2**63 - 1},
        {"user_id": 2**63 - 1},
    ],
)
async def test_nothing_that_may_be_asked_is_an_internal_error(database: Database, params: dict[str, Any]) -> None:
    async with open_house(database) as house:
        await house.person("1.00")
        await house.service.ask("transaction_report", params)
        reply = await house.service.receive()
        assert reply.get("error", {}).get("code", 0) in (0, 2001)
