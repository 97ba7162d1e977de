"""`python -m ledgerd`."""

from __future__ import annotations

import sys

from ledgerd.cli import main

if __name__ == "__main__":
    sys.exit(main())
