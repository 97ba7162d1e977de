"""The ledger daemon for teams that already run Postgres."""

__version__ = "0.1.0"
