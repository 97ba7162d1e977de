"""Whatever keeps a connection from being had is told with what to do, and whether waiting may help."""

from __future__ import annotations

import socket
import ssl

import asyncpg
import pytest

from ledgerd.storage.reaching import unreached


def refused(error: type[asyncpg.PostgresError], message: str) -> asyncpg.PostgresError:
    return error(message)


@pytest.mark.parametrize(
    ("error", "is_final", "advice"),
    [
        (refused(asyncpg.InvalidPasswordError, "password authentication failed for user x"), True, "the password"),
        (refused(asyncpg.InvalidAuthorizationSpecificationError, "no pg_hba.conf entry for host"), True, "pg_hba.conf"),
        (refused(asyncpg.InvalidAuthorizationSpecificationError, "role x does not exist"), True, "CREATE ROLE"),
        (refused(asyncpg.InvalidCatalogNameError, "database x does not exist"), True, "CREATE DATABASE"),
        (refused(asyncpg.InsufficientPrivilegeError, "permission denied for database x"), True, "GRANT CONNECT"),
        (refused(asyncpg.TooManyConnectionsError, "sorry, too many clients already"), False, "max_connections"),
        (refused(asyncpg.CannotConnectNowError, "the database system is starting up"), False, "wait"),
        # PgBouncer says so of a server that restarts behind it.
        (refused(asyncpg.ProtocolViolationError, "server login has been failing"), False, "pooler"),
        (refused(asyncpg.AdminShutdownError, "terminating connection"), False, "server's log"),
        (OSError("a: up, but not to be written to; b: ConnectionRefusedError"), False, "promoted"),
        (asyncpg.TargetServerAttributeNotMatched("none"), False, "promoted"),
        (ConnectionRefusedError(111, "Connect call failed"), False, "listen_addresses"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0)"), False, "listen_addresses"),
        (socket.gaierror(-2, "Name or service not known"), False, "resolver"),
        (FileNotFoundError(2, "No such file or directory"), False, "unix_socket_directories"),
        (PermissionError(13, "Permission denied"), False, "sandbox"),
        (ssl.SSLError(1, "certificate verify failed"), False, "sslrootcert"),
        (TimeoutError(), False, "firewall"),
        (ConnectionResetError(104, "Connection reset by peer"), False, "host and port"),
        (asyncpg.exceptions.ClientConfigurationError("invalid DSN postgresql://u:secret@h"), True, "correct the DSN"),
        (ValueError("port must be a number"), True, "correct the DSN"),
    ],
    ids=lambda value: f"{type(value).__name__} {value}" if isinstance(value, Exception) else None,
)
def test_every_reason_has_its_advice(error: Exception, is_final: bool, advice: str) -> None:
    why = unreached(error)
    assert why.is_final is is_final
    assert advice in why.advice
    assert why.sentence == f"{why.found}: {why.advice}"
    assert "secret" not in why.sentence
