"""Every metric of the daemon, named after the conventions of the Prometheus project.

Each is module-level, because a process has one registry; rooms import the ones they count.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

from ledgerd import __version__

# They would be one more series for every counter, for what a restart shows anyway.
disable_created_metrics()  # type: ignore[no-untyped-call]

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)

REQUESTS = Counter(
    "ledgerd_requests_total", "Requests answered, by method and result code (ok or error).", ("method", "code")
)
REQUEST_SECONDS = Histogram(
    "ledgerd_request_duration_seconds", "From a request's arrival to its answer.", ("method",), buckets=_FAST
)
NOTIFICATIONS_IGNORED = Counter("ledgerd_notifications_ignored_total", "Requests without an id, never executed.")
CONNECTIONS = Gauge("ledgerd_connections", "Open WebSocket connections.")
CONNECTIONS_OPENED = Counter("ledgerd_connections_opened_total", "WebSocket connections accepted.")
CONNECTIONS_REFUSED = Counter(
    "ledgerd_connections_refused_total", "Connections that were not let in, or had to give way, by reason.", ("reason",)
)
NEWCOMERS = Gauge("ledgerd_newcomers", "Open connections that nobody has signed in on, handshakes included.")
CERTIFICATE_EXPIRY = Gauge(
    "ledgerd_certificate_expiry_seconds", "Unix time at which the certificate in force expires; 0 without a good one."
)
CONNECTIONS_CLOSED = Counter("ledgerd_connections_closed_total", "Connections ended, by close code.", ("code",))
SLOW_CONSUMERS = Counter("ledgerd_slow_consumers_total", "Connections dropped because they took nothing in time.")
SESSION_CRASHES = Counter("ledgerd_session_crashes_total", "Sessions ended by a bug (close code 1011).")
SIGN_INS = Counter(
    "ledgerd_sign_ins_total",
    "Passwords and tokens shown, by means (password, token) and outcome (accepted, refused, throttled).",
    ("means", "outcome"),
)
UNSENT_BYTES = Gauge("ledgerd_outbox_bytes", "Answers and events that clients have not taken yet, in all connections.")
DRAIN_ORPHANED = Counter("ledgerd_drain_orphaned_total", "Requests that were left unanswered when the daemon stopped.")
SUBSCRIPTIONS = Gauge("ledgerd_subscriptions", "Open subscriptions.")
EVENTS_PUSHED = Counter("ledgerd_events_pushed_total", "Subscription events handed to connections.")
CATCH_UPS = Counter("ledgerd_feed_catch_ups_total", "Times a subscription had to read on from the table.")
MONITORS = Gauge("ledgerd_monitors", "Monitors on balances that this daemon knows to be set.")
MONITOR_CROSSINGS = Counter("ledgerd_monitor_crossings_total", "Monitors crossed by what this daemon committed.")
FEED_LAG_SECONDS = Histogram(
    "ledgerd_feed_lag_seconds", "From the commit of a change by this daemon to its publication.", buckets=_FAST
)
USER_WORKERS = Gauge("ledgerd_user_workers", "User workers running.")
WORKER_CRASHES = Counter("ledgerd_user_worker_crashes_total", "User workers restarted after a bug.")
UNITS_WAITING = Gauge(
    "ledgerd_units_waiting", "Units (commands or batches) that wait for a lane, looked at 4 times a second."
)
OLDEST_WAIT_SECONDS = Gauge(
    "ledgerd_oldest_unit_wait_seconds",
    "How long the oldest unit that is not answered waits, looked at 4 times a second.",
)
LANES = Gauge("ledgerd_lanes", "Lanes that run: connections that post money.")
LANES_BUSY = Gauge("ledgerd_lanes_busy", "Lanes with a kernel call in flight, looked at 4 times a second.")
LOOP_LAG_SECONDS = Histogram(
    "ledgerd_loop_lag_seconds",
    "How late the event loop wakes a task that sleeps: is the process short of CPU?",
    buckets=_FAST,
)
UNITS_WAITING_PEAK = Gauge("ledgerd_units_waiting_peak", "Most units that ever waited for a lane at once.")
CALLS = Counter(
    "ledgerd_kernel_calls_total", "Kernel calls, by outcome: ok, rerun, refused, unavailable.", ("outcome",)
)
CALL_SECONDS = Histogram("ledgerd_commit_duration_seconds", "One kernel call, commit included.", buckets=_FAST)
CALL_COMMANDS = Histogram("ledgerd_batch_commands", "Commands per kernel call.", buckets=_SIZES)
FENCE_HITS = Counter("ledgerd_fence_hits_total", "Calls run again because an account's version moved without its lock.")
DEADLOCKS = Counter("ledgerd_deadlocks_total", "Calls run again after a deadlock or a serialization failure.")
CALLS_LOST = Counter(
    "ledgerd_kernel_calls_lost_total", "Calls whose connection broke in flight; sent again with the same ids."
)
HINTS_DROPPED = Counter(
    "ledgerd_feed_hints_dropped_total",
    "Hints of other daemons that found no room; polling finds what they would have said.",
)
HOLDS_EXPIRED = Counter("ledgerd_holds_expired_total", "Holds that this daemon ended because their time was over.")
PAYMENTS_COLLECTED = Counter("ledgerd_advance_payments_collected_total", "Payments that this daemon collected.")
PAYMENTS_FAILED = Counter(
    "ledgerd_advance_payments_failed_total", "Due payments that this daemon could not collect and rolled over."
)
COLLECTIONS_LOST = Counter(
    "ledgerd_advance_collections_lost_total", "Looks for due payments that came to nothing and are repeated."
)
ALERTS = Counter("ledgerd_alerts_total", "Alerts that this daemon raised, or told again with other words.", ("alert",))
GENERATIONS = Counter("ledgerd_database_generations_total", "Times the database side was started.")
RELOADS = Counter("ledgerd_reloads_total", "Times the settings were read again: applied or refused.", ("outcome",))
DATABASE_UP = Gauge("ledgerd_database_up", "1 while the database generation runs.")
LOG_LINES = Counter("ledgerd_log_lines_total", "Lines for the log, those that were left out included.", ("level",))
LOG_LINES_SUPPRESSED = Counter(
    "ledgerd_log_lines_suppressed_total", "Lines left out: too many of one event, or they could not be written."
)
BUILD = Info("ledgerd_build", "The release that runs, as label version.")
BUILD.info({"version": __version__})

# A series that first appears with its first event hides that event from increase() and rate(): these are there at 0.
for _outcome in ("ok", "rerun", "refused", "unavailable"):
    CALLS.labels(_outcome)
for _outcome in ("applied", "refused"):
    RELOADS.labels(_outcome)
for _level in ("debug", "info", "warning", "error", "critical"):
    LOG_LINES.labels(_level)
for _means, _outcome in (
    ("password", "accepted"),
    ("password", "refused"),
    ("password", "throttled"),
    ("token", "accepted"),
    ("token", "refused"),
):
    SIGN_INS.labels(_means, _outcome)
ALERTS.labels("advance_mismatch")
