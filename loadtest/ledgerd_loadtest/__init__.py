"""The load tester of ledgerd: measures a daemon from outside and audits what it answered."""
