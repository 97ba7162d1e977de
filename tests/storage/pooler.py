"""A real PgBouncer before a private cluster. Tests that need it are skipped where it is not installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ledgerd.storage.embedded import DAEMON_ROLE, Cluster

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

_PORT = 6432
_STOP_S = 30


@contextmanager
def pgbouncer(cluster: Cluster, *settings: str) -> Iterator[str]:
    """Run one with these lines in its configuration; the host part of DSNs that lead through it, to any database."""
    assert PGBOUNCER is not None
    with tempfile.TemporaryDirectory(prefix="ledgerd-pooler-") as name:
        directory = Path(name)
        directory.chmod(0o777)  # it does not run as root, and its socket goes here
        (directory / "users.txt").write_text(f'"{DAEMON_ROLE}" ""\n"postgres" ""\n')
        lines = [
            "[databases]",
            f"* = host={cluster.socket_dir}",
            "[pgbouncer]",
            "listen_addr =",
            f"listen_port = {_PORT}",
            f"unix_socket_dir = {directory}",
            "auth_type = trust",
            f"auth_file = {directory / 'users.txt'}",
            *settings,
        ]
        (directory / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        # Whoever may enter the directory of the server's socket.
        user = ["-u", pwd.getpwuid(cluster.socket_dir.stat().st_uid).pw_name] if os.getuid() == 0 else []
        process = subprocess.Popen(
            [PGBOUNCER, "-q", *user, str(directory / "pgbouncer.ini")], stderr=subprocess.DEVNULL
        )
        try:
            _until_listening(process, directory / f".s.PGSQL.{_PORT}")
            yield f"host={quote(str(directory))}&port={_PORT}"
        finally:
            process.terminate()
            process.wait(_STOP_S)


def _until_listening(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until it accepts; the test's timeout bounds it."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                continue
            return
    raise AssertionError(f"pgbouncer ended with {process.returncode}")
