"""What a person meets in the first minute: the demo, and `dev` with its directory."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest


@pytest.fixture
def scratch(short_directory: Path, tmp_path: Path) -> Path:
    """A short path of this test's own, for everything a command puts into temporary files."""
    directory = short_directory / tmp_path.name[:20]
    directory.mkdir(exist_ok=True)
    return directory


def test_the_demo_shows_its_pushes_ends_with_0_and_leaves_nothing(ledgerd, scratch, nobody_left):
    done = ledgerd("demo", TMPDIR=str(scratch))
    assert done.returncode == 0, done.stderr
    pushes = [line for line in done.stdout.splitlines() if "push " in line]
    assert [line.split("version ")[1].split()[0] for line in pushes] == ["1", "2", "3"]
    assert "100.00" in pushes[0]
    assert "insufficient_funds" in done.stdout
    assert "replayed" in done.stdout
    assert "50.10 USD" in done.stdout
    assert done.stderr == ""
    assert not list(scratch.glob("ledgerd-demo*"))
    assert nobody_left(str(scratch))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_cleans_up_after_ctrl_c(scratch, nobody_left, number):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "ledgerd", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    for line in process.stdout:
        if "Ann has account" in line:
            break
    process.send_signal(number)
    said, complaint = process.communicate(timeout=60)
    # A scene that was already over when the signal came ends as always.
    assert process.returncode in ((130,) if "Next:" not in said else (0,)), complaint
    assert "Traceback" not in complaint
    assert not list(scratch.glob("ledgerd-demo*"))
    assert nobody_left(str(scratch))


def test_the_first_call_that_dev_shows_works_as_it_is_pasted(dev):
    shown = next(line for line in dev.said if " call " in line)
    words = shlex.split(shown)
    assert words[:3] == ["python", "-m", "ledgerd"]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["account"]["balance"] == "0.00"


def test_dev_says_where_everything_is(dev):
    text = "\n".join(dev.said)
    assert dev.url in text
    assert "http://127.0.0.1:" in text
    assert str(dev.token_file) in text
    assert dev.token not in text


def test_the_operator_token_is_readable_by_its_owner_only(dev):
    assert dev.token_file.stat().st_mode & 0o777 == 0o600
    assert dev.token.startswith("lgd_")


def test_a_second_dev_on_the_directory_finds_the_balances_and_keeps_the_token(dev_on, scratch, call, nobody_left):
    with dev_on(scratch / "kept") as first:
        token = first.token
        ann = call(first, "user_register", name="Ann")["account"]["account_id"]
        call(first, "credit", account_id=ann, amount="12.34", currency="USD")
        assert first.signal(signal.SIGINT) == 0
    assert nobody_left(str(scratch / "kept"))
    (scratch / "kept" / "operator.token").chmod(0o644)
    with dev_on(scratch / "kept") as second:
        assert second.token == token
        assert second.token_file.stat().st_mode & 0o777 == 0o600
        assert call(second, "balance_get", account_id=ann)["balance"] == "12.34"
        assert second.signal(signal.SIGTERM) == 0
    assert nobody_left(str(scratch / "kept"))


def test_dev_replaces_a_token_that_does_not_work(dev_on, scratch, call):
    (scratch / "spoiled").mkdir()
    (scratch / "spoiled" / "operator.token").write_text("lgd_not_a_token\n")
    with dev_on(scratch / "spoiled") as running:
        assert call(running, "session_status")["scopes"] == ["operator"]


def test_a_directory_in_use_is_refused_in_one_sentence(dev, ledgerd):
    done = ledgerd("dev", "--data", str(dev.token_file.parent), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert dev.process.poll() is None


def test_a_port_in_use_is_refused_in_one_sentence_and_postgres_stops(dev, ledgerd, scratch, nobody_left):
    listen = dev.url.removeprefix("ws://").rstrip("/")
    done = ledgerd("dev", "--data", str(scratch / "late"), "--listen", listen, "--http", "127.0.0.1:0")
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr
    assert nobody_left(str(scratch / "late"))


@pytest.mark.parametrize("flag", ["--listen", "--http"])
def test_dev_is_for_this_machine_only(ledgerd, scratch, flag):
    done = ledgerd("dev", "--data", str(scratch / "open"), flag, "0.0.0.0:0", "--set", "insecure_listen=true")
    assert done.returncode == 2
    assert "reached from outside" in done.stderr
    assert not (scratch / "open").exists()


def test_a_token_in_the_directory_does_not_end_up_in_git(dev):
    assert (dev.token_file.parent / ".gitignore").read_text() == "*\n"
