"""protocol/js/ledgerd.js against a server that loses connections, refuses, and sends feeds that are not complete."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import trio

from tests.acceptance.javascript import Peer, arguments, environment, said_by, serving


def account_7(version: int, balance: str, origin: str = "snapshot") -> dict[str, Any]:
    state = {"version": version, "balance": balance, "held": "0.00", "available": balance, "currency": "USD"}
    return {"account_id": 7, "from": origin, **state}


def start(*accounts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "start", "epoch": "e7c1", "accounts": list(accounts)}


def update(version: int, balance: str, change: str, account_id: int = 7) -> dict[str, Any]:
    stands = {
        **account_7(version, balance),
        "from": None,
        "account_id": account_id,
        "balance_change": change,
        "held_change": "0.00",
    }
    return {"type": "update", **stands, "transaction_id": "x", "kind": "debit", "created_at": "2026-03-07T12:30:00Z"}


LIVE = {"type": "live"}
SNAPSHOT = [start(account_7(41, "90.00")), LIVE]
RESUMED = [start(account_7(43, "70.00", "resumed"))]

TAMPERED = {
    "a version is missing": (None, [*SNAPSHOT, update(43, "80.00", "-10.00")]),
    "a version came again": (None, [*SNAPSHOT, update(42, "80.00", "-10.00"), update(42, "80.00", "-10.00")]),
    "balance does not add up": (None, [*SNAPSHOT, update(42, "80.00", "-10.01")]),
    "an update came before its start": (None, [*SNAPSHOT, update(42, "80.00", "-10.00", account_id=8)]),
    "an update was lost before a heartbeat": (None, [*SNAPSHOT, {"type": "heartbeat", "versions": {"7": 42}}]),
    "live before all was caught up": (42, [*RESUMED, LIVE]),
    "resumed where this client never was": (44, RESUMED),
    "one version with two values of balance": (42, [*RESUMED, update(43, "70.01", "-10.00")]),
}

FOLLOW_7 = """
const client = await connect(url, { token });
const options = { account_ids: [7] };
if (process.env.HAVE) options.since = { epoch: "e7c1", versions: { 7: Number(process.env.HAVE) } };
try {
  for await (const event of client.subscribe("balances", options)) if (event.type === "update") say(event.version);
} catch (error) {
  say(wrong(error));
}
client.close();
"""


@pytest.mark.parametrize("what", TAMPERED)
async def test_a_feed_that_was_tampered_with_throws(what, monkeypatch):
    have, events = TAMPERED[what]
    monkeypatch.setenv("HAVE", str(have or ""))
    left = trio.Event()

    async def behave(peer: Peer) -> None:
        await peer.answer(await peer.asked(), "sub_1")
        await peer.push(*events)
        assert (await peer.asked())["method"] == "ledger_unsubscribe"
        left.set()

    async with serving(behave) as url:
        *_, error = await said_by(FOLLOW_7, url)
        await left.wait()
    assert (error["kind"], error["accountId"] in (7, 8)) == ("FeedGap", True)
    assert what in error["message"]


async def test_a_transaction_of_two_followed_accounts_is_checked_on_both_sides():
    def entry(account_id: int, change: str, balance: str) -> dict[str, Any]:
        changes = {"balance_change": change, "held_change": "0.00"}
        return {"account_id": account_id, "version": 42, "balance": balance, "held": "0.00", **changes}

    async def behave(peer: Peer) -> None:
        await peer.answer(await peer.asked(), "sub_1")
        await peer.push(start(account_7(41, "90.00"), {**account_7(41, "0.00"), "account_id": 8}), LIVE)
        entries = [entry(7, "-10.00", "80.00"), entry(8, "10.00", "11.00"), entry(9, "1.00", "1.00")]
        await peer.push({"type": "transaction", "transaction": {"entries": entries}})

    async with serving(behave) as url:
        (error,) = await said_by(FOLLOW_7, url)
    assert (error["kind"], error["accountId"]) == ("FeedGap", 8)


async def test_a_gap_that_no_handler_takes_ends_a_node_program_with_an_error():
    async def behave(peer: Peer) -> None:
        await peer.answer(await peer.asked(), "sub_1")
        await peer.push(*SNAPSHOT, update(43, "80.00", "-10.00"))

    script = 'const client = await connect(url, { token }); client.subscribe("balances", {}, { onUpdate: say });'
    async with serving(behave) as url:
        done = await trio.run_process(
            arguments(script), env=environment(url, ""), capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 1
    assert b"FeedGap: account 7: a version is missing" in done.stderr


async def test_after_a_lost_connection_a_feed_resumes_after_what_has_arrived():
    asked: list[dict[str, Any]] = []

    async def behave(peer: Peer) -> None:
        asked.append((request := await peer.asked())["params"]["options"])
        await peer.answer(request, "sub_1")
        if peer.number == 1:
            await peer.push(*SNAPSHOT, update(42, "80.00", "-10.00"), {"type": "of a newer daemon"})
            await peer.close(4503)
        else:
            await peer.push(start(account_7(43, "70.00", "resumed")), update(43, "70.00", "-10.00"), LIVE)
            await peer.push({"type": "closed", "code": "session_expired"})

    async with serving(behave) as url:
        *versions, error = await said_by(FOLLOW_7, url)
    assert versions == [42, 43]
    assert error["name"] == "session_expired"
    assert asked == [{"account_ids": [7]}, {"account_ids": [7], "since": {"epoch": "e7c1", "versions": {"7": 42}}}]


async def test_a_feed_of_everything_resumes_at_its_position_and_drops_what_comes_again():
    asked: list[dict[str, Any]] = []

    async def behave(peer: Peer) -> None:
        asked.append((request := await peer.asked())["params"]["options"])
        await peer.answer(request, "sub_1")
        await peer.push({**start(), "position": f"p{peer.number}"})
        if peer.number == 1:
            await peer.push({**update(42, "80.00", "-10.00"), "position": "p2"})
            await peer.close(4503)
        else:
            await peer.push(update(42, "80.00", "-10.00"), update(43, "70.00", "-10.00"), update(45, "50.00", "-10.00"))

    async with serving(behave) as url:
        *versions, error = await said_by(FOLLOW_7.replace("{ account_ids: [7] }", "{ all: true }"), url)
    assert versions == [42, 43]
    assert (error["kind"], error["expected"], error["received"]) == ("FeedGap", 44, 45)
    assert asked == [{"all": True}, {"all": True, "since": {"epoch": "e7c1", "position": "p2"}}]


async def test_a_feed_that_the_daemon_ends_for_a_reason_that_passes_goes_on():
    async def behave(peer: Peer) -> None:
        await peer.answer(await peer.asked(), "sub_1")
        await peer.push(*SNAPSHOT, {"type": "closed", "code": "overloaded"})
        request = await peer.asked()
        assert request["params"]["options"]["since"]["versions"] == {"7": 41}
        await peer.refuse(request, 8004, "overloaded", retryable=True, applied=False)
        await peer.answer(await peer.asked(), "sub_2")
        await peer.push(*RESUMED, update(42, "80.00", "-10.00"), update(43, "70.00", "-10.00"), subscription="sub_2")
        await peer.push({"type": "closed", "code": "permission_denied"}, subscription="sub_2")

    async with serving(behave) as url:
        *versions, error = await said_by(FOLLOW_7, url)
    assert versions == [42, 43]
    assert error["name"] == "permission_denied"


async def test_what_comes_before_the_reply_to_unsubscribe_is_not_delivered_and_nothing_after_it():
    async def behave(peer: Peer) -> None:
        await peer.answer(await peer.asked(), "sub_1")
        await peer.push(*SNAPSHOT)
        request = await peer.asked()
        await peer.push(update(42, "80.00", "-10.00"))
        await peer.send(method="ledger_session", params={"type": "expiring"})
        await peer.answer(request, True)
        await peer.push(update(43, "70.00", "-10.00"))
        await peer.answer(await peer.asked(), {"time": "now"})

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token, onNotice: say });
            const feed = client.subscribe("balances", {}, {
              onUpdate: say,
              onLive: () => feed.close().then(async () => {
                say("closed");
                say(await client.call("system_ping"));
                client.close();
              }),
            });
            """,
            url,
        )
    assert said == [{"type": "expiring"}, "closed", {"time": "now"}]


