"""The chaos test: everything is broken on purpose while money moves, and then every answer is held against the ledger.

Theory of operation. A run has five parts, each of which can be used and tested without the others:

- *arena*: a PostgreSQL (`cluster`) and several daemons of its own. Every byte between clients and daemons, and between
  daemons and the database, goes through a `proxy` that can delay, cut, swallow and reset.
- *nemesis*: draws faults from a seeded bag, so that every kind comes before any comes twice, and undoes each.
- *workloads*: tasks that move money through any of the daemons, as recorded calls (`desk`). They are hostile to the
  ledger: one id on several connections at once, the same id for another command, more debits than there is money for.
- *history*: what was asked, when, over which connection, and what came back; on one monotonic clock. A call whose
  answer was lost is *unknown*, and is asked about again, by its id, once the faults are over.
- *verdict*: pure functions over the history and the ledger's own lists as they are in the end. They know nothing of
  the faults: whatever was broken, what was acknowledged is there, once; what was refused is not there; versions follow
  real time; every subscriber was told everything. Any sentence that one of them says turns the run red.

The same faults are not drawn at the same instants twice, because real processes do not keep step: a seed repeats the
choices of a run, not its meeting points. For runs that repeat exactly there is the simulation.
"""
