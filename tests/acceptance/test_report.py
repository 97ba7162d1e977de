"""`ledgerd report` as a person types it, against a real daemon."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import termios
import uuid
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import trio

from ledgerd.report_command import COLUMNS, PAGE_ITEMS
from ledgerd_protocol.client import open_client
from tests.acceptance.conftest import command, environment


def options(dev) -> list[str]:
    return ["--url", dev.url, "--token-file", str(dev.token_file)]


@pytest.fixture(scope="session")
def story(dev, call, ledgerd):
    """An account with a credit, a debit whose reason is a formula, and a refused debit; the account's number."""
    account = call(dev, "user_register", name="Reported")["account"]["account_id"]
    call(
        dev, "credit", account_id=account, amount="100.00", currency="USD", reference="salary, March", metadata={"a": 1}
    )
    call(dev, "debit", account_id=account, amount="1.50", reason='=HYPERLINK("x")', reference="@ann")
    refused = msgspec.json.encode({"account_id": account, "amount": "9999.00", "reason": "a\nyacht"}).decode()
    assert ledgerd("call", "debit", refused, *options(dev)).returncode == 1
    return account


def many(dev, account: int, number: int) -> None:
    """Post so many credits."""

    async def post() -> None:
        async with open_client(dev.url, token=dev.token) as client:
            for _ in range(number // 500):
                items = [{"method": "credit", "params": {"account_id": account, "amount": "1"}}] * 500
                await client.call("transaction_batch", items=items, batch_id=str(uuid.uuid4()))

    trio.run(post)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_a_row_per_transaction_with_decimal_text_and_no_formulas(dev, ledgerd, story):
    done = ledgerd("report", "--account", str(story), *options(dev))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == ",".join(COLUMNS)
    failed, debit, credit = rows_of(done.stdout)
    assert (failed["status"], failed["error"], failed["amount"], failed["reason"]) == (
        "failed", "insufficient_funds", "9999.00", "a\nyacht",
    )  # fmt: skip
    assert failed["attempt_id"]
    assert (debit["kind"], debit["amount"], debit["currency"], debit["status"]) == ("debit", "1.50", "USD", "posted")
    assert (debit["reason"], debit["reference"]) == ('\'=HYPERLINK("x")', "'@ann")
    assert (debit["debit_account_id"], debit["credit_account_id"]) == (str(story), "")
    assert (credit["reference"], credit["metadata"], credit["error"]) == ("salary, March", '{"a":1}', "")


def test_ndjson_has_the_items_as_the_protocol_spells_them(dev, ledgerd, call, story):
    done = ledgerd("report", "--account", str(story), "--format", "ndjson", *options(dev))
    assert done.returncode == 0, done.stderr
    items = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert items == call(dev, "transaction_report", account_id=story)["items"]
    assert items[1]["reason"] == '=HYPERLINK("x")'


def test_a_report_may_be_of_one_status_and_of_an_interval(dev, ledgerd, story):
    def kinds(*arguments: str) -> list[str]:
        done = ledgerd("report", "--account", str(story), *arguments, *options(dev))
        assert done.returncode == 0, done.stderr
        return [row["status"] for row in rows_of(done.stdout)]

    today = datetime.now(UTC).date()
    tomorrow = (today + timedelta(days=1)).isoformat()
    yesterday = (today - timedelta(days=1)).isoformat()
    assert kinds("--status", "failed") == ["failed"]
    assert kinds("--from", yesterday, "--before", tomorrow) == ["failed", "posted", "posted"]
    assert kinds("--before", f"{yesterday}T12:30+02:00") == []


def test_a_report_of_many_pages_goes_to_a_file_that_is_whole(dev, ledgerd, call, tmp_path):
    account = call(dev, "user_register", name="Busy")["account"]["account_id"]
    many(dev, account, 2 * PAGE_ITEMS + 500)
    output = tmp_path / "report.csv"
    output.write_text("old")
    done = ledgerd("report", "--account", str(account), "--output", str(output), *options(dev))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["transaction_id"] for row in rows}) == len(rows) == 2 * PAGE_ITEMS + 500
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]


