"""The units on a Debian machine that systemd has booted: started, reloaded, restarted under load, watched, locked in.

It takes minutes and a Debian mirror, so it runs when it is asked to, as root, with a directory to keep the machine in:

    UNDER_SYSTEMD=/var/cache/ledgerd-debian pytest tests/acceptance/test_under_systemd.py
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.acceptance import machine as machines
from tests.acceptance.machine import Machine

CACHE = os.environ.get("UNDER_SYSTEMD", "")

pytestmark = [
    pytest.mark.skipif(not CACHE, reason="boots a machine: set UNDER_SYSTEMD to a directory to keep it in"),
    pytest.mark.skipif(bool(CACHE and machines.missing()), reason=str(machines.missing())),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("machine"),
]

HERE = Path(__file__).parent
URL = "ws://127.0.0.1:8710/"
OWNER = "postgresql:///money?host=/run/postgresql"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Debian with the daemon as systemd/README.md installs it, started."""
    with machines.booted(Path(CACHE)) as machine:
        programs, *steps = commands("Install on Debian")
        assert "pip install ." in programs, "the machine comes with what the first line installs"
        token, *_ = commands("Install on Debian", block=1)
        for step in (*steps, token):
            machine.run(step)
        for script in ("restart_load.py", "sandbox_probe.py"):
            shutil.copy(HERE / script, machine.root / "opt" / script)
        yield machine


@pytest.fixture
def running(machine: Machine) -> Iterator[Machine]:
    """The machine with the daemon as its unit has it, whatever the test before left behind."""
    machine.run("systemctl restart ledgerd")
    yield machine
    machine.run("""
        rm -rf /etc/systemd/system/ledgerd*.d
        rm -f /etc/ledgerd/credentials/tls_* && : > /etc/ledgerd/ledgerd.toml
        systemctl daemon-reload && systemctl reset-failed
        systemctl restart ledgerd.socket ledgerd-http.socket && systemctl restart ledgerd
    """)


