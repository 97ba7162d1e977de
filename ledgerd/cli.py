"""The commands a person types. Each is a page of help with an example, and ends with an exit code that means something.

Rules of this file:

- Answers go to standard output, everything else to standard error. Expected failures are one sentence.
- The daemon and the database are imported by the commands that need them: `ledgerd call` should start quickly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import App, Group, Parameter
from rich.table import Table

from ledgerd import __version__
from ledgerd.epoch_commands import epoch_app
from ledgerd.exits import EXIT_CODES, Exit, Failed, database_errors, failures_in_the_log, leaves, owner_dsn
from ledgerd.remote import HERE, TALK, Door, call_once, members_of
from ledgerd.report_command import report
from ledgerd.terminal import stdout, write, write_json
from ledgerd.token_commands import token_app

_HELP = f"""
A ledger daemon for teams that already run Postgres: JSON-RPC over WebSocket in, exact money in Postgres, live balances
out.

See it work: `ledgerd demo`. Try it yourself: `ledgerd dev`, and in another terminal `ledgerd call system_info`.

{EXIT_CODES}
"""

_RUN = Group("Run a ledger", sort_key=1)
_OTHER = Group("Settings", sort_key=3)

app = App(
    name="ledgerd", help=_HELP, version=f"ledgerd {__version__}", version_flags=["--version"], help_format="markdown"
)
app.command(token_app)
app.command(epoch_app)
app.command(report, group=TALK)


# -- shared options ------------------------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True)
class Layers:
    """Where settings come from, beside LEDGERD_* in the environment."""

    config: Annotated[Path | None, Parameter(env_var="LEDGERD_CONFIG")] = None
    "TOML file with settings."
    set: Annotated[list[str], Parameter(negative=())] = field(default_factory=list)
    "One more setting, NAME=VALUE; may be repeated. It wins over environment and file."


NONE_GIVEN = Layers()


def _load(layers: Layers, **flags: str | None) -> Any:
    """The settings as they are now. Raises SettingsError."""
    from ledgerd.settings import load

    given: dict[str, str | None] = {}
    for text in layers.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failed(f"--set {text}: write NAME=VALUE, for example --set lanes=4", Exit.USAGE)
        given[name.strip()] = value
    given.update({name: value for name, value in flags.items() if value is not None})
    return load(given, os.environ, layers.config)


def _settings(layers: Layers, **flags: str | None) -> Any:
    from ledgerd.config import SettingsError

    try:
        return _load(layers, **flags)
    except SettingsError as error:
        raise Failed("\n         ".join(error.problems), Exit.USAGE) from error


# -- run a ledger --------------------------------------------------------------------------------------------------


@app.command(group=_RUN)
def demo(*, advances: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Play a short scene on a ledger of its own, and clean up.

    Starts a private PostgreSQL in a temporary directory, the daemon, and two users who move money over WebSockets.
    Takes a few seconds.

    Example: `ledgerd demo`

    Parameters
    ----------
    advances
        Another scene: an advance and the twelve weeks in which it is paid back, with time moved on week by week. Ends
        with exit code 0 only if every payment was taken exactly once.
    """
    from ledgerd.demo import run_demo, short_scene
    from ledgerd.demo_advances import COLLECT_INTERVAL_S, twelve_weeks
    from ledgerd.dev import sigterm_ends
    from ledgerd.logs import configure
    from ledgerd.settings import load

    configure("error")
    with sigterm_ends():
        given = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0"}
        if advances:
            given["collect_interval_s"] = str(COLLECT_INTERVAL_S)
        settings = load(given, {})
        run_demo(settings, stdout(), twelve_weeks if advances else short_scene)


