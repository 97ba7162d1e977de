"""Secrets on disk."""

from __future__ import annotations

import os
from pathlib import Path


def write_secret(file: Path, secret: str) -> None:
    """Write a secret that only its owner may read: at no moment is there half of it, or a wider mode."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
