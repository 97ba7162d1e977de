"""Every metric of the daemon, named after the conventions of the Prometheus project.

Each is module-level, because a process has one registry; rooms import the ones they count.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
CONNECTIONS_CLOSED = Counter("ledgerd_connections_closed_total", "Connections ended, by close code.", ("code",))
SLOW_CONSUMERS = Counter("ledgerd_slow_consumers_total", "Connections dropped because they took nothing in time.")
SESSION_CRASHES = Counter("ledgerd_session_crashes_total", "Sessions ended by a bug (close code 1011).")
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
UNITS_WAITING_PEAK = Gauge("ledgerd_units_waiting_peak", "Most units that ever waited for a lane at once.")
CALLS = Counter("ledgerd_kernel_calls_total", "Kernel calls: ok, rerun, refused, unavailable.", ("outcome",))
CALL_SECONDS = Histogram("ledgerd_commit_duration_seconds", "One kernel call, commit included.", buckets=_FAST)
CALL_COMMANDS = Histogram("ledgerd_batch_commands", "Commands per kernel call.", buckets=_SIZES)
FENCE_HITS = Counter("ledgerd_fence_hits_total", "Calls run again because an account's version moved without its lock.")
DEADLOCKS = Counter("ledgerd_deadlocks_total", "Calls run again after a deadlock or a serialization failure.")
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
DATABASE_UP = Gauge("ledgerd_database_up", "1 while the database generation runs.")
