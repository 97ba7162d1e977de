"""The commands a person types. Each is a page of help with an example, and ends with an exit code that means something.

Rules of this file:

- A token is read from a file or from LEDGERD_TOKEN, never from the command line, where every user of the machine can
  read it.
- Answers go to standard output, everything else to standard error. Expected failures are one sentence.
- The daemon and the database are imported by the commands that need them: `ledgerd call` should start quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import trio
from cyclopts import App, Group, Parameter
from rich.console import Console
from rich.table import Table

from ledgerd import __version__
from ledgerd.exits import EXIT_CODES, Exit, Failed, leaves

DEFAULT_URL = "ws://127.0.0.1:8710"

_HELP = f"""
A ledger daemon for teams that already run Postgres: JSON-RPC over WebSocket in, exact money in Postgres, live balances out.

See it work: `ledgerd demo`. Try it yourself: `ledgerd dev`, and in another terminal `ledgerd call system_info`.

{EXIT_CODES}
"""

_RUN = Group("Run a ledger", sort_key=1)
_TALK = Group("Talk to one", sort_key=2)
_OTHER = Group("Settings", sort_key=3)

app = App(
    name="ledgerd", help=_HELP, version=f"ledgerd {__version__}", version_flags=["--version"], help_format="markdown"
)
token_app = App(name="token", help="Create, list and revoke tokens.", group=_TALK)
app.command(token_app)


# -- shared options ------------------------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True)
class Door:
    """Which daemon, and as whom."""

    url: Annotated[str, Parameter(env_var="LEDGERD_URL")] = DEFAULT_URL
    "WebSocket URL of the daemon."
    token_file: Path | None = None
    "File that holds the token. Without it LEDGERD_TOKEN is used; without both you are nobody."
    wait: float = 0.0
    "Seconds to wait for a daemon that is not there yet."


@Parameter(name="*")
@dataclass(frozen=True)
class Layers:
    """Where settings come from, beside LEDGERD_* in the environment."""

    config: Annotated[Path | None, Parameter(env_var="LEDGERD_CONFIG")] = None
    "TOML file with settings."
    set: list[str] = field(default_factory=list)
    "One more setting, NAME=VALUE; may be repeated. It wins over environment and file."


def _settings(layers: Layers, **flags: str | None) -> Any:
    from ledgerd.settings import SettingsError, load

    given: dict[str, str | None] = {}
    for text in layers.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failed(f"--set {text}: write NAME=VALUE, for example --set lanes=4", Exit.USAGE)
        given[name.strip()] = value
    given.update({name: value for name, value in flags.items() if value is not None})
    try:
        return load(given, os.environ, layers.config)
    except SettingsError as error:
        raise Failed("\n         ".join(error.problems), Exit.USAGE) from error


def _token(door: Door) -> str | None:
    if door.token_file is None:
        return os.environ.get("LEDGERD_TOKEN") or None
    try:
        secret = door.token_file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"the token file {door.token_file} cannot be read: {error}", Exit.USAGE) from error
    if not secret.startswith("lgd_") or len(secret.split()) != 1:
        raise Failed(f"{door.token_file} holds no ledgerd token (one line that begins with lgd_)", Exit.USAGE)
    return secret


@contextmanager
def _database_errors() -> Iterator[None]:
    """What a connection of our own to the database may end with, said in a sentence."""
    from ledgerd.logs import without_secrets
    from ledgerd.storage.failures import DATABASE_ERRORS, Failure, classify
    from ledgerd.storage.migrations import MigrationMismatch

    try:
        yield
    except MigrationMismatch as error:
        raise Failed(str(error)) from error
    except DATABASE_ERRORS as error:
        told = without_secrets(str(error)) or type(error).__name__
        if classify(error) is Failure.REFUSED:
            raise Failed(f"the database refuses: {told}") from error
        raise Failed(f"cannot connect to the database: {told}", Exit.CANNOT_CONNECT) from error


def _stdout() -> Console:
    return Console(highlight=False)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# -- run a ledger --------------------------------------------------------------------------------------------------


@app.command(group=_RUN)
def demo() -> None:
    """Play a short scene on a ledger of its own, and clean up.

    Starts a private PostgreSQL in a temporary directory, the daemon, and two users who move money over WebSockets.
    Takes a few seconds.

    Example: `ledgerd demo`
    """
    from ledgerd.demo import run_demo
    from ledgerd.dev import sigterm_ends
    from ledgerd.logs import configure
    from ledgerd.settings import load

    configure("error")
    with sigterm_ends():
        run_demo(load({"listen": "127.0.0.1:0", "http": "127.0.0.1:0"}, {}), _stdout())


@app.command(group=_RUN)
def dev(
    *,
    data: Path = Path(".ledgerd"),
    listen: str | None = None,
    http: str | None = None,
    layers: Layers = Layers(),
) -> None:
    """Run a ledger on this machine, with a private PostgreSQL that keeps its data.

    Nothing has to be installed or set up. Everybody on this machine may sign up and credit himself; the addresses must
    be loopback ones. Ends with exit code 0 on Ctrl-C or SIGTERM, after answering what is in flight.

    Example: `ledgerd dev --data .ledgerd --listen 127.0.0.1:8710`

    Parameters
    ----------
    data
        Directory for the database, operator.token, and daemon.json, which says where a running daemon is.
    listen
        WebSocket address, HOST:PORT. Port 0 takes any free one.
    http
        Address of health and metrics, HOST:PORT.
    """
    from ledgerd import dev as development
    from ledgerd.logs import configure

    settings = _settings(layers, listen=listen, http=http)
    quiet = settings.sources["log_level"] == "default"
    configure("warning" if quiet else settings.config.log_level)
    console = _stdout()
    with development.sigterm_ends(), development.open_house(data, settings) as house:

        def on_ready(ready: Any) -> None:
            development.note_state(house, ready)
            development.announce(house, ready, console)

        development.serve(house.config, on_ready)


@app.command(group=_RUN)
def serve(
    *,
    dsn: str | None = None,
    listen: str | None = None,
    http: str | None = None,
    keep_epoch: bool = False,
    layers: Layers = Layers(),
) -> None:
    """Run the daemon on your own PostgreSQL, in production. Sign-up is closed.

    The database must have been migrated, and the DSN should be that of a role in ledgerd_daemon, not the owner's.
    Ends with exit code 0 on SIGTERM or Ctrl-C, after answering what is in flight.

    Example: `LEDGERD_DSN=postgresql://ledgerd@db/bank ledgerd serve --listen 127.0.0.1:8710`

    Parameters
    ----------
    dsn
        Connection string. Others can read it on the command line: give passwords in LEDGERD_DSN or in a pgpass file.
    listen
        WebSocket address, HOST:PORT.
    http
        Address of health and metrics, HOST:PORT.
    keep_epoch
        Serve a restored or promoted database as if nothing had been lost. Subscribers then resume instead of starting
        over.
    """
    from ledgerd import dev as development
    from ledgerd.logs import configure

    settings = _settings(layers, dsn=dsn, listen=listen, http=http)
    if not settings.config.dsn:
        raise Failed("there is no database to serve: set LEDGERD_DSN, or use `ledgerd dev`", Exit.USAGE)
    configure(settings.config.log_level)
    development.serve(settings.config, lambda _: None, keep_epoch=keep_epoch)


@app.command(group=_RUN)
def migrate(
    *,
    dsn: Annotated[str | None, Parameter(env_var="LEDGERD_OWNER_DSN")] = None,
    apply: Annotated[bool, Parameter(name=["--apply", "--yes"], negative=())] = False,
) -> None:
    """Show what a database lacks for this release, and with --apply bring it up to date.

    Needs the connection of the role that owns the ledger's schema. Safe to run twice and from several machines.

    Example: `LEDGERD_OWNER_DSN=postgresql://owner@db/bank ledgerd migrate --apply`

    Parameters
    ----------
    dsn
        The owner's connection string.
    apply
        Do it. Without this nothing is changed.
    """
    from ledgerd.storage import migrations

    if not dsn:
        raise Failed("whose database? Give the owner's connection in LEDGERD_OWNER_DSN or --dsn", Exit.USAGE)
    with _database_errors():
        if apply:
            done = migrations.migrate(dsn, report=lambda migration: _write(f"applying {migration.name}"))
            _write(f"{len(done)} applied; the database is up to date" if done else "nothing to do")
            return
        missing = migrations.plan(dsn)
    for migration in missing:
        _write(f"would apply {migration.name}")
    _write("nothing changed; run again with --apply" if missing else "nothing to do")


# -- talk to one ---------------------------------------------------------------------------------------------------


@app.command(group=_TALK)
def call(method: str, params: str = "{}", *, door: Door = Door()) -> None:
    """Call one method and print its result as JSON.

    A money command gets a transaction_id if it has none, and is sent again with the same one if the connection breaks.
    When the ledger refuses, the reason goes to standard error and the whole error as JSON to standard output.

    Example: `ledgerd call transfer '{"source_account_id": 1, "destination_account_id": 2, "amount": "9.90"}'`

    Parameters
    ----------
    method
        A method of the protocol, for example balance_get. `ledgerd call rpc.discover` lists them.
    params
        Its parameters as a JSON object, or - to read them from standard input (passwords belong there).
    """
    from ledgerd_protocol.errors import LedgerError

    text = sys.stdin.read() if params == "-" else params
    members = _members(text)
    console = _stdout()
    try:
        result = trio.run(_call, door, method, members)
    except LedgerError as error:
        _print_json(console, {"error": error.to_wire()})
        raise
    _print_json(console, result)


async def _call(door: Door, method: str, members: dict[str, Any]) -> Any:
    async with _connected(door) as client:
        return await client.call_raw(method, members)


def _connected(door: Door) -> Any:
    from ledgerd_protocol.client import open_client
    from ledgerd_protocol.connection import Retry

    patience = Retry(first_connect_s=door.wait, reconnect_s=30.0)
    try:
        return open_client(door.url, token=_token(door), retry=patience)
    except ValueError as error:
        raise Failed(str(error), Exit.USAGE) from error


def _members(text: str) -> dict[str, Any]:
    """The members of a JSON object. Numbers keep their spelling: 10.10 must not become 10.1 on its way."""
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return {
            name: msgspec.json.decode(raw) if bytes(raw)[:1] == b'"' else msgspec.Raw(bytes(raw))
            for name, raw in members.items()
        }
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Failed(
            f"the parameters must be one JSON object, like '{{\"user_id\": 7}}': {error}", Exit.USAGE
        ) from error


def _print_json(console: Console, value: Any) -> None:
    data = msgspec.json.encode(value)
    if console.is_terminal:
        console.print_json(msgspec.json.format(data, indent=2).decode())
    else:
        _write(data.decode())


@app.command(group=_TALK)
def watch(
    *,
    account: list[int] | None = None,
    user: int | None = None,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    for_s: Annotated[float | None, Parameter(name="--for")] = None,
    count: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    door: Door = Door(),
) -> None:
    """Follow balances as they change, in a live table, or line by line when the output is not a terminal.

    Without a choice it follows all accounts of the token's user. It outlives restarts of the daemon and marks where it
    resumed; no change is missing.

    Example: `ledgerd watch --account 1 --token-file ann.token`

    Parameters
    ----------
    account
        An account's number; may be repeated.
    user
        All accounts of a user, also those opened later.
    everything
        Every account (operators only).
    for_s
        End after this many seconds.
    count
        End after this many changes.
    json
        Print events as JSON lines, as the protocol spells them.
    """
    from ledgerd import watch as watching

    target = watching.Target(account or None, user, everything)
    if sum((bool(account), user is not None, everything)) > 1:
        raise Failed("choose one of --account, --user and --all", Exit.USAGE)
    run = partial(watching.watch, door.url, _token(door), target, for_s=for_s, count=count)
    console = _stdout()
    if json or not console.is_terminal:
        trio.run(run, (watching.JsonLines if json else watching.Lines)(_write))
        return
    with watching.LiveTable(console, f"ledgerd  {door.url}") as table:
        trio.run(run, table)


# -- tokens --------------------------------------------------------------------------------------------------------


@token_app.command
def create(
    *scopes: Literal["read", "user", "topup", "service", "operator"],
    user_id: int | None = None,
    account_id: int | None = None,
    label: str | None = None,
    expires_at: str | None = None,
    out: Path | None = None,
    dsn: Annotated[str | None, Parameter(env_var="LEDGERD_OWNER_DSN")] = None,
    door: Door = Door(),
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

        with _database_errors():
            secret = create_first_token(dsn, list(scopes), label or "first token", user_id)
    else:
        wanted = {"user_id": user_id, "account_id": account_id, "label": label, "expires_at": expires_at}
        members = {"scopes": list(scopes), **{name: value for name, value in wanted.items() if value is not None}}
        secret = msgspec.json.decode(trio.run(_call, door, "token_create", members))["token"]
    if out is None:
        _write(secret)
        return
    from ledgerd.secrets import write_secret

    write_secret(out, secret)
    sys.stderr.write(f"the token is in {out}\n")


@token_app.command(name="list")
def list_(*, user_id: int | None = None, door: Door = Door()) -> None:
    """List tokens, without their secrets: your own, or a user's.

    Example: `ledgerd token list --user-id 7 --token-file operator.token`

    Parameters
    ----------
    user_id
        Whose tokens.
    """
    items = trio.run(_all_tokens, door, {} if user_id is None else {"user_id": user_id})
    console = _stdout()
    if not console.is_terminal:
        for item in items:
            _write(msgspec.json.encode(item).decode())
        return
    names = ("token_id", "user_id", "account_id", "scopes", "label", "created_at", "expires_at", "revoked_at")
    table = Table(*names)
    for item in items:
        cells = [" ".join(item[name]) if name == "scopes" else item.get(name) for name in names]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console.print(table)


async def _all_tokens(door: Door, members: dict[str, Any]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    async with _connected(door) as client:
        while True:
            page = msgspec.json.decode(await client.call_raw("token_list", members))
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            members = {**members, "cursor": page["next_cursor"]}


@token_app.command
def revoke(token_id: int, *, door: Door = Door()) -> None:
    """Revoke a token by its number; every daemon refuses it from then on.

    Example: `ledgerd token revoke 12 --token-file operator.token`

    Parameters
    ----------
    token_id
        Its number, from `token list`.
    """
    _write(bytes(trio.run(_call, door, "token_revoke", {"token_id": token_id})).decode())


# -- settings ------------------------------------------------------------------------------------------------------


@app.command(name="config", group=_OTHER)
def show_config(
    *,
    dsn: str | None = None,
    listen: str | None = None,
    http: str | None = None,
    layers: Layers = Layers(),
) -> None:
    """Print every setting, its value and where it came from. Passwords are masked.

    Flags win over LEDGERD_<NAME> in the environment, that over the TOML file, that over the defaults. Lists are written
    a,b,c and currencies BTC=8,XYZ=2.

    Example: `LEDGERD_LANES=4 ledgerd config --config ledgerd.toml`

    Parameters
    ----------
    dsn
        Connection string.
    listen
        WebSocket address, HOST:PORT.
    http
        Address of health and metrics, HOST:PORT.
    """
    rows = _settings(layers, dsn=dsn, listen=listen, http=http).rows()
    console = _stdout()
    if not console.is_terminal:
        for row in rows:
            _write("\t".join(row))
        return
    table = Table("setting", "value", "source")
    for name, value, source in rows:
        table.add_row(name, value, source, style="" if source != "default" else "dim")
    console.print(table)


# -- the way out ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. Unexpected exceptions are bugs and keep their tracebacks."""
    try:
        app(arguments, result_action="return_value")
    except BaseException as error:
        code = _told(error)
        if code is None:
            raise
        return code
    return Exit.OK


