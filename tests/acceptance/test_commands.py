"""Every command that talks to a daemon or to a database, as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ledgerd.storage.embedded import temporary_cluster


@pytest.fixture(scope="session")
def ann(dev, call):
    """A user with 100.00, signed up by the operator; the registration's answer."""
    made = call(dev, "user_register", name="Ann")
    call(dev, "credit", account_id=made["account"]["account_id"], amount="100.00", currency="USD")
    return made


def options(dev) -> list[str]:
    return ["--url", dev.url, "--token-file", str(dev.token_file)]


def test_a_number_keeps_its_spelling_on_its_way_to_the_daemon(dev, ledgerd, ann):
    account = ann["account"]["account_id"]
    text = f'{{"account_id": {account}, "amount": 1.10, "currency": "USD"}}'
    done = ledgerd("call", "credit", text, *options(dev))
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["amount"] == "1.10"
    done = ledgerd("call", "credit", text.replace("1.10", "1.100"), *options(dev))
    assert "amount_precision" in done.stderr


def test_parameters_can_come_from_standard_input(dev, ledgerd):
    done = ledgerd("call", "system_ping", "-", *options(dev), stdin='{"echo": "from stdin"}')
    assert msgspec.json.decode(done.stdout)["echo"] == "from stdin"


def test_a_refusal_is_a_sentence_on_stderr_json_on_stdout_and_exit_code_1(dev, ledgerd, ann):
    account = ann["account"]["account_id"]
    done = ledgerd("call", "debit", f'{{"account_id": {account}, "amount": "9999.00"}}', *options(dev))
    assert done.returncode == 1
    assert done.stderr.startswith("ledgerd: insufficient_funds (3001)")
    assert msgspec.json.decode(done.stdout)["error"]["data"]["requested"] == "9999.00"


def test_the_token_may_come_from_the_environment(dev, ledgerd):
    done = ledgerd("call", "session_status", "--url", dev.url, LEDGERD_TOKEN=dev.token)
    assert msgspec.json.decode(done.stdout)["scopes"] == ["operator"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("call", "system_ping", "{", "--url", "URL"), 2, "one JSON object"),
        (("call", "system_ping", "[1]", "--url", "URL"), 2, "one JSON object"),
        (("call", "system_ping", "--url", "http://localhost"), 2, "not a WebSocket URL"),
        (("call", "system_ping", "--url", "ws://127.0.0.1:1"), 3, "cannot reach the daemon"),
        (("call", "user_get", "--url", "URL"), 1, "unauthenticated"),
        (("call", "no_such_method", "--url", "URL"), 1, "method_not_found"),
        (("call", "system_ping", "--url", "URL", "--token-file", "/nowhere"), 2, "cannot be read"),
        (("call", "ledger_subscribe", "--url", "URL"), 2, "watch"),
        (("watch", "--account", "1", "--all", "--url", "URL"), 2, "choose one"),
        (("token", "create", "--url", "URL"), 2, "at least one scope"),
        (("migrate",), 2, "LEDGERD_OWNER_DSN"),
        (("epoch", "new"), 2, "LEDGERD_OWNER_DSN"),
        (("epoch", "show", "--dsn", "postgresql://nobody@127.0.0.1:1/nothing"), 3, "cannot connect to the database"),
        (("migrate", "--dsn", "postgresql://nobody@127.0.0.1:1/nothing"), 3, "cannot connect to the database"),
        (("serve",), 2, "LEDGERD_DSN"),
        (("serve", "--set", "lanes"), 2, "NAME=VALUE"),
        (("serve", "--set", "lane=3"), 2, "did you mean"),
        (("no_such_command",), 2, "no_such_command"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback_and_has_its_exit_code(dev, ledgerd, arguments, code, says):
    done = ledgerd(*(dev.url if word == "URL" else word for word in arguments))
    assert says in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_bad_token_is_refused_with_what_to_do(dev, ledgerd):
    done = ledgerd("call", "system_ping", "--url", dev.url, LEDGERD_TOKEN="lgd_wrong")
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "--token-file" in done.stderr
    assert "lgd_wrong" not in done.stderr


def test_every_command_teaches_with_an_example(ledgerd):
    commands = ["demo", "dev", "serve", "migrate", "call", "watch", "config"]
    for words in [
        *([name] for name in commands),
        *(["token", name] for name in ("create", "list", "revoke")),
        ["epoch", "new"],
    ]:
        done = ledgerd(*words, "--help")
        assert done.returncode == 0
        assert "Example:" in done.stdout, words


def test_the_version_is_printed(ledgerd):
    assert ledgerd("--version").stdout.strip() == "ledgerd 0.1.0"


# -- watch ---------------------------------------------------------------------------------------------------------


def test_watch_prints_lines_for_scripts_and_ends_after_a_count(dev, ledgerd, call, tmp_path):
    made = call(dev, "user_register", name="Watched")
    account = made["account"]["account_id"]
    watching = subprocess.Popen(
        watch_command(dev, "--account", str(account), "--count", "2"), stdout=subprocess.PIPE, text=True
    )
    first = watching.stdout.readline()
    assert first.startswith(f"start account={account} from=snapshot version=0 balance=0.00")
    call(dev, "credit", account_id=account, amount="5.00", currency="USD")
    call(dev, "debit", account_id=account, amount="2.00", currency="USD")
    rest, _ = watching.communicate(timeout=60)
    lines = rest.splitlines()
    assert watching.returncode == 0
    assert [line.split()[2] for line in lines] == ["version=1", "version=2"]
    assert "balance=3.00" in lines[1]
    assert "change=-2.00" in lines[1]


def test_watch_prints_events_as_json_and_ends_after_a_time(dev, ledgerd, call):
    made = call(dev, "user_register", name="Watched")
    arguments = ("watch", "--user", str(made["user"]["user_id"]), "--json", "--for", "1", *options(dev))
    done = ledgerd(*arguments)
    assert done.returncode == 0, done.stderr
    events = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events[:2]] == ["start", "live"]
    assert events[0]["accounts"][0]["account_id"] == made["account"]["account_id"]


