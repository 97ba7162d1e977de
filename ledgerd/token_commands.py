"""The commands about tokens: they are made here or over the wire, shown once, and revoked by number."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import trio
from cyclopts import App, Parameter
from rich.table import Table

from ledgerd.exits import Exit, Failed, database_errors
from ledgerd.remote import HERE, TALK, Door, all_tokens, call_once
from ledgerd.secrets import write_secret
from ledgerd.terminal import stdout, write

token_app = App(name="token", help="Create, list and revoke tokens.", group=TALK)


@token_app.command
def create(
    *scopes: Literal["read", "user", "topup", "service", "operator"],
    user_id: int | None = None,
    account_id: int | None = None,
    label: str | None = None,
    expires_at: str | None = None,
    out: Path | None = None,
    dsn: Annotated[str | None, Parameter(env_var="LEDGERD_OWNER_DSN")] = None,
    door: Door = HERE,
) -> None:
    """Make a token and print its secret, once.

    Over the wire it is made with your token and is no wider than that. The first one of a database is made with the
    owner's connection (--dsn).

    Example: `ledgerd token create operator --label ops --out operator.token --dsn postgresql://owner@db/bank`

    Parameters
    ----------
    scopes
        What the token may do: read, user, topup, service, operator.
    user_id
        Whom it acts for. Service and operator tokens need nobody.
    account_id
        The only account it may touch.
    label
        A note for `token list`.
    expires_at
        RFC 3339 time, for example 2027-01-01T00:00:00Z.
    out
        Write the secret into this file, readable by you only, instead of printing it.
    dsn
        The owner's connection string: makes the token in the database, without a daemon.
    """
    if not scopes:
        raise Failed("name at least one scope, for example: ledgerd token create read --user-id 7", Exit.USAGE)
    if out is not None and out.exists():
        raise Failed(f"{out} exists; a token is not overwritten", Exit.USAGE)
    if dsn:
        if account_id is not None or expires_at is not None:
            raise Failed("--account-id and --expires-at need a daemon: leave --dsn out", Exit.USAGE)
        from ledgerd.storage.owner_tokens import create_first_token

        with database_errors():
            secret = create_first_token(dsn, list(scopes), label or "first token", user_id)
    else:
        wanted = {"user_id": user_id, "account_id": account_id, "label": label, "expires_at": expires_at}
        members = {"scopes": list(scopes), **{name: value for name, value in wanted.items() if value is not None}}
        secret = msgspec.json.decode(trio.run(call_once, door, "token_create", members))["token"]
    if out is None:
        write(secret)
        return
    write_secret(out, secret)
    sys.stderr.write(f"the token is in {out}\n")


@token_app.command(name="list")
def list_(*, user_id: int | None = None, door: Door = HERE) -> None:
    """List tokens, without their secrets: your own, or a user's.

    Example: `ledgerd token list --user-id 7 --token-file operator.token`

    Parameters
    ----------
    user_id
        Whose tokens.
    """
    items = trio.run(all_tokens, door, {} if user_id is None else {"user_id": user_id})
    console = stdout()
    if not console.is_terminal:
        for item in items:
            write(msgspec.json.encode(item).decode())
        return
    names = ("token_id", "user_id", "account_id", "scopes", "label", "created_at", "expires_at", "revoked_at")
    table = Table(*names)
    for item in items:
        cells = [" ".join(item[name]) if name == "scopes" else item.get(name) for name in names]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console.print(table)


@token_app.command
def revoke(token_id: int, *, door: Door = HERE) -> None:
    """Revoke a token by its number; every daemon refuses it from then on.

    Example: `ledgerd token revoke 12 --token-file operator.token`

    Parameters
    ----------
    token_id
        Its number, from `token list`.
    """
    write(bytes(trio.run(call_once, door, "token_revoke", {"token_id": token_id})).decode())
