"""The process in which atheris runs one target; started by `tests.fuzz.campaign` with libFuzzer's flags."""

from __future__ import annotations

import signal
import sys
from typing import Any

import atheris
import structlog

INSTRUMENTED = ["ledgerd_protocol", "ledgerd.gateway", "trio_websocket", "wsproto", "h11"]


def drop(*_: Any) -> Any:
    """Log nothing: what matters raises."""
    raise structlog.DropEvent


def main() -> None:
    """Fuzz the target named first; what comes second starts this again, for libFuzzer's merging. Never returns."""
    # Ctrl-C is for the campaign, which ends this process by SIGTERM: trio would take SIGINT from libFuzzer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    structlog.configure(processors=[drop])
    _, name, *arguments = sys.argv
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    atheris.Setup(arguments, TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