def _told(error: BaseException) -> int | None:
    """Say an expected failure in one sentence; its exit code, or None for a bug."""
    from ledgerd_protocol.call import OutcomeUnknown
    from ledgerd_protocol.connection import CannotConnect, ConnectionEnded
    from ledgerd_protocol.cursor import FeedGap
    from ledgerd_protocol.errors import LedgerError

    match leaves(error)[0]:
        case Failed() as failed:
            return _say(str(failed), failed.code)
        case LedgerError() as refused:
            unknown = refused.applied is None
            advice = "; its outcome is unknown: send the same transaction_id again or cancel it" if unknown else ""
            return _say(f"{refused}{advice}", Exit.OUTCOME_UNKNOWN if unknown else Exit.REFUSED)
        case OutcomeUnknown() as unknown_outcome:
            named = unknown_outcome.transaction_id
            again = f"; send transaction_id {named} again, or cancel it" if named else "; look before you repeat it"
            return _say(f"{unknown_outcome}{again}", Exit.OUTCOME_UNKNOWN)
        case CannotConnect() as away:
            return _say(f"cannot reach the daemon ({away}): is it running, and is --url right?", Exit.CANNOT_CONNECT)
        case ConnectionEnded() as ended:
            advice = ": give a valid token in --token-file or LEDGERD_TOKEN" if ended.code in (401, 4401) else ""
            return _say(f"{ended}{advice}", Exit.REFUSED)
        case FeedGap() as gap:
            return _say(f"the feed was not complete: {gap}", Exit.REFUSED)
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case BrokenPipeError():
            # Whoever read our output has left, as in `ledgerd watch | head`. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.OK
    return None


def _say(sentence: str, code: Exit) -> int:
    sys.stderr.write(f"ledgerd: {sentence}\n")
    return code