async def test_a_money_command_is_sent_again_as_the_same_bytes_with_the_id_it_was_given():
    sent: list[dict[str, Any]] = []

    async def behave(peer: Peer) -> None:
        sent.append(await peer.asked())
        if peer.number < 3:
            await peer.close(1012)
        else:
            await peer.answer(sent[-1], {"status": "posted"})

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token });
            say(await client.call("credit", { account_id: 7, amount: "1.00" }));
            client.close();
            """,
            url,
        )
    assert said == [{"status": "posted"}]
    assert sent[0] == sent[1] == sent[2]
    assert UUID(sent[0]["params"]["transaction_id"]).version == 7


@pytest.mark.parametrize("first", ["lost", "answered as unknown"])
async def test_a_refusal_after_an_unsure_sending_does_not_claim_that_nothing_happened(first):
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number == 1 and first == "lost":
            await peer.close(1001)
            return
        if first != "lost":
            await peer.refuse(request, 8008, "unavailable", retryable=True, applied=None)
            request = await peer.asked()
        await peer.refuse(request, 3001, "insufficient_funds", retryable=True, applied=False)

    async with serving(behave) as url:
        (error,) = await said_by(
            """
            const client = await connect(url, { token });
            await client.call("debit", { account_id: 7, amount: "1.00" }).catch((error) => say(wrong(error)));
            client.close();
            """,
            url,
        )
    assert (error["name"], error["applied"]) == ("insufficient_funds", None)


async def test_the_members_of_a_batch_refused_after_a_lost_sending_do_not_claim_it_either():
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number == 1:
            await peer.close(1001)
            return
        refused = {"error": {"code": 8008, "message": "Away.", "data": {"code": "unavailable", "applied": False}}}
        await peer.answer(request, {"outcomes": [{"result": {"status": "posted"}}, refused]})

    async with serving(behave) as url:
        (batch,) = await said_by(
            """
            const client = await connect(url, { token });
            const items = [1, 2].map((id) => ({ method: "debit", params: { account_id: id, amount: "1.00" } }));
            say(await client.call("transaction_batch", { items }));
            client.close();
            """,
            url,
        )
    assert batch["outcomes"][0] == {"result": {"status": "posted"}}
    assert batch["outcomes"][1]["error"]["data"]["applied"] is None


async def test_an_answer_that_may_pass_is_asked_again_with_the_same_id():
    sent: list[dict[str, Any]] = []

    async def behave(peer: Peer) -> None:
        sent.append(await peer.asked())
        await peer.refuse(sent[-1], 8001, "rate_limited", retryable=True, applied=False, retry_after_ms=1)
        sent.append(await peer.asked())
        await peer.refuse(sent[-1], 8008, "unavailable", retryable=True, applied=None)
        sent.append(await peer.asked())
        await peer.answer(sent[-1], {"outcomes": [{"result": {"status": "posted"}}]})

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token });
            const item = { method: "credit", params: { account_id: 7, amount: "1.00" } };
            say(await client.call("transaction_batch", { items: [item] }));
            client.close();
            """,
            url,
        )
    assert said == [{"outcomes": [{"result": {"status": "posted"}}]}]
    assert sent[0] == sent[1] == sent[2]
    assert UUID(sent[0]["params"]["batch_id"]).version == 7