def test_watch_ends_with_130_on_ctrl_c(dev, call, interrupt):
    account = call(dev, "user_register", name="Watched")["account"]["account_id"]
    watching = subprocess.Popen(
        watch_command(dev, "--account", str(account)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watching.stdout.readline()
    watching.send_signal(interrupt)
    _, complaint = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert complaint == ""


def test_watch_of_an_invisible_account_is_refused(dev, ledgerd, call, tmp_path, ann):
    other = call(dev, "user_register", name="Other")
    (tmp_path / "other").write_text(other["token"])
    account = str(ann["account"]["account_id"])
    done = ledgerd("watch", "--account", account, "--url", dev.url, "--token-file", str(tmp_path / "other"))
    assert done.returncode == 1
    assert "not_found" in done.stderr


def watch_command(dev, *more: str) -> list[str]:
    return [sys.executable, "-m", "ledgerd", "watch", *more, *options(dev)]


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_is_made_listed_and_revoked(dev, ledgerd, tmp_path, ann):
    user = str(ann["user"]["user_id"])
    file = tmp_path / "reader.token"
    made = ledgerd("token", "create", "read", "--user-id", user, "--label", "reader", "--out", str(file), *options(dev))
    assert made.returncode == 0, made.stderr
    assert made.stdout == ""
    assert file.stat().st_mode & 0o777 == 0o600
    mine = ["--url", dev.url, "--token-file", str(file)]
    status = msgspec.json.decode(ledgerd("call", "session_status", *mine).stdout)
    assert (status["scopes"], status["user"]["name"]) == (["read"], "Ann")

    listed = ledgerd("token", "list", "--user-id", user, *options(dev))
    tokens = [msgspec.json.decode(line) for line in listed.stdout.splitlines()]
    (reader,) = [token for token in tokens if token["label"] == "reader"]
    assert file.read_text().strip() not in listed.stdout

    revoked = ledgerd("token", "revoke", str(reader["token_id"]), *options(dev))
    assert revoked.returncode == 0, revoked.stderr
    refused = ledgerd("call", "session_status", *mine)
    assert refused.returncode == 1
    assert "401" in refused.stderr


def test_a_token_is_printed_once_and_alone(dev, ledgerd, ann):
    user = str(ann["user"]["user_id"])
    made = ledgerd("token", "create", "read", "--user-id", user, *options(dev))
    assert made.stdout.startswith("lgd_")
    assert len(made.stdout.split()) == 1


def test_a_token_file_is_not_overwritten(dev, ledgerd):
    before = dev.token
    done = ledgerd("token", "create", "read", "--out", str(dev.token_file), *options(dev))
    assert done.returncode == 2
    assert dev.token == before


# -- a database of one's own ---------------------------------------------------------------------------------------


def test_migrate_shows_applies_and_then_has_nothing_to_do(ledgerd):
    with temporary_cluster() as cluster:
        shown = ledgerd("migrate", "--dsn", cluster.dsn)
        assert shown.returncode == 0, shown.stderr
        assert "would apply 0001" in shown.stdout
        assert ledgerd("migrate", "--dsn", cluster.dsn).stdout == shown.stdout
        applied = ledgerd("migrate", "--apply", LEDGERD_OWNER_DSN=cluster.dsn)
        assert "up to date" in applied.stdout
        assert ledgerd("migrate", "--dsn", cluster.dsn).stdout == "nothing to do\n"


def test_serve_refuses_a_database_that_was_not_migrated(ledgerd):
    with temporary_cluster() as cluster:
        done = ledgerd("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", LEDGERD_DSN=cluster.daemon_dsn)
    assert done.returncode == 1
    assert "ledgerd migrate --apply" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_owner_makes_the_first_token_and_sign_up_is_closed_under_serve(serve, ledgerd):
    running = serve()
    status = ledgerd("call", "session_status", "--url", running.url, "--token-file", str(running.token_file))
    assert msgspec.json.decode(status.stdout)["scopes"] == ["operator"]
    person = '{"name": "Eve", "email": "eve@example.com", "password": "long enough"}'
    done = ledgerd("call", "user_register", person, "--url", running.url)
    assert done.returncode == 1
    assert "permission_denied" in done.stderr or "unauthenticated" in done.stderr


def test_config_shows_where_each_value_comes_from_and_no_password(ledgerd, tmp_path: Path):
    file = tmp_path / "ledgerd.toml"
    file.write_text('lanes = 3\nreaders = 3\nlog_level = "warning"\n')
    done = ledgerd(
        "config", "--config", str(file), "--set", "log_level=error", LEDGERD_READERS="5",
        LEDGERD_DSN="postgresql://me:hunter2@db/bank",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert rows["lanes"] == ["3", f"file {file}"]
    assert rows["readers"] == ["5", "environment"]
    assert rows["log_level"] == ["error", "flag"]
    assert rows["default_currency"] == ["USD", "default"]
    assert rows["dsn"] == ["postgresql://me:***@db/bank", "environment"]
    assert "hunter2" not in done.stdout