def commands(title: str, block: int = 0) -> list[str]:
    """The lines of a block of commands in the documentation, below a title."""
    section = (
        (machines.REPOSITORY / "systemd/README.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    )
    return section.split("```\n")[1 + 2 * block].splitlines()


def call(machine: Machine, method: str, more: str = "", **params: Any) -> Any:
    command = f"/opt/ledgerd/bin/ledgerd call {method} {shlex.quote(json.dumps(params))} --url {URL} {more}"
    return json.loads(machine.run(f"LEDGERD_TOKEN=$(cat /root/operator.token) {command}"))


def drop_in(machine: Machine, unit: str, text: str) -> None:
    machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
    machine.run("systemctl daemon-reload")


def start_load(machine: Machine) -> subprocess.Popen[str]:
    """Clients that move money, once they have begun to."""
    machine.run("rm -f /root/stop")
    load = machine.start(f"exec /opt/ledgerd/bin/python /opt/restart_load.py {URL} /root/operator.token /root/stop")
    more_moved(machine)
    return load


def more_moved(machine: Machine) -> None:
    """Wait until another hundred transfers have been made, in whatever state the daemon is."""
    count = "cd / && runuser -u postgres -- psql -At money -c 'SELECT count(*) {} FROM ledgerd.transactions'"
    goal = int(machine.run(count.format(""))) + 100
    machine.until(count.format(f">= {goal}"), "t")


def seen_by(machine: Machine, load: subprocess.Popen[str]) -> dict[str, Any]:
    machine.run("touch /root/stop")
    said, _ = load.communicate(timeout=machines.STATE_S)
    assert load.returncode == 0, said
    return dict(json.loads(said.splitlines()[-1]))


def assert_all_are_stored(machine: Machine, acknowledged: list[str]) -> None:
    rows = "".join(f"{name}\n" for name in acknowledged)
    machine.write(
        "/root/stored.sql",
        f"CREATE TEMP TABLE acknowledged (id uuid);\nCOPY acknowledged FROM STDIN;\n{rows}\\.\n"
        "SELECT count(*) FROM acknowledged JOIN ledgerd.transactions ON transaction_id = id;\n",
    )
    found = machine.run("cd / && runuser -u postgres -- psql -At -q money < /root/stored.sql")
    assert int(found) == len(set(acknowledged)) == len(acknowledged)


def test_it_is_ready_when_systemd_says_so_and_says_what_it_does(running: Machine):
    running.until("systemctl show --property=StatusText --value ledgerd", "serving 0 sessions, database up")
    assert running.property("ledgerd", "ActiveState") == "active"
    assert running.property("ledgerd", "User") == "ledgerd"
    ready = [event for event in running.events("ledgerd") if event["event"] == "ready"]
    assert ready[-1]["handed_over"] == 2


def test_a_client_moves_money_through_the_socket(running: Machine):
    account = call(running, "user_register", name="Ada", password="correct horse", email="ada@example.org")["account"]
    sent = call(running, "credit", account_id=account["account_id"], amount="100.00")
    assert sent["entries"][0]["balance"] == "100.00"


def test_the_sandbox_lets_the_daemon_work_and_nothing_else(running: Machine):
    drop_in(
        running,
        "ledgerd.service",
        "[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\n"
        "ExecStart=/opt/ledgerd/bin/python /opt/sandbox_probe.py\n"
        "StandardOutput=file:/run/probe.json\nStandardError=journal\n",
    )
    running.run("systemctl stop ledgerd; systemctl start ledgerd")
    found = json.loads(running.run("cat /run/probe.json"))
    last_allowed = "look its processor time up"
    names = list(found)
    allowed, forbidden = names[: names.index(last_allowed) + 1], names[names.index(last_allowed) + 1 :]
    assert {name: found[name] for name in allowed if found[name] != "done"} == {}
    assert {name: found[name] for name in forbidden if found[name] == "done"} == {}
    assert len(forbidden) > 20


def test_a_reload_takes_over_what_may_change_and_refuses_a_broken_file(running: Machine):
    reloaded = "journalctl -u ledgerd -o cat _PID=$(systemctl show -P MainPID ledgerd) | grep -c '\"{}\"' || true"
    running.write("/etc/ledgerd/ledgerd.toml", 'log_level = "debug"\n')
    running.run("systemctl reload ledgerd")
    running.until(reloaded.format("reloaded"), "1")
    changes = [event["changed"] for event in running.events("ledgerd") if event["event"] == "reloaded"]
    assert changes[-1] == ["log_level"]
    running.write("/etc/ledgerd/ledgerd.toml", 'log_level = "loud"\n')
    running.run("systemctl reload ledgerd")
    running.until(reloaded.format("reload_refused"), "1")
    running.until("systemctl show -P StatusText ledgerd | grep -c 'settings not reloaded'", "1")
    assert call(running, "system_ping")


def test_a_restart_under_load_refuses_nobody_and_loses_nothing(running: Machine):
    load = start_load(running)
    for _ in range(3):
        before = running.property("ledgerd", "MainPID")
        running.run("systemctl restart ledgerd")
        assert running.property("ledgerd", "MainPID") != before
        more_moved(running)
    seen = seen_by(running, load)
    print({name: value if isinstance(value, int) else len(value) for name, value in seen.items()})
    assert seen["refused"] == []
    assert seen["came"] > 100
    assert seen["connections"] > 8, "nobody had to reconnect: the daemon was never restarted"
    assert_all_are_stored(running, seen["acknowledged"])
    running.run("systemctl start ledgerd-verify")


def test_stopping_the_sockets_drains_the_daemon_and_ends_with_success(running: Machine):
    load = start_load(running)
    running.run("systemctl stop ledgerd.socket ledgerd-http.socket")
    assert running.property("ledgerd", "ActiveState") == "inactive"
    assert running.property("ledgerd", "Result") == "success"
    assert [event["event"] for event in running.events("ledgerd")][-1] == "stopped"
    running.run("! exec 3<> /dev/tcp/127.0.0.1/8710")
    running.run("systemctl start ledgerd")
    more_moved(running)
    seen = seen_by(running, load)
    assert_all_are_stored(running, seen["acknowledged"])


def test_a_daemon_that_hangs_is_killed_and_started_again(running: Machine):
    drop_in(running, "ledgerd.service", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    running.run("systemctl restart ledgerd && systemctl kill --kill-whom=main --signal=STOP ledgerd")
    running.until("systemctl show -P NRestarts ledgerd", "1")
    running.until("systemctl is-active ledgerd", "active")
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in running.journal("ledgerd"))
    assert call(running, "system_ping")


def test_a_database_that_is_away_does_not_end_the_daemon(running: Machine):
    running.run("systemctl stop postgresql@15-main")
    try:
        running.until("systemctl show -P StatusText ledgerd | grep -c 'database not reachable'", "1")
        assert running.property("ledgerd", "NRestarts") == "0"
    finally:
        running.run("systemctl start postgresql@15-main")
    running.until("systemctl show -P StatusText ledgerd | grep -c 'database up'", "1")


def test_the_journal_has_json_lines_with_priorities(running: Machine):
    running.run("systemctl stop postgresql@15-main; systemctl start postgresql@15-main")
    said = [entry for entry in running.journal("ledgerd") if entry["MESSAGE"].startswith("{")]
    priorities = {"debug": "7", "info": "6", "warning": "4", "error": "3"}
    assert {json.loads(entry["MESSAGE"])["level"] for entry in said} >= {"info", "warning"}
    for entry in said:
        assert entry["PRIORITY"] == priorities[json.loads(entry["MESSAGE"])["level"]], entry["MESSAGE"]


def test_what_the_daemon_cannot_start_with_is_an_error_in_the_journal(running: Machine):
    running.write("/etc/ledgerd/ledgerd.toml", "lanez = 3\n")
    assert running.run("systemctl restart ledgerd || echo failed").endswith("failed")
    said = [entry for entry in running.journal("ledgerd") if "did you mean lanes?" in entry["MESSAGE"]]
    assert said[-1]["PRIORITY"] in ("2", "3")


def test_the_audit_runs_under_its_unit_and_is_waited_for(running: Machine):
    running.run("systemctl start ledgerd-verify")
    assert running.property("ledgerd-verify", "Result") == "success"
    assert any(entry["MESSAGE"].startswith("ok  ") for entry in running.journal("ledgerd-verify"))
    assert running.property("ledgerd-verify.timer", "ActiveState") == "active"


def test_the_commands_of_the_documentation_work(running: Machine):
    for command in (
        *commands("Install on Debian", block=1)[1:],
        *commands("Start, stop, reload"),
        *commands("Secrets", block=2),
    ):
        running.run(command)
    running.run("systemctl start ledgerd")
    for command in commands("Several instances"):
        running.run(command)
    running.run("systemctl disable --now ledgerd@8721.socket ledgerd@8722.socket ledgerd@8721 ledgerd@8722")
    running.run("systemctl enable --now ledgerd")


def test_a_password_in_the_credential_reaches_a_database_by_name(running: Machine):
    running.run("""cd / && runuser -u postgres -- psql -q money -c "ALTER ROLE ledgerd PASSWORD 'quiet'" """)
    running.write("/etc/ledgerd/credentials/dsn", "postgresql://ledgerd:quiet@localhost/money\n", 0o600)
    try:
        running.run("systemctl restart ledgerd")
        assert call(running, "system_ping")
        running.run("! journalctl --unit=ledgerd | grep quiet")
        running.run("! tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID ledgerd)/environ | grep quiet")
    finally:
        running.write("/etc/ledgerd/credentials/dsn", f"{OWNER}\n", 0o600)


def test_several_instances_share_a_port_and_restart_one_after_the_other(running: Machine):
    running.run("systemctl stop ledgerd.socket ledgerd-http.socket")
    instances = ("ledgerd@8721", "ledgerd@8722")
    running.run(f"systemctl start {' '.join(instances)}")
    try:
        load = start_load(running)
        for instance in instances:
            running.run(f"systemctl restart {instance}")
            more_moved(running)
        seen = seen_by(running, load)
        print({name: value if isinstance(value, int) else len(value) for name, value in seen.items()})
        assert seen["refused"] == []
        assert_all_are_stored(running, seen["acknowledged"])
        for port in ("8721", "8722"):
            page = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/readyz').status)"
            assert running.run(f"python3 -c {shlex.quote(page)}") == "200"
    finally:
        running.run(f"systemctl stop {' '.join(f'{instance}.socket' for instance in instances)}")


PING = "LEDGERD_TOKEN=$(cat /root/operator.token) /opt/ledgerd/bin/ledgerd call system_ping"


def new_certificate(machine: Machine, directory: str, mode: int) -> str:
    """Write a certificate and its key, of an authority of its own; the command that talks to who has them."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    chain = "".join(part.bytes().decode() for part in server.cert_chain_pems)
    machine.write(f"{directory}/tls_certificate", chain, mode)
    machine.write(f"{directory}/tls_key", server.private_key_pem.bytes().decode(), mode)
    machine.write("/root/authority.pem", authority.cert_pem.bytes().decode())
    return f"{PING} --url wss://localhost:8710/ --ca-file /root/authority.pem"


def test_a_certificate_and_its_key_are_credentials(running: Machine):
    ping = new_certificate(running, "/etc/ledgerd/credentials", 0o600)
    running.run("systemctl restart ledgerd")
    assert running.run(ping)


def test_a_renewed_certificate_in_files_of_the_daemons_group_is_taken_over_by_a_reload(running: Machine):
    running.write(
        "/etc/ledgerd/ledgerd.toml",
        'tls_certificate = "/etc/ledgerd/tls/tls_certificate"\ntls_key = "/etc/ledgerd/tls/tls_key"\n',
    )
    owned = "chgrp -R ledgerd /etc/ledgerd/tls"
    ping = new_certificate(running, "/etc/ledgerd/tls", 0o640)
    running.run(f"{owned} && systemctl restart ledgerd && {ping}")
    before = running.property("ledgerd", "MainPID")
    assert new_certificate(running, "/etc/ledgerd/tls", 0o640) == ping
    running.run(f"{owned} && ! {ping} && systemctl reload ledgerd")
    running.until(f"{ping} > /dev/null 2>&1 && echo yes", "yes")
    assert running.property("ledgerd", "MainPID") == before


def test_a_socket_that_others_can_reach_needs_tls(running: Machine):
    drop_in(running, "ledgerd.socket", "[Socket]\nListenStream=\nListenStream=0.0.0.0:8710\n")
    running.run("systemctl stop ledgerd.socket && ! systemctl start ledgerd")
    assert "plain WebSocket on 0.0.0.0" in running.run("journalctl --unit=ledgerd --output=cat --lines=20")
    ping = new_certificate(running, "/etc/ledgerd/credentials", 0o600)
    running.write("/etc/ledgerd/ledgerd.toml", 'public_hosts = ["localhost"]\n')
    running.run(f"systemctl restart ledgerd && {ping}")
