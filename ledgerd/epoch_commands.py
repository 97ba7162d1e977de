"""The commands about the epoch, the name of the data's history: clients resume within one and begin anew in another."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from ledgerd.exits import database_errors, owner_dsn
from ledgerd.terminal import write

epoch_app = App(name="epoch", help="Show the epoch of the data, or begin a new one.", group="Run a ledger")

OwnerDsn = Annotated[str | None, Parameter(name="--dsn", env_var="LEDGERD_OWNER_DSN")]


@epoch_app.command
def show(*, dsn: OwnerDsn = None) -> None:
    """Print the epoch of a database.

    Example: `LEDGERD_OWNER_DSN=postgresql://owner@db/bank ledgerd epoch show`

    Parameters
    ----------
    dsn
        The owner's connection string.
    """
    from ledgerd.storage.owner_epoch import present_epoch

    with database_errors():
        write(present_epoch(owner_dsn(dsn)))


@epoch_app.command
def new(*, dsn: OwnerDsn = None) -> None:
    """Begin a new epoch, and print it: every subscriber starts over with a snapshot, and every cursor ends.

    A daemon notices by itself that a database was restored from a dump, recovered to a point in time, or promoted. It
    cannot notice that files were put back as they were some time ago (a snapshot of a disk or of a virtual machine, a
    base backup that was started without recovery): then say so with this command, before daemons start. A daemon that
    runs takes the new epoch within seconds.

    Example: `LEDGERD_OWNER_DSN=postgresql://owner@db/bank ledgerd epoch new`

    Parameters
    ----------
    dsn
        The owner's connection string.
    """
    from ledgerd.storage.owner_epoch import renew_epoch

    with database_errors():
        write(renew_epoch(owner_dsn(dsn)))