async def test_what_has_no_id_is_not_sent_again():
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number == 1:
            assert request["method"] == "user_register"
            await peer.close(1012)
        else:
            await peer.answer(request, request["method"])

    async with serving(behave) as url:
        (error, then) = await said_by(
            """
            const client = await connect(url, { token });
            await client.call("user_register", { name: "Ann" }).catch((error) => say(wrong(error)));
            say(await client.call("system_ping"));
            client.close();
            """,
            url,
        )
    assert (error["kind"], error["method"], error["transactionId"]) == ("OutcomeUnknown", "user_register", None)
    assert then == "system_ping"


@pytest.mark.parametrize("code", [4400, 4401, 4403, 4408, 4429, 1002, 1009])
async def test_a_close_code_that_forbids_it_is_not_followed_by_another_connection(code):
    connections: list[int] = []

    async def behave(peer: Peer) -> None:
        connections.append(peer.number)
        await peer.asked()
        await peer.close(code)

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token, delayMinMs: 1 });
            const feed = client.subscribe("balances");
            await feed.next().catch((error) => say(wrong(error)));
            await client.call("system_ping").catch((error) => say(wrong(error)));
            """,
            url,
        )
    assert [(error["kind"], error["code"]) for error in said] == [("ConnectionEnded", code)] * 2
    assert connections == [1]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 4503, 4504])
async def test_a_close_code_that_allows_it_is_followed_by_another_connection(code):
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number == 1:
            await peer.close(code)
        else:
            await peer.answer(request, peer.number)

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token });
            say(await client.call("system_ping"));
            client.close();
            """,
            url,
        )
    assert said == [2]


async def test_a_connection_without_a_sign_of_life_is_given_up():
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number > 1:
            await peer.answer(request, peer.number)

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { token, silenceMs: 200 });
            say(await client.call("system_ping"));
            client.close();
            """,
            url,
        )
    assert said[0] >= 2


async def test_session_notices_are_handed_on():
    async def behave(peer: Peer) -> None:
        await peer.send(method="ledger_session", params={"type": "expiring"})

    async with serving(behave) as url:
        said = await said_by(
            """
            const client = await connect(url, { onNotice: (notice) => { say(notice); client.close(); } });
            """,
            url,
        )
    assert said == [{"type": "expiring"}]


async def test_a_daemon_that_is_not_there_and_a_missing_websocket_are_said(free_port):
    said = await said_by(
        """
        await connect(url, { token }).catch((error) => say(wrong(error)));
        delete globalThis.WebSocket;
        await connect(url, { token }).catch((error) => say(wrong(error)));
        """,
        f"ws://127.0.0.1:{free_port}/",
    )
    assert [error["kind"] for error in said] == ["CannotConnect", "TypeError"]
    assert "connect(url, {WebSocket})" in said[1]["message"]
