"""Thousands of small worlds in which everything goes wrong, each the same again from its seed.

    uv run python -m tests.simulation --seeds 10000

Theory of operation. A *world* is one Trio run without a network, a clock or a database: a few daemons, some clients and
a nemesis, all in one process, for some seconds of simulated time that pass in a tenth of a real one.

What is real: the engine (`ledgerd.engine`) and the gateway (`ledgerd.gateway`) with its sessions, codec and WebSocket
frames, put together as the daemon does it, restarted by the daemon's supervisor; and `ledgerd_protocol`'s client.

What is not: the database is the pure model of the rules (`tests.model`) behind connections that wait for locks, stall,
fail and die (`store`, `books`, `faults`); the network is byte pipes that delay, split and break (`wire`); hints between
daemons are late, doubled or lost (`daemon`); and the clock jumps to whatever happens next. The rules of the kernel are
compared with the model elsewhere (`tests/storage/test_kernel_model.py`); `test_contract.py` holds everything else that
is asked of a database against the real one, so that the worlds are about a database that exists.

Where chance is: nowhere but in the seed (`chance`). It draws the limits of the daemons, the faults, what clients do and
which task runs first. One seed is one history, and its *trace* has a digest: `--twice` runs a seed again and compares.

Who says what is right: clients act (`rough`, `steady`) and report to a `witness`, and to a `follower` for each
subscription, which hold everything that is said against what the database knows, at the moment it is said. When the
nemesis has mended everything the world must come to rest: every command answered, every unknown outcome found out by
its id, every feed at the newest versions, every daemon drained in time; then the whole ledger is audited.

What is not here: passwords, users, reports, monitors, advances, epochs. They have no part in the order of anything, or
need a real clock or a real database (see tests/acceptance).

How it is known that this would notice: `mutations` are bugs, each a patch, and each must turn some of the first seeds
red (`test_mutations.py`). A seed that fails prints the command that repeats it, with its trace; once mended it goes
into `test_regressions.py`, with what it was.
"""
