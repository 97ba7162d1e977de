"""A row that somebody altered by hand: `ledgerd verify` names it, and the daemon tells of it in every way it has."""

from __future__ import annotations

import signal
import urllib.request
from collections.abc import Iterator

import msgspec
import pytest
import trio

from ledgerd_protocol.client import open_client
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import AlertRaised, Live, Start
from tests.acceptance.owner import ask, fetch

LOOK_S = "0.2"


def metric(http_url: str, name: str) -> float:
    with urllib.request.urlopen(f"{http_url.rstrip('/')}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def mended(cluster) -> Iterator[list[str]]:
    """Statements that undo the damage, for the tests that follow on this database."""
    statements: list[str] = []
    yield statements
    for statement in statements:
        fetch(cluster.dsn, statement)


async def test_an_advance_that_does_not_add_up_is_told_in_the_log_by_a_metric_on_alerts_and_by_verify(
    serve, cluster, ledgerd, mended
):
    running = serve(LEDGERD_RECONCILE_INTERVAL_S=LOOK_S)
    http_url = msgspec.json.decode(running.said[-1])["http"]
    async with open_client(running.url, token=running.token) as client:
        account = (await client.call("user_register", name="Ann")).account.account_id
        made = await client.call("advance_request", account_id=account, amount="120.00")
        async with client.subscribe("alerts") as early:
            assert isinstance(await anext(early), Start)
            assert isinstance(await anext(early), Live)
            assert metric(http_url, "ledgerd_alerts_total{") == 0
            damage = "UPDATE ledgerd.advances SET outstanding = outstanding {} 1 WHERE advance_id = '{}'"
            mended.append(damage.format("+", made.advance_id))
            await ask(cluster.dsn, damage.format("-", made.advance_id))

            with trio.fail_after(20):
                alert = await anext(early)
            assert isinstance(alert, AlertRaised)
            assert (alert.alert, alert.advance_id) == ("advance_mismatch", made.advance_id)
            assert "outstanding is 11999" in alert.detail
            # Whoever comes late is told what is still so.
            async with client.subscribe("alerts") as late:
                assert [await anext(late) for _ in range(3)][2] == alert

    done = ledgerd("verify", LEDGERD_DSN=cluster.daemon_dsn)
    assert done.returncode == 1
    assert "BROKEN    advances" in done.stdout
    assert made.advance_id in done.stdout
    assert sum(line.startswith("ok ") for line in done.stdout.splitlines()) == 12
    assert done.stderr.startswith("ledgerd: ")
    assert "advances" in done.stderr

    assert metric(http_url, 'ledgerd_alerts_total{alert="advance_mismatch"}') == 1
    running.signal(signal.SIGTERM)
    said = [msgspec.json.decode(line) for line in running.output.whole().splitlines()]
    errors = [line for line in said if line["level"] == "error"]
    assert [(line["event"], line["advance_id"]) for line in errors] == [("advance_mismatch", made.advance_id)]


async def test_alerts_are_for_operators_alone_and_of_no_account(serve):
    running = serve()
    async with open_client(running.url, token=running.token) as client:
        made = await client.call("user_register", name="Bob")
        service = (await client.call("token_create", scopes=["service"])).token
    refusals = {}
    for name, token, options in (
        ("user", made.token, {}),
        ("service", service, {}),
        ("accounts", running.token, {"account_ids": [made.account.account_id]}),
        ("all", running.token, {"all": True}),
        ("since", running.token, {"since": {"epoch": "e", "versions": {1: 1}}}),
        ("latest", running.token, {"mode": "latest"}),
    ):
        async with open_client(running.url, token=token) as client:
            with pytest.raises(LedgerError) as refused:
                async with client.subscribe("alerts", **options) as feed:
                    await anext(feed)
            refusals[name] = refused.value.code
    assert refusals == {
        **dict.fromkeys(("user", "service"), ErrorCode.PERMISSION_DENIED),
        **dict.fromkeys(("accounts", "all", "since", "latest"), ErrorCode.INVALID_PARAMS),
    }


def test_verify_of_a_sound_database_says_so_in_lines_and_in_json(serve, cluster, ledgerd, call):
    running = serve()
    ann, bob = (call(running, "user_register", name=name)["account"]["account_id"] for name in ("Ann", "Bob"))
    call(running, "credit", account_id=ann, amount="10.00")
    call(running, "transfer", source_account_id=ann, destination_account_id=bob, amount="2.50")
    # While the daemon runs, by its own role and by the owner's.
    for dsn in (cluster.daemon_dsn, cluster.dsn):
        done = ledgerd("verify", "--dsn", dsn)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert [line.startswith("ok ") for line in lines] == [True] * 13 + [False]
        assert lines[-1].startswith("looked at ")
        assert done.stderr == ""
    done = ledgerd("verify", "--json", LEDGERD_DSN=cluster.daemon_dsn)
    report = msgspec.json.decode(done.stdout)
    assert report["ok"] is True
    assert report["entries"] >= 3
    assert {check["name"] for check in report["checks"]} >= {"conservation", "balances", "versions", "advances"}


def test_verify_names_the_account_in_lines_and_in_json(serve, cluster, ledgerd, call, mended):
    running = serve()
    account = call(running, "user_register", name="Cat")["account"]["account_id"]
    call(running, "credit", account_id=account, amount="10.00")
    mended.append(f"UPDATE ledgerd.accounts SET balance = balance - 1 WHERE account_id = {account}")
    fetch(cluster.dsn, f"UPDATE ledgerd.accounts SET balance = balance + 1 WHERE account_id = {account}")

    done = ledgerd("verify", LEDGERD_DSN=cluster.daemon_dsn)
    assert done.returncode == 1
    assert f"account {account}: the balance is 1001, its entries give 1000" in done.stdout
    assert done.stderr == "ledgerd: 2 differences: conservation, balances\n"
    done = ledgerd("verify", "--json", LEDGERD_DSN=cluster.daemon_dsn)
    assert done.returncode == 1
    broken = {check["name"]: check for check in msgspec.json.decode(done.stdout)["checks"] if check["differences"]}
    assert broken["balances"]["shown"][0]["account_id"] == account


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "LEDGERD_DSN"),
        (("--dsn", "postgresql://nobody@127.0.0.1:1/nothing"), 3, "cannot connect to the database"),
        (("--dsn", "EMPTY"), 1, "has no ledger"),
    ],
)
def test_what_verify_cannot_do_is_said_in_a_sentence(cluster, ledgerd, arguments, code, says):
    done = ledgerd("verify", *(cluster.dsn_of("postgres") if word == "EMPTY" else word for word in arguments))
    assert says in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