def test_an_export_that_is_stopped_leaves_no_file_and_keeps_the_old_one(dev, tmp_path, interrupt, free_port):
    output = tmp_path / "report.csv"
    output.write_text("old")
    arguments = ["report", "--output", str(output), "--url", f"ws://127.0.0.1:{free_port}", "--wait", "60"]
    exporting = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, env=environment())
    part = tmp_path / "report.csv.part"
    while not part.exists():
        assert exporting.poll() is None
    exporting.send_signal(interrupt)
    _, complaint = exporting.communicate(timeout=60)
    assert (exporting.returncode, complaint) == (130, "")
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]
    assert output.read_text() == "old"


def test_an_export_goes_on_at_the_next_daemon_when_one_stops_and_shows_nothing_new(serve, call, free_port):
    first = serve(f"127.0.0.1:{free_port}")
    account = call(first, "user_register", name="Ann", currency="USD")["account"]["account_id"]
    many(first, account, 3 * PAGE_ITEMS)
    arguments = command("report", "--account", str(account), *options(first))
    exporting = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    # A page is more than a pipe holds: until the rest is read, the export waits in the middle of the first.
    begun = exporting.stdout.readline() + exporting.stdout.readline()
    first.signal(signal.SIGTERM)
    second = serve(f"127.0.0.1:{free_port}")
    call(second, "credit", account_id=account, amount="1")
    rest, complaint = exporting.stdout.read(), exporting.stderr.read()
    exporting.stdout.close()
    exporting.stderr.close()
    assert (exporting.wait(60), complaint) == (0, "")
    ids = [row["transaction_id"] for row in rows_of(begun + rest)]
    assert len(set(ids)) == len(ids) == 3 * PAGE_ITEMS


def test_a_person_sees_a_bar_on_the_terminal_and_a_pipe_gets_none(dev, story):
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    arguments = command("report", "--account", str(story), *options(dev))
    env = environment(TERM="xterm-256color")
    exporting = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=terminal, text=True, env=env)
    os.close(terminal)
    exported, _ = exporting.communicate(timeout=60)
    drawn = b""
    try:
        while data := os.read(screen, 4096):
            drawn += data
    except OSError:
        pass
    os.close(screen)
    assert exporting.returncode == 0
    assert len(rows_of(exported)) == 3
    assert b"3/3" in drawn
    assert "\x1b" not in exported


def test_a_reader_that_leaves_ends_the_export_quietly(dev, call):
    account = call(dev, "user_register", name="Busy")["account"]["account_id"]
    many(dev, account, 2 * PAGE_ITEMS)
    arguments = command("report", "--account", str(account), *options(dev))
    exporting = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    exporting.stdout.readline()
    exporting.stdout.close()
    complaint = exporting.stderr.read()
    exporting.stderr.close()
    assert (exporting.wait(60), complaint) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--from", "yesterday"), 2, "write a day, 2026-03-06"),
        (("--from", "2026-03-06T12:00:00"), 2, "with its offset"),
        (("--before", "2026-02-30"), 2, "--before 2026-02-30"),
        (("--from", "2020-01-01"), 1, "five days"),
        (("--account", "999999"), 1, "not_found"),
        (("--format", "xlsx"), 2, "xlsx"),
        (("--status", "lost"), 2, "lost"),
        (("--output", "/nowhere/report.csv"), 2, "/nowhere/report.csv.part cannot be written"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence_and_leaves_no_file(dev, ledgerd, tmp_path, arguments, code, says):
    if "--output" not in arguments:
        arguments = (*arguments, "--output", str(tmp_path / "report.csv"))
    done = ledgerd("report", *arguments, *options(dev))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_teaches_with_an_example(ledgerd):
    done = ledgerd("report", "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout
