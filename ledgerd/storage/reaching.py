"""Why a connection to the database could not be had, and what to do about it, in a sentence."""

from __future__ import annotations

import socket
import ssl

import asyncpg
from msgspec import Struct

from ledgerd.masking import error_text
from ledgerd.storage.failures import Failure, classify


class Unreached(Struct, frozen=True):
    """``is_final`` says that trying again will not help: somebody has to mend something first."""

    found: str
    advice: str
    is_final: bool

    @property
    def sentence(self) -> str:
        """Both in one."""
        return f"{self.found}: {self.advice}"


_NO_PRIMARY = "not to be written to"

_BY_STATE = {
    "28P01": "correct the password (in the DSN, a pgpass file or PGPASSWORD), or set it with ALTER ROLE ... PASSWORD",
    "3D000": "correct the database's name in the DSN, or CREATE DATABASE and run `ledgerd migrate --apply`",
    "42501": "GRANT CONNECT ON DATABASE ... TO ledgerd_daemon",
    "53300": "raise max_connections or the role's and the database's CONNECTION LIMIT, or end what is not needed",
    "57P03": "it is starting or stopping, or is a standby that answers nobody (hot_standby = off): wait, and look into "
    "its log",
}


def unreached(error: BaseException) -> Unreached:
    """What an attempt to connect that ended in this exception means."""
    told = error_text(error)
    if isinstance(error, asyncpg.PostgresError):
        refused = "the database refuses the connection"
        return Unreached(f"{refused} ({told})", _advice_of_server(error), is_final=_is_final(error))
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched) or _NO_PRIMARY in told:
        return Unreached(
            f"no host of the DSN can be written to ({told})",
            "wait until a standby is promoted, or name the host of the primary",
            is_final=False,
        )
    if classify(error) is Failure.REFUSED:
        return Unreached(
            f"the database refuses the connection ({told})",
            "correct the DSN: postgresql://role:password@host:port/database?sslmode=verify-full",
            is_final=True,
        )
    return Unreached(f"the database cannot be reached ({told})", _advice_of_network(error), is_final=False)


def _is_final(error: asyncpg.PostgresError) -> bool:
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return True
    return classify(error) is Failure.REFUSED


def _advice_of_server(error: asyncpg.PostgresError) -> str:
    state, said = error.sqlstate or "", str(error)
    if "pg_hba.conf" in said:
        return (
            "add a line for this role, database and address to pg_hba.conf and reload, or ask with TLS if it wants that"
        )
    if state == "28000":
        return "CREATE ROLE ... LOGIN IN ROLE ledgerd_daemon, or correct the role's name in the DSN"
    if state == "08P01":
        return "a pooler says this: does it reach the server, does it know this database and role? Look into its log"
    return _BY_STATE.get(state, "look into the server's log")


def _advice_of_network(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "nobody listens there: is PostgreSQL running, are host and port right, does listen_addresses include it?"
    if isinstance(error, socket.gaierror):
        return "the host's name is not known: correct it in the DSN, or look at the resolver"
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: is PostgreSQL running, and is host its unix_socket_directories?"
    if isinstance(error, PermissionError):
        return "this user may not open the socket: look at unix_socket_permissions and at the unit's sandbox"
    if isinstance(error, ssl.SSLError):
        return "TLS could not be agreed on: look at sslmode, sslrootcert and the server's certificate"
    if isinstance(error, TimeoutError):
        return "no answer in time: is the host right, does a firewall drop what goes there, does a pooler wait?"
    return "is PostgreSQL running, and are host and port of the DSN right?"
