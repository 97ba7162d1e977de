-- What the start-up checks and `ledgerd doctor` ask. Everything here only reads, and may be asked by any role: what a
-- role may not see is null.

-- name: server
-- The server, the session and the role; $1 names what the daemon uses in the schema, $2 and $3 are our own processes.
SELECT
    d.datconnlimit AS database_connections_max,
    r.rolconnlimit AS role_connections_max,
    r.rolsuper AS is_superuser,
    d.datname::text AS database,
    r.rolname::text AS role,
    n.oid IS NOT NULL AS has_schema,
    m.oid IS NOT NULL AS has_migrations,
    current_setting('server_version_num')::integer AS version_num,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    pg_postmaster_start_time() AS started_at,
    clock_timestamp() AS clock,
    pg_backend_pid() AS pid,
    current_setting('server_encoding') AS encoding,
    current_setting('transaction_isolation') AS isolation,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS synchronous_standby_names,
    current_setting('data_checksums') AS data_checksums,
    current_setting('max_locks_per_transaction')::integer AS locks_per_transaction,
    current_setting('max_prepared_transactions')::integer AS prepared_transactions_max,
    current_setting('max_connections')::integer AS connections_max,
    current_setting('superuser_reserved_connections')::integer
    + coalesce(current_setting('reserved_connections', true), '0')::integer AS connections_reserved,
    (SELECT coalesce(sum(b.numbackends), 0)::integer FROM pg_stat_database AS b) AS connections,
    (SELECT count(*)::integer FROM pg_stat_activity AS a WHERE a.datname = d.datname) AS database_connections,
    (
        SELECT count(*)::integer FROM pg_stat_activity AS a WHERE a.usename = r.rolname AND a.datid IS NOT NULL
    ) AS role_connections,
    (
        SELECT count(*)::integer FROM pg_stat_activity AS a
        -- Of whichever database: the lock table is the whole server's.
        WHERE a.application_name = 'ledgerd' AND a.pid NOT IN ($2, $3)
    ) AS daemon_connections,
    pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE') AS sees_all_sessions,
    coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use_schema,
    coalesce(pg_has_role(r.oid, n.nspowner, 'MEMBER'), false) AS owns_schema,
    coalesce(has_table_privilege(m.oid, 'SELECT'), false) AS may_read_migrations,
    ARRAY(
        SELECT u.used FROM unnest($1::text []) AS u (used)
        WHERE
            NOT EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = u.used)
            AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = u.used)
            AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.typnamespace = n.oid AND t.typname = u.used)
        ORDER BY u.used
    ) AS absent,
    ARRAY(
        SELECT DISTINCT p.proname::text AS found FROM pg_proc AS p
        WHERE p.pronamespace = n.oid AND p.proname = ANY($1::text []) AND NOT has_function_privilege(p.oid, 'EXECUTE')
        ORDER BY found
    ) AS not_executable,
    ARRAY(
        SELECT c.relname::text AS found FROM pg_class AS c
        WHERE
            c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v') AND c.relname = ANY($1::text [])
            AND NOT has_any_column_privilege(c.oid, 'SELECT')
        ORDER BY found
    ) AS not_readable,
    ARRAY(
        SELECT c.relname::text AS found FROM pg_class AS c
        WHERE
            c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
            AND (
                has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                OR has_any_column_privilege(c.oid, 'INSERT, UPDATE')
            )
        ORDER BY found
    ) AS writable
FROM pg_roles AS r
INNER JOIN pg_database AS d ON d.datname = current_database()
LEFT JOIN pg_namespace AS n ON n.nspname = 'ledgerd'
LEFT JOIN pg_class AS m ON m.relnamespace = n.oid AND m.relname = 'migrations'
WHERE r.rolname = current_user;

-- name: identity
-- Which ledger this is.
SELECT s.deployment, s.epoch FROM ledgerd.settings AS s;

-- name: session
-- Which server process answers, and which start of which server it belongs to.
SELECT pg_backend_pid() AS pid, pg_postmaster_start_time() AS started_at;

-- name: try_lock
-- Whether the lock can be had; it is let go at the end of this statement.
SELECT pg_backend_pid() AS pid, pg_try_advisory_xact_lock($1) AS taken;

-- name: idle_holders
-- Sessions that hold locks of our accounts (deployment $1) and have done nothing for $2, as far as their state is seen.
SELECT
    l.pid,
    a.usename::text AS role,
    a.application_name,
    count(*)::integer AS locks,
    clock_timestamp() - a.state_change AS idle_for
FROM pg_locks AS l
INNER JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND ((l.classid::bigint << 32) | l.objid::bigint) >> 48 = $1::integer
    AND a.state LIKE 'idle%' AND a.state_change < clock_timestamp() - $2::interval
GROUP BY l.pid, a.usename, a.application_name, a.state_change
ORDER BY a.state_change, l.pid;

-- name: account_locks
-- Who holds and who waits for which account's lock (deployment $1), at most $2 of them; accounts waited for come first.
SELECT
    w.account_id,
    w.granted,
    w.pid,
    a.application_name,
    a.state,
    a.usename::text AS role,
    host(a.client_addr) AS address,
    CASE WHEN w.granted THEN a.xact_start ELSE w.waitstart END AS since,
    CASE WHEN w.granted THEN '{}'::integer [] ELSE pg_blocking_pids(w.pid) END AS blocked_by,
    a.pid IS NOT NULL AND a.backend_start IS NULL AS is_hidden
FROM (
    SELECT
        l.*,
        (((l.classid::bigint << 32) | l.objid::bigint) & 140737488355327) AS account_id,
        bool_or(NOT l.granted) OVER (PARTITION BY l.classid, l.objid) AS is_contended
    FROM pg_locks AS l
    WHERE
        l.locktype = 'advisory' AND l.objsubid = 1
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        AND ((l.classid::bigint << 32) | l.objid::bigint) >> 48 = $1::integer
) AS w
LEFT JOIN pg_stat_activity AS a ON a.pid = w.pid
ORDER BY w.is_contended DESC, w.account_id ASC, w.granted DESC, w.waitstart ASC, w.pid ASC
LIMIT $2;

-- name: daemons
-- Connections of daemons to this database, by role and address.
SELECT
    a.usename::text AS role,
    host(a.client_addr) AS address,
    count(*)::integer AS connections,
    min(a.backend_start) AS since
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.application_name = 'ledgerd'
GROUP BY a.usename, a.client_addr
ORDER BY since NULLS LAST, address, role;

-- name: pending
-- Holds that are pending, advances that run, and how much of either is overdue; none is counted beyond $1.
SELECT
    (SELECT count(*)::integer FROM (SELECT FROM ledgerd.holds AS o ORDER BY o.expires_at LIMIT $1) AS h) AS holds,
    (
        SELECT count(*)::integer FROM (SELECT FROM ledgerd.expired_holds(interval '0', $1::integer)) AS e
    ) AS overdue_holds,
    (
        SELECT count(*)::integer FROM (
            SELECT FROM ledgerd.advance_queue AS q ORDER BY q.due_at LIMIT $1
        ) AS a
    ) AS advances,
    (
        SELECT count(*)::integer FROM (
            SELECT FROM ledgerd.advance_queue AS q WHERE q.due_at <= clock_timestamp() ORDER BY q.due_at LIMIT $1
        ) AS d
    ) AS due_advances;
