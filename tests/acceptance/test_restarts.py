"""A daemon is killed without warning and another takes its place: nothing is posted twice, no change is missed."""

from __future__ import annotations

import signal
import subprocess
import sys
from decimal import Decimal

import trio
import uuid_utils

from ledgerd_protocol.call import OutcomeUnknown
from ledgerd_protocol.client import Client, open_client
from ledgerd_protocol.connection import CannotConnect, Retry
from ledgerd_protocol.errors import ErrorCode, LedgerError

PATIENT = Retry(first_connect_s=30, reconnect_s=120, call_s=120)
TRANSFERS = 300
KILLED_AFTER = (60, 160)


async def two_accounts(operator: Client) -> tuple[int, int]:
    first = (await operator.call("user_register", name="Ann")).account.account_id
    second = (await operator.call("user_register", name="Bob")).account.account_id
    await operator.credit(account_id=first, amount="1000.00", currency="USD")
    return first, second


async def test_a_killed_daemon_costs_no_money_and_no_event(serve, free_port, new_auditor):
    address = f"127.0.0.1:{free_port}"
    daemon = serve(address)
    sent: list[str] = []

    async def pay(client: Client, source: int, destination: int, ids: list[str]) -> None:
        for transaction_id in ids:
            await client.transfer(
                transaction_id=transaction_id,
                source_account_id=source,
                destination_account_id=destination,
                amount="0.50",
                currency="USD",
            )
            sent.append(transaction_id)

    async with open_client(daemon.url, token=daemon.token, retry=PATIENT) as client:
        ann, bob = await two_accounts(client)
        auditor = new_auditor()
        async with client.subscribe("balances", account_ids=[ann, bob]) as feed, trio.open_nursery() as nursery:
            await nursery.start(auditor.run, feed)
            ids = [str(uuid_utils.uuid7()) for _ in range(TRANSFERS)]
            async with trio.open_nursery() as payers:
                for lane in range(10):
                    payers.start_soon(pay, client, ann, bob, ids[lane::10])
                for goal in KILLED_AFTER:
                    await auditor.until(bob, goal)
                    await trio.to_thread.run_sync(daemon.signal, signal.SIGKILL)
                    daemon = await trio.to_thread.run_sync(serve, address)
            assert sorted(sent) == sorted(ids)
            await auditor.until(ann, 1 + TRANSFERS)
            await auditor.until(bob, TRANSFERS)
            nursery.cancel_scope.cancel()

        assert client.connections == 1 + len(KILLED_AFTER)
        assert {account.origin for start in auditor.starts[1:] for account in start.accounts} == {"resumed"}
        assert [update.version for update in auditor.updates[ann]] == list(range(2, TRANSFERS + 2))
        assert [update.version for update in auditor.updates[bob]] == list(range(1, TRANSFERS + 1))
        assert {update.transaction_id for update in auditor.updates[bob]} == set(ids)
        owed = Decimal("0.50") * TRANSFERS
        assert Decimal((await client.balance(account_id=bob)).balance) == owed
        assert Decimal((await client.balance(account_id=ann)).balance) == 1000 - owed
        again = await client.transfer(
            transaction_id=ids[0], source_account_id=ann, destination_account_id=bob, amount="0.50", currency="USD"
        )
        assert again.replayed is True


async def test_watch_survives_a_killed_daemon_and_marks_where_it_resumed(serve, free_port):
    address = f"127.0.0.1:{free_port}"
    daemon = serve(address)
    async with open_client(daemon.url, token=daemon.token, retry=PATIENT) as client:
        ann, _ = await two_accounts(client)
        watching = start_watch(daemon, ann)
        try:
            lines = [await trio.to_thread.run_sync(watching.stdout.readline)]
            await client.debit(account_id=ann, amount="1.00")
            lines.append(await trio.to_thread.run_sync(watching.stdout.readline))
            await trio.to_thread.run_sync(daemon.signal, signal.SIGKILL)
            daemon = await trio.to_thread.run_sync(serve, address)
            await client.debit(account_id=ann, amount="1.00")
            rest, _ = await trio.to_thread.run_sync(watching.communicate)
        finally:
            if watching.poll() is None:
                watching.kill()
            watching.wait()
    words = [line.split()[0] for line in [*lines, *rest.splitlines()]]
    assert words == ["start", "update", "resumed", "start", "update"]
    assert watching.returncode == 0
    assert "version=3" in rest


def start_watch(daemon, account: int) -> subprocess.Popen[str]:
    arguments = ["--account", str(account), "--count", "2", "--url", daemon.url, "--token-file", str(daemon.token_file)]
    return subprocess.Popen([sys.executable, "-m", "ledgerd", "watch", *arguments], stdout=subprocess.PIPE, text=True)


async def test_what_a_stopping_daemon_answers_is_true(serve):
    daemon = serve()
    answers: dict[str, str] = {}
    some = trio.Event()

    async def pay(client: Client, source: int, destination: int, transaction_id: str) -> None:
        try:
            done = await client.transfer(
                transaction_id=transaction_id,
                source_account_id=source,
                destination_account_id=destination,
                amount="1.00",
                currency="USD",
            )
            answers[transaction_id] = done.status
        except LedgerError as error:
            answers[transaction_id] = "unknown" if error.applied is None else "refused"
        except OutcomeUnknown:
            answers[transaction_id] = "unknown"
        except CannotConnect:
            answers[transaction_id] = "refused"
        if len(answers) >= 20:
            some.set()

    impatient = Retry(reconnect_s=0, call_s=0)
    async with open_client(daemon.url, token=daemon.token, retry=impatient) as client:
        ann, bob = await two_accounts(client)
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(pay, client, ann, bob, str(uuid_utils.uuid7()))
            await some.wait()
            assert await trio.to_thread.run_sync(daemon.signal, signal.SIGTERM) == 0
    assert len(answers) == 500

    after = serve()
    async with open_client(after.url, token=after.token) as client:
        for transaction_id, answer in answers.items():
            try:
                found = (await client.call("transaction_get", transaction_id=transaction_id)).status
            except LedgerError as error:
                assert error.code is ErrorCode.NOT_FOUND, error  # noqa: PT017  any other is a failure
                found = "refused"
            assert answer in (found, "unknown"), transaction_id
    assert "posted" in answers.values()