@app.command(group=_RUN)
def dev(
    *,
    data: Path = Path(".ledgerd"),
    listen: str | None = None,
    http: str | None = None,
    clock_speed: float = 1,
    layers: Layers = NONE_GIVEN,
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
    clock_speed
        How many times as fast time passes for holds and advances. What has passed stays passed.
    """
    from ledgerd import dev as development
    from ledgerd.logs import configure

    settings = _settings(layers, listen=listen, http=http)
    development.check_clock_speed(clock_speed)
    quiet = settings.sources["log_level"] == "default"
    configure("warning" if quiet else settings.config.log_level, form=settings.config.log_format)
    console = stdout()
    with development.sigterm_ends(), development.open_house(data, settings) as house:

        def on_ready(ready: Any) -> None:
            development.note_state(house, ready)
            development.announce(house, ready, console, clock_speed)

        def reread() -> Any:
            return development.config_of(_load(layers, listen=listen, http=http), house.config.dsn)

        with development.clock_of(house, clock_speed):
            development.serve(house.config, on_ready, reread=reread)


@app.command(group=_RUN)
def serve(
    *,
    dsn: str | None = None,
    listen: str | None = None,
    http: str | None = None,
    keep_epoch: bool = False,
    layers: Layers = NONE_GIVEN,
) -> None:
    """Run the daemon on your own PostgreSQL, in production. Sign-up is closed.

    The database must have been migrated, and the DSN should be that of a role in ledgerd_daemon, not the owner's.
    Ends with exit code 0 on SIGTERM or Ctrl-C, after answering what is in flight; with 5 if something could not be
    answered within drain_timeout_s, or a second signal came. SIGHUP reads the settings again.

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
        Serve a promoted database as if nothing had been lost. Subscribers then resume instead of starting over. Only
        what is found at the start counts, and never a dump in another cluster.
    """
    from ledgerd import dev as development
    from ledgerd.listeners import CannotListen, handed_over
    from ledgerd.logs import configure

    configure("info")
    with failures_in_the_log():
        settings = _settings(layers, dsn=dsn, listen=listen, http=http)
        configure(settings.config.log_level, form=settings.config.log_format)
        if not settings.config.dsn:
            advice = "set LEDGERD_DSN or the credential dsn, or use `ledgerd dev`"
            raise Failed(f"there is no database to serve: {advice}", Exit.USAGE)
        try:
            sockets = handed_over(os.environ)
        except CannotListen as error:
            raise Failed(str(error), Exit.USAGE) from error
        development.serve(
            settings.config,
            lambda _: None,
            reread=lambda: _load(layers, dsn=dsn, listen=listen, http=http).config,
            keep_epoch=keep_epoch,
            sockets=sockets,
        )


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

    owner = owner_dsn(dsn)
    with database_errors():
        if apply:
            done = migrations.migrate(owner, report=lambda migration: write(f"applying {migration.name}"))
            write(f"{len(done)} applied; the database is up to date" if done else "nothing to do")
            return
        missing = migrations.plan(owner)
    for migration in missing:
        write(f"would apply {migration.name}")
    write("nothing changed; run again with --apply" if missing else "nothing to do")


@app.command(group=_RUN)
def verify(
    *,
    dsn: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    layers: Layers = NONE_GIVEN,
) -> None:
    """Audit a database: does everything that is stored add up? Changes nothing, and stops nobody.

    Reads all accounts, transactions, holds and advances in one snapshot, while daemons go on writing, and compares what
    can be compared: what came from outside with the sum of all balances, balances with their entries, versions, holds,
    reversals, bets, batches, advances. Prints a line per check; where one does not hold, the accounts, transactions and
    advances, the first 20 of each check. Amounts in these lines are minor units (cents). Ends with exit code 0 if
    everything holds, and 1 if anything does not. Warnings alone do not count.

    The connection may be the daemon's or the owner's. With tens of millions of transactions it takes minutes; until its
    end vacuum keeps what is replaced meanwhile.

    Example: `LEDGERD_DSN=postgresql://ledgerd@db/bank ledgerd verify`

    Parameters
    ----------
    dsn
        Connection string. Others can read it on the command line: give passwords in LEDGERD_DSN or in a pgpass file.
    json
        Print the whole report as one JSON object.
    """
    from ledgerd.verify_command import run_verify

    settings = _settings(layers, dsn=dsn)
    if not settings.config.dsn:
        raise Failed("which database? Give its connection in LEDGERD_DSN or --dsn", Exit.USAGE)
    run_verify(settings.config.dsn, json=json)


@app.command(group=_RUN)
def doctor(
    *,
    dsn: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    layers: Layers = NONE_GIVEN,
) -> None:
    """Say what keeps a daemon from serving a database, what is risky about it, and who holds which account's lock.

    Makes all checks that a daemon makes when it starts, with the same settings, and says of each what was found and
    what to do. Shows which daemons are connected, what is pending, and which sessions hold or wait for the locks of
    accounts. Changes nothing. Ends with exit code 0 if a daemon would serve, warnings or not; with 1 if it would not;
    with 3 if nobody answers.

    Use the daemon's own connection: what its role may do is a part of what is looked at.

    Example: `LEDGERD_DSN=postgresql://ledgerd@db/bank ledgerd doctor`

    Parameters
    ----------
    dsn
        Connection string. Others can read it on the command line: give passwords in LEDGERD_DSN or in a pgpass file.
    json
        Print everything as one JSON object.
    """
    from ledgerd.doctor_command import run_doctor

    settings = _settings(layers, dsn=dsn)
    if not settings.config.dsn:
        raise Failed("which database? Give its connection in LEDGERD_DSN or --dsn", Exit.USAGE)
    run_doctor(settings.config, json=json)


@app.command(name="install-systemd", group=_RUN)
def install_systemd(*, prefix: Path | None = None, executable: Path | None = None) -> None:
    """Write systemd's units for this installation, and say what to do next. Starts nothing.

    Writes ledgerd.service with its sockets, ledgerd@.service for several daemons on one port, a daily audit, the user
    ledgerd (sysusers.d), the directories (tmpfiles.d), and an example /etc/ledgerd/ledgerd.toml if there is none. Run
    it again after an upgrade: files that differ are written again, and each is told. What you changed in drop-ins
    (systemctl edit) stays.

    Example: `/opt/ledgerd/bin/ledgerd install-systemd`

    Parameters
    ----------
    prefix
        Write below this directory, to where a package puts its files (usr/lib/systemd/system), for packagers.
    executable
        Path of `ledgerd` on the machine that will run it, instead of this one.
    """
    from ledgerd.install_systemd import install_systemd as install

    install(prefix, executable)


# -- talk to one ---------------------------------------------------------------------------------------------------


@app.command(group=TALK)
def call(
    method: str, params: Annotated[str, Parameter(allow_leading_hyphen=True)] = "{}", *, door: Door = HERE
) -> None:
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
    members = members_of(text)
    try:
        result = trio.run(call_once, door, method, members)
    except LedgerError as error:
        write_json({"error": error.to_wire()})
        raise
    write_json(result)


@app.command(group=TALK)
def watch(
    *,
    account: Annotated[list[int] | None, Parameter(negative=())] = None,
    user: int | None = None,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    for_s: Annotated[float | None, Parameter(name="--for")] = None,
    count: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    door: Door = HERE,
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
    run = partial(watching.watch, door.connected(watching.OUTAGE_S), target, for_s=for_s, count=count)
    console = stdout()
    if json or not console.is_terminal:
        trio.run(run, (watching.JsonLines if json else watching.Lines)(write))
        return
    with watching.LiveTable(console, f"ledgerd  {door.url}") as table:
        trio.run(run, table)


# -- settings ------------------------------------------------------------------------------------------------------


@app.command(name="config", group=_OTHER)
def show_config(
    *,
    dsn: str | None = None,
    listen: str | None = None,
    http: str | None = None,
    layers: Layers = NONE_GIVEN,
) -> None:
    """Print every setting, its value and where it came from. Passwords are masked.

    Flags win over LEDGERD_<NAME> in the environment, that over credentials, those over the TOML file, that over the
    defaults. A credential is a file in $CREDENTIALS_DIRECTORY with a setting's name, as systemd's LoadCredential= puts
    it there. Lists are written a,b,c and currencies BTC=8,XYZ=2.

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
    console = stdout()
    if not console.is_terminal:
        for row in rows:
            write("\t".join(row))
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
    from ledgerd_protocol.errors import ErrorCode, LedgerError

    match leaves(error)[0]:
        case Failed() as failed:
            return _say(str(failed), failed.code)
        case LedgerError() as refused:
            unknown = refused.applied is None
            advice = "; its outcome is unknown: send the same transaction_id again or cancel it" if unknown else ""
            if refused.code is ErrorCode.UNAUTHENTICATED:
                advice = ": give --token-file, or set LEDGERD_TOKEN"
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
