"""TLS: what is offered, what is refused, and how a certificate is exchanged."""

from __future__ import annotations

import gc
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from structlog.testing import capture_logs

from ledgerd.config import Config
from ledgerd.gateway.server import InsecureListen
from ledgerd.gateway.tls import CertificateUnusable, ServerTls
from ledgerd_protocol.client import open_client
from ledgerd_protocol.connection import CannotConnect
from tests.gateway.fakes import Client, Door, eventually, handshake, text_frame
from tests.gateway.fakes import open_client as open_raw_client
from tests.gateway.test_places import refusals

PING = text_frame(b'{"jsonrpc":"2.0","id":1,"method":"system_ping"}')


class Files:
    """An authority, and a certificate of it in files."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = directory / "server.pem", directory / "server.key"
        self.ca_file = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        self.issue()

    def issue(self, name: str = "127.0.0.1", **given: Any) -> trustme.LeafCert:
        """Write another certificate in the place of the one before."""
        leaf = self.authority.issue_cert(name, "localhost", **given)
        self.certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(self.key)
        return leaf

    def tls(self) -> ServerTls:
        return ServerTls(str(self.certificate), str(self.key))

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def open_tls_door(files: Files, host: str = "127.0.0.1", **settings: Any) -> AsyncIterator[tuple[Door, int]]:
    """A gateway that serves wss:// on a real port."""
    async with trio.open_nursery() as nursery:
        door = Door(Config(**settings), nursery, tls=files.tls())
        listeners = await trio.open_tcp_listeners(0, host=host)
        await nursery.start(door.gateway.serve, listeners)
        yield door, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def dial(port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    transport = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(transport, context, server_hostname="127.0.0.1")
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    return stream


# -- the files --------------------------------------------------------------------------------------------------------


def test_what_is_offered_is_modern(files: Files) -> None:
    context = files.tls().context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    names = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert names
    assert all(re.fullmatch(r"ECDHE-(RSA|ECDSA)-(AES\d+-GCM|CHACHA20).*", name) for name in names), names
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.num_tickets == 0


def test_one_file_may_hold_both(files: Files) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    ServerTls(str(files.certificate))


def locked(files: Files, _: Path) -> None:
    command = ["openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", f"{files.key}.2"]
    subprocess.run(command, check=True, capture_output=True)
    Path(f"{files.key}.2").replace(files.key)


BROKEN = {
    "no certificate": (lambda files, _: files.certificate.unlink(), "tls_certificate: .*server.pem cannot be read: No"),
    "no key": (lambda files, _: files.key.unlink(), "tls_key: .*server.key cannot be read: No such file"),
    "a directory": (lambda files, _: (files.key.unlink(), files.key.mkdir()), "tls_key: .* Is a directory"),
    "nonsense": (lambda files, _: files.certificate.write_text("nonsense"), "holds no certificate in PEM"),
    "an empty key": (lambda files, _: files.key.write_text(""), "server.key holds no private key in PEM"),
    "half a file": (
        lambda files, _: files.certificate.write_bytes(files.certificate.read_bytes()[:300]),
        "cannot be used",
    ),
    "another's key": (
        lambda files, _: files.authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(files.key),
        "server.key is not the key of the certificate in .*server.pem",
    ),
    "a key with a password": (locked, "server.key needs a password"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_cannot_be_used_are_refused_in_words_and_change_nothing(
    files: Files, tmp_path: Path, how: str
) -> None:
    tls = files.tls()
    context = tls.context
    damage, says = BROKEN[how]
    damage(files, tmp_path)
    with pytest.raises(CertificateUnusable, match=says):
        files.tls()
    with pytest.raises(CertificateUnusable, match=says):
        tls.reload()
    assert tls.context is context


def test_a_certificate_without_a_key_in_its_file_needs_tls_key(files: Files) -> None:
    with pytest.raises(CertificateUnusable, match="tls_key is not set"):
        ServerTls(str(files.certificate))


@pytest.mark.parametrize(
    ("begins_in_days", "ends_in_days", "says"),
    [(-30, -1, "expired"), (1, 30, "not valid yet")],
)
def test_a_certificate_at_the_wrong_time_is_served_with_a_warning(
    files: Files, begins_in_days: int, ends_in_days: int, says: str
) -> None:
    now = datetime.now(UTC)
    files.issue(not_before=now + timedelta(begins_in_days), not_after=now + timedelta(ends_in_days))
    with capture_logs() as lines:
        files.tls()
    (line,) = lines
    assert line["log_level"] == "warning"
    assert says in line["trouble"]


def test_a_good_certificate_is_told_with_its_end(files: Files) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    files.issue(not_after=end)
    with capture_logs() as lines:
        files.tls()
    assert [(line["log_level"], line["valid_until"]) for line in lines] == [("info", end.isoformat())]


# -- the door ---------------------------------------------------------------------------------------------------------


async def test_the_client_speaks_over_tls_and_checks_who_answers(files: Files) -> None:
    async with open_tls_door(files) as (door, port):
        url = f"wss://127.0.0.1:{port}/"
        secret = door.books.token("user", user_id=1)
        async with open_client(url, token=secret, ca_file=str(files.ca_file)) as client:
            assert (await client.call("session_status")).authenticated
        with pytest.raises(CannotConnect, match="certificate verify failed"):
            async with open_client(url, token=secret):
                pass


async def test_nothing_is_given_to_a_client_that_names_another_host(files: Files) -> None:
    files.issue("ledger.example")
    async with open_tls_door(files) as (_, port):
        with pytest.raises(trio.BrokenResourceError):
            await dial(port, files.client_context())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls_are_served(files: Files, version: ssl.TLSVersion) -> None:
    context = files.client_context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with open_tls_door(files) as (door, port), await dial(port, context) as stream:
        assert stream.selected_alpn_protocol() == "http/1.1"
        assert stream.compression() is None
        status, _ = await handshake(stream, {"Authorization": f"Bearer {door.books.token('service')}"})
        assert status == 101
        await stream.send_all(PING)
        assert b'"time"' in await stream.receive_some()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_tls_1_1_is_refused(files: Files) -> None:
    before = refusals("tls")
    context = files.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with open_tls_door(files) as (_, port):
        with pytest.raises(trio.BrokenResourceError):
            await dial(port, context)
        await eventually(lambda: refusals("tls") == before + 1)


async def test_a_cipher_without_forward_secrecy_is_refused(files: Files) -> None:
    context = files.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256")
    async with open_tls_door(files) as (_, port):
        with pytest.raises(trio.BrokenResourceError):
            await dial(port, context)


async def test_a_new_certificate_is_for_new_connections_and_open_ones_stay(files: Files) -> None:
    async with open_tls_door(files) as (door, port):
        tls = door.tls
        assert tls is not None
        secret = door.books.token("service")
        first = await dial(port, files.client_context())
        assert (await handshake(first, {"Authorization": f"Bearer {secret}"}))[0] == 101
        old = first.getpeercert()
        files.issue()
        async with await dial(port, files.client_context()) as before_reload:
            assert before_reload.getpeercert() == old
        tls.reload()
        async with await dial(port, files.client_context()) as second:
            assert second.getpeercert() != old
            current = second.getpeercert()
        files.key.write_text("broken")
        with pytest.raises(CertificateUnusable):
            tls.reload()
        async with await dial(port, files.client_context()) as third:
            assert third.getpeercert() == current
        await first.send_all(PING)
        assert b'"time"' in await first.receive_some()
        await first.aclose()


async def test_a_plain_client_is_hung_up_on(files: Files) -> None:
    before = refusals("tls")
    async with open_tls_door(files) as (door, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as plain:
            with suppress(trio.BrokenResourceError):
                assert (await handshake(plain, {}))[0] == 0
        await eventually(lambda: refusals("tls") == before + 1)
        assert door.gateway.connections == 0


@pytest.mark.parametrize("sent", [b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_half_a_handshake_is_cut_off_by_the_deadline(files: Files, sent: bytes) -> None:
    before = refusals("timeout")
    async with (
        open_tls_door(files, handshake_timeout_s=0.1) as (_, port),
        await trio.open_tcp_stream("127.0.0.1", port) as silent,
    ):
        await silent.send_all(sent)
        assert not await silent.receive_some()
    assert refusals("timeout") == before + 1


@pytest.mark.parametrize("how", ["after its handshake", "in the middle of a frame"])
async def test_a_client_that_vanishes_without_the_end_of_tls_is_no_crash(files: Files, how: str) -> None:
    async with open_tls_door(files) as (door, port):
        stream = await dial(port, files.client_context())
        assert (await handshake(stream, {"Authorization": f"Bearer {door.books.token('service')}"}))[0] == 101
        await eventually(lambda: door.gateway.connections == 1)
        if how != "after its handshake":
            await stream.send_all(PING[:-5])
        with capture_logs() as lines:
            await trio.aclose_forcefully(stream.transport_stream)
            await eventually(lambda: door.gateway.connections == 0)
        assert [line for line in lines if line["log_level"] in ("warning", "error")] == []


async def test_the_daemon_says_goodbye_with_a_close_frame_and_the_end_of_tls(files: Files) -> None:
    async with open_tls_door(files) as (door, port), await dial(port, files.client_context()) as stream:
        assert (await handshake(stream, {"Authorization": f"Bearer {door.books.token('service')}"}))[0] == 101
        await eventually(lambda: door.gateway.connections == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.gateway.drain, trio.current_time() + 5)
            seen = b""
            while b"\x88" not in seen:
                seen += await stream.receive_some()
            await stream.send_all(text_frame(b"\x03\xe9", opcode=8))
            # Without the end of TLS this would be a BrokenResourceError, and not the end of the stream.
            while await stream.receive_some():
                pass


@asynccontextmanager
async def open_tls_client(door: Door, port: int, files: Files) -> AsyncIterator[Client]:
    headers = [(b"Authorization", b"Bearer " + door.books.token("service").encode())]
    async with await dial(port, files.client_context()) as stream, trio.open_nursery() as nursery:
        yield await open_raw_client(nursery, stream, extra_headers=headers)
        nursery.cancel_scope.cancel()


async def test_many_messages_pass_both_ways_in_order(files: Files) -> None:
    async with open_tls_door(files) as (door, port), open_tls_client(door, port, files) as client:
        echoes = [f"{number} " + "x" * (number * 37 % 1000) for number in range(500)]

        async def ask() -> None:
            for echo in echoes:
                await client.ask("system_ping", {"echo": echo})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert [(await client.receive())["result"]["echo"] for _ in echoes] == echoes


async def test_an_answer_of_many_records_arrives_whole(files: Files) -> None:
    async with open_tls_door(files) as (door, port), open_tls_client(door, port, files) as client:
        for _ in range(20):
            await client.ask("rpc.discover")
        documents = [(await client.receive())["result"] for _ in range(20)]
        assert documents[0]["openrpc"]
        assert documents == [documents[0]] * 20


async def test_frames_cut_anywhere_by_records_are_understood(files: Files) -> None:
    async with open_tls_door(files) as (door, port), await dial(port, files.client_context()) as stream:
        assert (await handshake(stream, {"Authorization": f"Bearer {door.books.token('service')}"}))[0] == 101
        data = PING * 3
        for start in range(0, len(data), 7):
            await stream.send_all(data[start : start + 7])
        seen = b""
        while seen.count(b'"time"') < 3:
            seen += await stream.receive_some()


async def test_over_the_limit_a_tls_client_is_hung_up_on_before_the_handshake(files: Files) -> None:
    async with (
        open_tls_door(files, connections_per_address_max=1) as (_, port),
        await dial(port, files.client_context()),
    ):
        with pytest.raises(trio.BrokenResourceError):
            await dial(port, files.client_context())


async def test_with_tls_an_open_address_needs_no_permission(files: Files) -> None:
    async with open_tls_door(files, host="0.0.0.0") as (_, port), await dial(port, files.client_context()) as stream:
        assert (await handshake(stream, {}))[0] == 101
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="0.0.0.0")
        with pytest.raises(InsecureListen):
            await Door(Config(), nursery).gateway.serve(listeners)
        for listener in listeners:
            await listener.aclose()


async def test_a_unix_socket_stays_plain(files: Files, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(Config(), nursery, tls=files.tls())
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(tmp_path / "socket"))
        listening.listen()
        await nursery.start(door.gateway.serve, [trio.SocketListener(listening)])
        async with await trio.open_unix_socket(str(tmp_path / "socket")) as stream:
            assert (await handshake(stream, {}))[0] == 101
        nursery.cancel_scope.cancel()


async def test_nothing_of_a_connection_waits_for_the_garbage_collector(files: Files) -> None:
    """OpenSSL's memory is not the collector's: it would not come in time."""
    async with open_tls_door(files) as (door, port):
        gc.collect()
        gc.disable()
        try:
            before = servers_in_memory()
            for plain in (True, False) * 3:
                if plain:
                    async with await trio.open_tcp_stream("127.0.0.1", port) as garbage:
                        await garbage.send_all(b"garbage, and enough of it")
                        with suppress(trio.BrokenResourceError):
                            await garbage.receive_some()
                    continue
                async with await dial(port, files.client_context()) as stream:
                    assert (await handshake(stream, {}))[0] == 101
                await eventually(lambda: door.gateway.connections == 0)
            await eventually(lambda: servers_in_memory() <= before)
        finally:
            gc.enable()


def servers_in_memory() -> int:
    return sum(isinstance(each, ssl.SSLObject) and each.server_side for each in gc.get_objects())
