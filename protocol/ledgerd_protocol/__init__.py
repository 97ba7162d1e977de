"""The wire protocol ``ledgerd.v1``: what every client and the daemon share. Importable without the daemon."""
