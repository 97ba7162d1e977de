"""protocol/js/ledgerd.js, run by a real Node against the daemon."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio

from ledgerd_protocol.methods import METHODS
from tests.acceptance.javascript import CLIENT, NODE, arguments, environment, said_by


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


def test_the_client_knows_which_commands_need_an_id():
    (names,) = re.findall(r"const MONEY = new Set\(\[(.*?)\]\)", CLIENT.read_text(encoding="utf-8"), re.DOTALL)
    chosen_by_the_caller = {"transaction_cancel"}
    money = {name for name, method in METHODS.items() if method.money}
    assert set(re.findall(r"\w+", names)) == money - chosen_by_the_caller
