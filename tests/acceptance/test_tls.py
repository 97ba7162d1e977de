"""The installed command behind TLS: served, called, watched, reloaded, and refused with files that do not do."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trustme

from ledgerd_protocol.client import open_client


class Files:
    """A self-made authority, and a certificate of it."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = directory / "chain.pem", directory / "key.pem"
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.issue()

    def issue(self) -> None:
        leaf = self.authority.issue_cert("127.0.0.1", "localhost")
        self.certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.key)

    @property
    def settings(self) -> dict[str, str]:
        return {"LEDGERD_TLS_CERTIFICATE": str(self.certificate), "LEDGERD_TLS_KEY": str(self.key)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def served_certificate(url: str, files: Files) -> str:
    host, _, port = url.removeprefix("wss://").rstrip("/").rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(files.ca_file))


def test_commands_talk_to_a_daemon_with_tls(serve: Any, ledgerd: Any, files: Files) -> None:
    running = serve(**files.settings)
    assert running.url.startswith("wss://127.0.0.1:")
    there = ("--url", running.url, "--token-file", str(running.token_file))
    done = ledgerd("call", "session_status", *there, "--ca-file", str(files.ca_file))
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["scopes"] == ["operator"]
    assert ledgerd("call", "system_info", *there, LEDGERD_CA_FILE=str(files.ca_file)).returncode == 0
    doubtful = ledgerd("call", "system_info", *there)
    assert doubtful.returncode != 0
    assert "certificate verify failed" in doubtful.stderr
    assert running.signal(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("ca_file", "says"), [("missing.pem", "no authorities can be read"), (None, "authorities are for wss://")]
)
def test_a_ca_file_that_makes_no_sense_is_said(ledgerd: Any, files: Files, ca_file: str | None, says: str) -> None:
    url = "ws://127.0.0.1:1" if ca_file is None else "wss://127.0.0.1:1"
    done = ledgerd("call", "system_info", "--url", url, "--ca-file", ca_file or str(files.ca_file))
    assert done.returncode == 2
    assert says in done.stderr


async def test_a_feed_lives_on_while_the_certificate_is_exchanged(serve: Any, files: Files) -> None:
    running = serve(**files.settings)
    before = served_certificate(running.url, files)
    async with open_client(running.url, token=running.token, ca_file=str(files.ca_file)) as client:
        made = await client.call("user_register", name="somebody", currency="USD")
        async with client.subscribe("balances", account_ids=[made.account.account_id]) as feed:
            files.issue()
            running.process.send_signal(signal.SIGHUP)
            await trio.to_thread.run_sync(running.output.until, lambda line: '"event": "reloaded"' in line)
            assert served_certificate(running.url, files) != before
            await client.credit(account_id=made.account.account_id, amount="1.00")
            async for event in feed:
                if getattr(event, "balance", None) == "1.00":
                    break
        assert client.connections == 1
    current = served_certificate(running.url, files)
    files.key.write_text("broken")
    running.process.send_signal(signal.SIGHUP)
    await trio.to_thread.run_sync(running.output.until, lambda line: '"event": "reload_refused"' in line)
    assert served_certificate(running.url, files) == current


def test_watch_follows_over_tls(serve: Any, ledgerd: Any, files: Files) -> None:
    running = serve(**files.settings)
    there = ("--url", running.url, "--token-file", str(running.token_file), "--ca-file", str(files.ca_file))
    done = ledgerd("watch", "--account", "999999", *there)
    assert "not_found" in done.stderr, "the daemon was reached, and knows no such account"


def test_files_that_cannot_be_used_stop_the_start_with_a_sentence(ledgerd: Any, cluster: Any, files: Files) -> None:
    files.key.unlink()
    done = ledgerd("serve", "--dsn", cluster.daemon_dsn, "--listen", "127.0.0.1:0", **files.settings)
    assert done.returncode != 0
    assert "tls_key" in done.stderr
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
