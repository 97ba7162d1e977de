"""The daemon with a private PostgreSQL, for a developer's machine: `dev` keeps its data, `demo` throws it away.

Rules of this file:

- Loopback only: sign-up is open, and whoever registers may credit himself.
- The operator's token is on disk, whole and readable by its owner only, before the port listens: a script that sees
  the port open can read it.
- Signals that arrive while PostgreSQL starts or stops wait until that is done. A half-started server would be left
  behind, and the terminal sends Ctrl-C to its helpers as well.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec import Struct
from rich.console import Console

from ledgerd import __version__
from ledgerd.addresses import is_loopback
from ledgerd.config import Config
from ledgerd.daemon import NOTHING_HANDED_OVER, DaemonFailed, ReadyInfo, run_daemon
from ledgerd.exits import Exit, Failed
from ledgerd.listeners import HandedOver
from ledgerd.reload import Reread
from ledgerd.secrets import write_secret
from ledgerd.settings import Settings, host_and_port
from ledgerd.storage.embedded import DataDirectoryInUse, running_cluster
from ledgerd.storage.migrations import MigrationMismatch, migrate
from ledgerd.storage.owner_clock import running_clock
from ledgerd.storage.owner_tokens import create_first_token, token_is_valid

TOKEN_FILE = "operator.token"  # noqa: S105  a file's name
STATE_FILE = "daemon.json"

CLOCK_SPEED_MAX = 1_000_000
"""A week in less than a second; with more, steps of the clock would be days long."""


class House(Struct, frozen=True):
    """A private database ready to be served from, and what to serve it with."""

    config: Config
    data_dir: Path
    token_file: Path
    owner_dsn: str


class State(Struct, frozen=True):
    """What `STATE_FILE` says, while the daemon serves, to programs such as the load tester."""

    ws_url: str
    http_url: str
    owner_dsn: str
    daemon_dsn: str
    token_file: str
    pid: int


@contextmanager
def open_house(data_dir: Path, settings: Settings) -> Iterator[House]:
    """Start the private PostgreSQL of a directory, migrate it, and put the operator's token beside it.

    Raises Failed: an address that is not loopback, a directory in use, a database of another release.
    """
    _refuse_strangers(settings.config)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _ignore_in_git(data_dir)
    stack = ExitStack()
    try:
        with _signals_held():
            try:
                cluster = stack.enter_context(running_cluster(data_dir))
            except DataDirectoryInUse as error:
                raise Failed(str(error)) from error
        try:
            migrate(cluster.dsn)
        except MigrationMismatch as error:
            raise Failed(f"{data_dir}: {error}") from error
        token_file = data_dir / TOKEN_FILE
        _provide_token(token_file, cluster.dsn)
        stack.callback((data_dir / STATE_FILE).unlink, missing_ok=True)
        yield House(config_of(settings, cluster.daemon_dsn), data_dir, token_file, cluster.dsn)
    finally:
        with _signals_held():
            stack.close()


def serve(
    config: Config,
    on_ready: Callable[[ReadyInfo], None],
    *,
    reread: Reread,
    keep_epoch: bool = False,
    sockets: HandedOver = NOTHING_HANDED_OVER,
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises Failed, also if clients were left without an answer."""
    run = partial(run_daemon, config, on_ready=on_ready, keep_epoch=keep_epoch, sockets=sockets, reread=reread)
    try:
        orphaned = trio.run(run)
    except DaemonFailed as error:
        raise Failed(str(error)) from error
    if orphaned:
        raise Failed(
            f"stopped with {orphaned} messages unanswered: clients find out what came of them by sending them again",
            Exit.UNANSWERED,
        )


def check_clock_speed(speed: float) -> None:
    """Raises Failed if time would stand still or run backwards, or in steps of days."""
    if not 1 <= speed <= CLOCK_SPEED_MAX:
        raise Failed(f"--clock-speed {speed:g}: give a number from 1 to {CLOCK_SPEED_MAX:,}", Exit.USAGE)


def clock_of(house: House, speed: float) -> AbstractContextManager[None]:
    """The ledger's clock while the block lasts."""
    return nullcontext() if speed == 1 else running_clock(house.owner_dsn, speed)


def note_state(house: House, ready: ReadyInfo) -> None:
    """Write `STATE_FILE`, whole or not at all: who sees it may connect."""
    token_file = str(house.token_file.resolve())
    state = State(ready.ws_url, ready.http_url, house.owner_dsn, house.config.dsn, token_file, os.getpid())
    write_secret(house.data_dir / STATE_FILE, msgspec.json.encode(state).decode())


def announce(house: House, ready: ReadyInfo, console: Console, clock_speed: float = 1) -> None:
    """Say where everything is, and give a first call to paste. Lines are stable: scripts read the addresses here."""
    token_file = _short(house.token_file)
    call = f'{program()} call user_register \'{{"name": "Ann"}}\' --url {ready.ws_url} --token-file {token_file}'
    say = partial(console.print, soft_wrap=True, highlight=False)
    say(f"\n[bold green]ledgerd {__version__}[/] is running. Ctrl-C stops it, PostgreSQL too; the data stays.\n")
    say(f"  WebSocket  [bold]{ready.ws_url}[/]")
    say(f"  HTTP       {ready.http_url}  (/livez /readyz /metrics)")
    say(f"  data       {_short(house.data_dir)}  (a private PostgreSQL)", markup=False)
    say(f"  token      {token_file}  (scope operator)", markup=False)
    if clock_speed != 1:
        week_s = 7 * 86_400 / clock_speed
        say(f"  clock      runs {clock_speed:g} times as fast for holds and advances: a week takes {week_s:.3g} s")
    say("\nA first call, from another terminal:\n")
    say(f"  {call}\n", markup=False)
    console.file.flush()


def program() -> str:
    """How this program was called, for commands that are shown to be pasted."""
    if "UV" in os.environ:
        return "uv run ledgerd"
    return "ledgerd" if Path(sys.argv[0]).name == "ledgerd" else "python -m ledgerd"


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """Outside Trio, let SIGTERM end the program by an exception, so that PostgreSQL is stopped."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _refuse_strangers(config: Config) -> None:
    for name, address in (("--listen", config.listen), ("--http", config.http)):
        if not is_loopback(host_and_port(address)[0]):
            raise Failed(
                f"{name} {address} can be reached from outside, and here everybody may sign up and credit himself: "
                "use 127.0.0.1, or `ledgerd serve` with your own PostgreSQL",
                Exit.USAGE,
            )


def config_of(settings: Settings, dsn: str) -> Config:
    """What was configured, with what `dev` decides itself."""
    scopes = settings.config.sign_up_scopes
    if settings.sources["sign_up_scopes"] == "default":
        scopes = ("user", "topup")
    return msgspec.structs.replace(settings.config, dsn=dsn, open_sign_up=True, sign_up_scopes=scopes)


def _provide_token(file: Path, dsn: str) -> None:
    """Keep the token that is there if it still works; else write a new one, whole or not at all."""
    try:
        secret = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if secret and token_is_valid(dsn, secret):
        file.chmod(0o600)
        return
    write_secret(file, create_first_token(dsn, ["operator"], "ledgerd dev"))


def _ignore_in_git(data_dir: Path) -> None:
    """A token in a repository is a token lost."""
    ignore = data_dir / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")


def _short(path: Path) -> str:
    """The path as one would type it from here."""
    absolute = path.resolve()
    here = Path.cwd()
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))
