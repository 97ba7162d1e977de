"""What a daemon logs from its start to its end, as journald gets it, and as others do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request

import msgspec
import pytest
import trio

from ledgerd_protocol.client import open_client
from tests.acceptance.conftest import CANARY, STOP_S, _started, command, environment, with_canary

LINE = re.compile(r"<([2-7])>(\{.*\})")


def test_the_watch_over_what_daemons_say_notices_a_secret(cluster):
    with (
        pytest.raises(AssertionError, match="lgd_"),
        _started(("token", "create", "operator", "--dsn", cluster.dsn), "stdout", environment()) as (process, _),
    ):
        assert process.wait(STOP_S) == 0


def journal(process_stderr: str) -> list[tuple[int, dict[str, object]]]:
    """The lines, each a priority and one JSON object; nothing else may be there."""
    found = []
    for line in process_stderr.splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, line
        found.append((int(match[1]), msgspec.json.decode(match[2])))
    return found


def as_journal(stream: object) -> dict[str, str]:
    """The environment that systemd gives to whose standard error is the stream."""
    where = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"}


def test_under_systemd_every_line_is_a_priority_and_one_object_from_start_to_end(cluster, tmp_path):
    with (tmp_path / "journal").open("w+") as stderr:
        env = environment(LEDGERD_DSN=with_canary(cluster.daemon_dsn), **as_journal(stderr))
        arguments = command("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        process = subprocess.Popen(arguments, stderr=stderr, env=env)
        try:
            ready = None
            while ready is None:
                assert process.poll() is None, (tmp_path / "journal").read_text()
                lines, _, _ = (tmp_path / "journal").read_text().rpartition("\n")
                ready = next((line for _, line in journal(lines) if line["event"] == "ready"), None)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S) == 0
        finally:
            process.kill()
            process.wait()
    lines = journal((tmp_path / "journal").read_text())
    assert [line["event"] for _, line in lines if line["event"] not in ("database_check", "identity_changed")] == [
        "open_files", "database_connected", "ready", "signal", "draining", "drained", "stopped",
    ]  # fmt: skip
    levels = {2: "critical", 3: "error", 4: "warning", 6: "info", 7: "debug"}
    assert all(levels[priority] == line["level"] for priority, line in lines)
    assert CANARY not in (tmp_path / "journal").read_text()


def test_under_systemd_a_daemon_that_cannot_serve_says_why_in_a_line_of_the_same_form(cluster, tmp_path):
    with (tmp_path / "journal").open("w+") as stderr:
        env = environment(LEDGERD_DSN=with_canary(cluster.dsn_of("nowhere", "postgres")), **as_journal(stderr))
        arguments = command("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        done = subprocess.run(arguments, stderr=stderr, env=env, check=False, timeout=STOP_S)
    *_, (priority, line) = journal((tmp_path / "journal").read_text())
    assert (done.returncode, line["exit_code"], priority) == (1, 1, 2)
    assert line["event"] == "serving_failed"
    assert "nowhere" in str(line["detail"])
    assert CANARY not in str(line)


def test_under_systemd_settings_that_cannot_be_read_are_a_line_of_the_same_form(tmp_path):
    with (tmp_path / "journal").open("w+") as stderr:
        env = environment(LEDGERD_LANS="2", **as_journal(stderr))
        done = subprocess.run(command("serve"), stderr=stderr, env=env, check=False, timeout=STOP_S)
    ((priority, line),) = journal((tmp_path / "journal").read_text())
    assert (done.returncode, priority, line["event"]) == (2, 2, "serving_failed")
    assert "LEDGERD_LANES" in str(line["detail"])


async def test_a_request_can_be_followed_by_its_ids_and_a_slow_one_is_a_warning(serve, cluster):
    running = await trio.to_thread.run_sync(lambda: serve(LEDGERD_SLOW_CALL_S="0.000001"))
    async with open_client(running.url, token=running.token) as client:
        made = await client.call("user_register", name="Eve", email="eve@example.org", password="correct horse")
        account_id = made.account.account_id
        posted = await client.call("credit", account_id=account_id, amount="1.00", reference=CANARY)

    def of(event: str) -> list[dict[str, object]]:
        lines = [msgspec.json.decode(line) for line in running.output.lines if f'"event": "{event}"' in line]
        return [line for line in lines if line.get("transaction_id") == posted.transaction_id]

    await trio.to_thread.run_sync(running.output.until, lambda line: '"event": "session_closed"' in line)
    (request,) = of("request_slow")
    assert (request["method"], request["code"], request["level"]) == ("credit", "ok", "warning")
    assert request["account_ids"] == [account_id]
    assert {"request_id", "token_id", "seconds", "address"} <= request.keys()
    (call,) = of("slow_call")
    assert call["account_ids"] == [account_id]
    assert call["token_id"] == request["token_id"]


async def test_what_is_measured_has_no_names_and_counts_what_happened(serve, cluster):
    running = await trio.to_thread.run_sync(serve)
    http = next(msgspec.json.decode(line)["http"] for line in running.said if '"event": "ready"' in line)

    def page() -> str:
        with urllib.request.urlopen(f"{http}/metrics", timeout=STOP_S) as answer:
            return answer.read().decode()

    async with open_client(running.url, token=running.token) as client:
        made = await client.call("user_register", name="Eve", email="eve2@example.org", password="correct horse")
        await client.call("credit", account_id=made.account.account_id, amount="1.00")
        text = await trio.to_thread.run_sync(page)
    assert 'ledgerd_requests_total{code="ok",method="credit"} 1.0' in text
    assert "ledgerd_fence_hits_total 0.0" in text
    assert 'ledgerd_alerts_total{alert="advance_mismatch"} 0.0' in text
    assert 'ledgerd_build_info{version="' in text
    assert "ledgerd_lanes 2.0" in text
    assert "Eve" not in text
