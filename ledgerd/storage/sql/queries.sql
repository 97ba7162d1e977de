-- Every read of the daemon. A query begins with "-- name:" and one line that says what it answers.

-- name: post
-- Judge and post commands; see the kernel in migrations/0012_post.sql.
SELECT * FROM ledgerd.post($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19);

-- name: begin_serving
-- Epoch, deployment, cursor key and identity; mints a new epoch if that is another than it was, or than $2 to $5 say.
SELECT
    b.epoch, b.deployment, b.cursor_key, b.system_identifier, b.timeline, b.wal::text AS wal, b.changed,
    b.is_new_epoch
FROM ledgerd.begin_serving($1, $2, $3, $4, $5::text::pg_lsn) AS b;

-- name: alive
-- The present epoch, and how far the WAL is safely on disk.
SELECT
    s.epoch,
    CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END AS wal
FROM ledgerd.settings AS s;

-- name: currencies
-- Scales that are fixed already.
SELECT currency, scale FROM ledgerd.currencies;

-- name: processes
-- Which of these server processes there are, and since when.
SELECT a.pid, a.backend_start FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = ANY($1::integer []);

-- name: end_processes
-- End those of these server processes that are still the same ones; each that was told to.
-- MATERIALIZED: first it is known which ones. As a condition beside the join the function could be called for others.
WITH same AS MATERIALIZED (
    SELECT a.pid
    FROM unnest($1::integer [], $2::timestamptz []) AS u (pid, backend_start)
    INNER JOIN pg_catalog.pg_stat_activity AS a ON a.pid = u.pid AND a.backend_start = u.backend_start
)

SELECT s.pid, pg_catalog.pg_terminate_backend(s.pid) AS is_told FROM same AS s;

-- name: applied_migrations
-- Which migrations the database has.
SELECT number, checksum FROM ledgerd.migrations ORDER BY number;

-- name: find_accounts
-- Facts of accounts named by number, by user and currency, by wallet and currency, or as a side of a transaction.
SELECT u.n, a.account_id, a.user_id, a.currency, c.scale
FROM
    unnest(
        $1::bigint [], $2::bigint [], $3::text [], $4::text [], $5::uuid [], $6::uuid []
    ) WITH ORDINALITY AS u (account_id, user_id, currency, wallet, payer_of, receiver_of, n)
-- LIMIT: by the index, however few accounts there were when the plan was made.
CROSS JOIN
    LATERAL (
        SELECT n.account_id, n.user_id, n.currency FROM ledgerd.accounts AS n
        WHERE
            n.account_id = coalesce(
                u.account_id,
                (
                    SELECT x.account_id
                    FROM ledgerd.accounts AS x
                    WHERE x.user_id = u.user_id AND x.currency = u.currency
                ),
                -- A wallet without the currency is its first account: that this is wrong is for the kernel to say.
                (
                    SELECT x.account_id
                    FROM ledgerd.users AS w INNER JOIN ledgerd.accounts AS x ON x.user_id = w.user_id
                    WHERE w.wallet_name = u.wallet
                    ORDER BY x.currency = u.currency DESC, x.account_id LIMIT 1
                ),
                -- The world's accounts are negative; opposite it there is always a real one.
                (
                    SELECT CASE WHEN t.debit_account > 0 THEN t.debit_account ELSE t.credit_account END
                    FROM ledgerd.transactions AS t WHERE t.transaction_id = u.payer_of
                ),
                (
                    SELECT CASE WHEN t.credit_account > 0 THEN t.credit_account ELSE t.debit_account END
                    FROM ledgerd.transactions AS t WHERE t.transaction_id = u.receiver_of
                )
            )
        ORDER BY n.account_id LIMIT 1
    ) AS a
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency;

-- name: expired_holds
-- Pending holds whose time is over, the oldest first.
SELECT hold_id, account_id FROM ledgerd.expired_holds(interval '0', $1);

-- name: collect_due
-- Collect what is due of advances: the transactions posted, how many payments failed, and whether there is more.
SELECT collected, failed, advances, more FROM ledgerd.collect_due($1);

-- name: account_states
-- Accounts as they are, in one snapshot.
SELECT a.*, c.scale
FROM ledgerd.accounts AS a INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
WHERE a.account_id = ANY($1::bigint []) ORDER BY a.account_id;

-- name: heads
-- The newest version of each account.
SELECT a.account_id, a.version FROM ledgerd.accounts AS a WHERE a.account_id = ANY($1::bigint []);

-- name: unknown_accounts
-- Accounts of some users, at most $3 of each, that are not among those known.
WITH users AS (SELECT u.user_id FROM unnest($1::bigint []) AS u (user_id))

SELECT a.*, c.scale
FROM users AS u
-- The limit also keeps the planner from reading all accounts in the order asked for.
INNER JOIN
    LATERAL (
        SELECT x.* FROM ledgerd.accounts AS x WHERE x.user_id = u.user_id ORDER BY x.currency LIMIT $3
    ) AS a
    ON true
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
WHERE NOT EXISTS (SELECT FROM unnest($2::bigint []) AS known (account_id) WHERE known.account_id = a.account_id)
ORDER BY a.account_id;

-- name: accounts
-- Accounts of a user (of everybody when null), by number.
SELECT a.*, c.scale
FROM ledgerd.accounts AS a INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
WHERE ($1::bigint IS NULL OR a.user_id = $1) AND a.account_id > $2 ORDER BY a.account_id LIMIT $3;

-- name: history
-- Records that gave an account versions above $2, ascending.
(
    SELECT r.debit_version AS position, r.* FROM ledgerd.records AS r
    WHERE r.debit_account = $1 AND r.debit_version > $2 ORDER BY r.debit_version LIMIT $3
)
UNION ALL
(
    SELECT r.credit_version AS position, r.* FROM ledgerd.records AS r
    WHERE r.credit_account = $1 AND r.credit_version > $2 ORDER BY r.credit_version LIMIT $3
)
ORDER BY position LIMIT $3;

-- name: snapshot
-- What has finished by now.
SELECT pg_current_snapshot()::text AS now;

-- name: committed_since
-- A page of the transactions committed since snapshot $1, by xact, whole calls; at least one row, to say what is now.
WITH now AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot, s.ids_from FROM ledgerd.settings AS s),

-- Those that were under way at the snapshot, then those that began later: two ranges of the index. What was restored
-- from elsewhere has ids that mean nothing here.
candidates AS (
    (
        SELECT t.* FROM ledgerd.transactions AS t
        WHERE
            t.xact = ANY(ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
            AND NOT ledgerd.is_restored(t.xmin, t.xact, (SELECT n.ids_from FROM now AS n))
        ORDER BY t.xact FETCH FIRST $2 ROWS WITH TIES
    )
    UNION ALL
    (
        SELECT t.* FROM ledgerd.transactions AS t
        WHERE
            t.xact >= pg_snapshot_xmax($1::text::pg_snapshot)
            AND t.xact < (SELECT pg_snapshot_xmax(n.snapshot) FROM now AS n)
            AND NOT ledgerd.is_restored(t.xmin, t.xact, (SELECT n.ids_from FROM now AS n))
        ORDER BY t.xact FETCH FIRST $2 ROWS WITH TIES
    )
),

page AS MATERIALIZED (SELECT c.* FROM candidates AS c ORDER BY c.xact FETCH FIRST $2 ROWS WITH TIES),

-- LIMIT: looked up row by row, because a plan that reads all accounts for a page is wrong however few there are.
shown AS (
    SELECT
        p.*, debit.user_id AS debit_user, credit.user_id AS credit_user, c.currency, c.scale,
        k.user_id AS actor_user, k.scopes AS actor_scopes
    FROM page AS p
    LEFT JOIN
        LATERAL (
            SELECT a.user_id, a.currency FROM ledgerd.accounts AS a
            WHERE a.account_id = p.debit_account ORDER BY a.account_id LIMIT 1
        ) AS debit
        ON true
    LEFT JOIN
        LATERAL (
            SELECT a.user_id, a.currency FROM ledgerd.accounts AS a
            WHERE a.account_id = p.credit_account ORDER BY a.account_id LIMIT 1
        ) AS credit
        ON true
    INNER JOIN ledgerd.currencies AS c ON c.currency = coalesce(debit.currency, credit.currency)
    LEFT JOIN
        LATERAL (
            SELECT t.user_id, t.scopes FROM ledgerd.tokens AS t
            WHERE t.token_id = p.token_id ORDER BY t.token_id LIMIT 1
        ) AS k
        ON true
)

SELECT s.*, n.snapshot::text AS now, s.xact::text AS xact_text
FROM now AS n
LEFT JOIN shown AS s ON true
ORDER BY s.xact;

-- name: committed_before
-- Transactions with an xact above $2 and below $3 that came before one of $1 on its account, or before those.
WITH RECURSIVE earlier AS (
    SELECT t.transaction_id, t.debit_account, t.debit_version, t.credit_account, t.credit_version, t.xact
    FROM ledgerd.transactions AS t WHERE t.transaction_id = ANY($1::uuid [])
    UNION
    SELECT p.transaction_id, p.debit_account, p.debit_version, p.credit_account, p.credit_version, p.xact
    FROM earlier AS e
    CROSS JOIN
        LATERAL (
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.debit_account = e.debit_account AND t.debit_version = e.debit_version - 1
            UNION ALL
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.credit_account = e.debit_account AND t.credit_version = e.debit_version - 1
            UNION ALL
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.debit_account = e.credit_account AND t.debit_version = e.credit_version - 1
            UNION ALL
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.credit_account = e.credit_account AND t.credit_version = e.credit_version - 1
        ) AS p
    WHERE
        p.xact > $2::text::xid8 AND p.xact < $3::text::xid8
        AND NOT ledgerd.is_restored(p.written_by, p.xact, (SELECT s.ids_from FROM ledgerd.settings AS s))
)

SELECT r.* FROM ledgerd.records AS r
WHERE r.transaction_id IN (SELECT e.transaction_id FROM earlier AS e WHERE e.xact > $2::text::xid8);

-- name: transactions_oldest_first
-- Records of an account above version $2 that match the filters, as they are now; of at most $9 versions.
WITH span AS MATERIALIZED (
    SELECT
        greatest($2, ledgerd.version_at($1, $7::timestamptz - interval '1 microsecond'), 0) AS passed,
        ledgerd.version_at($1, coalesce($8::timestamptz - interval '1 microsecond', 'infinity')) AS last
),

look AS MATERIALIZED (
    SELECT
        s.passed,
        least(s.last, s.passed + $9::bigint) AS last,
        CASE WHEN s.last - s.passed > $9 THEN s.passed + $9 END AS edge
    FROM span AS s
),

page AS MATERIALIZED (
    (
        SELECT t.debit_version AS position, t.transaction_id
        FROM ledgerd.transactions AS t
        WHERE
            t.debit_account = $1
            AND t.debit_version > (SELECT l.passed FROM look AS l) AND t.debit_version <= (SELECT l.last FROM look AS l)
            AND coalesce(t.kind::text = $4, true) AND coalesce(t.reference = $6, $6::text IS NULL)
            AND ($5::text IS NULL OR $5 = CASE
                WHEN t.kind <> 'hold' THEN t.status::text
                ELSE (
                    SELECT r.present_status::text FROM ledgerd.present_records AS r
                    WHERE r.transaction_id = t.transaction_id
                )
            END)
        ORDER BY t.debit_version LIMIT $3
    )
    UNION ALL
    (
        SELECT t.credit_version AS position, t.transaction_id
        FROM ledgerd.transactions AS t
        WHERE
            t.credit_account = $1
            AND t.credit_version > (SELECT l.passed FROM look AS l)
            AND t.credit_version <= (SELECT l.last FROM look AS l)
            AND coalesce(t.kind::text = $4, true) AND coalesce(t.reference = $6, $6::text IS NULL)
            AND ($5::text IS NULL OR $5 = CASE
                WHEN t.kind <> 'hold' THEN t.status::text
                ELSE (
                    SELECT r.present_status::text FROM ledgerd.present_records AS r
                    WHERE r.transaction_id = t.transaction_id
                )
            END)
        ORDER BY t.credit_version LIMIT $3
    )
    ORDER BY position LIMIT $3
)

-- LIMIT: looked up row by row, because a plan that reads whole tables for a page is wrong however few there are.
SELECT r.*, l.edge, p.position
FROM look AS l
LEFT JOIN page AS p ON true
LEFT JOIN
    LATERAL (
        SELECT x.*
        FROM ledgerd.present_records AS x
        WHERE x.transaction_id = p.transaction_id
        ORDER BY x.transaction_id
        LIMIT 1
    ) AS r
    ON true
ORDER BY p.position;

-- name: transactions_newest_first
-- Records of an account below version $2 that match the filters, as they are now; of at most $9 versions.
WITH span AS MATERIALIZED (
    SELECT
        coalesce(ledgerd.version_at($1, $7::timestamptz - interval '1 microsecond'), 0) AS passed,
        least(
            $2 - 1, ledgerd.version_at($1, coalesce($8::timestamptz - interval '1 microsecond', 'infinity'))
        ) AS last
),

look AS MATERIALIZED (
    SELECT
        s.last,
        greatest(s.passed, s.last - $9::bigint) AS passed,
        CASE WHEN s.last - s.passed > $9 THEN s.last - $9 + 1 END AS edge
    FROM span AS s
),

page AS MATERIALIZED (
    (
        SELECT t.debit_version AS position, t.transaction_id
        FROM ledgerd.transactions AS t
        WHERE
            t.debit_account = $1
            AND t.debit_version > (SELECT l.passed FROM look AS l) AND t.debit_version <= (SELECT l.last FROM look AS l)
            AND coalesce(t.kind::text = $4, true) AND coalesce(t.reference = $6, $6::text IS NULL)
            AND ($5::text IS NULL OR $5 = CASE
                WHEN t.kind <> 'hold' THEN t.status::text
                ELSE (
                    SELECT r.present_status::text FROM ledgerd.present_records AS r
                    WHERE r.transaction_id = t.transaction_id
                )
            END)
        ORDER BY t.debit_version DESC LIMIT $3
    )
    UNION ALL
    (
        SELECT t.credit_version AS position, t.transaction_id
        FROM ledgerd.transactions AS t
        WHERE
            t.credit_account = $1
            AND t.credit_version > (SELECT l.passed FROM look AS l)
            AND t.credit_version <= (SELECT l.last FROM look AS l)
            AND coalesce(t.kind::text = $4, true) AND coalesce(t.reference = $6, $6::text IS NULL)
            AND ($5::text IS NULL OR $5 = CASE
                WHEN t.kind <> 'hold' THEN t.status::text
                ELSE (
                    SELECT r.present_status::text FROM ledgerd.present_records AS r
                    WHERE r.transaction_id = t.transaction_id
                )
            END)
        ORDER BY t.credit_version DESC LIMIT $3
    )
    ORDER BY position DESC LIMIT $3
)

-- LIMIT: looked up row by row, because a plan that reads whole tables for a page is wrong however few there are.
SELECT r.*, l.edge, p.position
FROM look AS l
LEFT JOIN page AS p ON true
LEFT JOIN
    LATERAL (
        SELECT x.*
        FROM ledgerd.present_records AS x
        WHERE x.transaction_id = p.transaction_id
        ORDER BY x.transaction_id
        LIMIT 1
    ) AS r
    ON true
ORDER BY p.position DESC;

-- name: records
-- Stored transactions by id.
SELECT r.* FROM ledgerd.records AS r WHERE r.transaction_id = ANY($1::uuid []);

-- name: present_record
-- A stored transaction, with what became of it since.
SELECT r.* FROM ledgerd.present_records AS r WHERE r.transaction_id = $1;

-- name: version_at
-- The newest version an account had at a time; 0 before its first.
SELECT ledgerd.version_at($1, $2) AS version;

-- name: report
-- A page of what may be seen, newest first: transactions and refused attempts; at least one row, to say what is now.
-- $1 accounts, null for everything; $2 all attempts or those of tokens: $3 itself and those of the user $4; $5 only
-- attempts of this account. $6 from; before ($7, $8, $9): time, id, whether it failed. $10 snapshot of the first page.
-- $11 status. $12 rows; of every source at least $13 are looked at, if there are as many.
WITH now AS MATERIALIZED (
    SELECT
        s.ids_from,
        pg_current_snapshot() AS snapshot,
        coalesce($10::text::pg_snapshot, pg_current_snapshot()) AS first
    FROM ledgerd.settings AS s
),

-- Of each account the versions of the time that is asked for,
span AS MATERIALIZED (
    SELECT
        a.account_id,
        ledgerd.version_at(a.account_id, $7::timestamptz) AS newest,
        ledgerd.version_at(a.account_id, $6::timestamptz - interval '1 microsecond') AS passed
    FROM unnest($1::bigint []) AS a (account_id)
    WHERE coalesce($11::text, 'posted') IN ('posted')
),

-- and of these the newest; all that have the time of the oldest of them are among them.
reach AS MATERIALIZED (
    SELECT
        s.account_id, s.newest, oldest.created_at AS oldest_at,
        CASE
            WHEN oldest.created_at IS NULL THEN s.passed
            ELSE ledgerd.version_at(s.account_id, oldest.created_at - interval '1 microsecond')
        END AS passed
    FROM span AS s
    LEFT JOIN
        LATERAL (
            SELECT t.created_at FROM ledgerd.transactions AS t
            WHERE t.debit_account = s.account_id AND t.debit_version = s.newest - $13::bigint + 1
            UNION ALL
            SELECT t.created_at FROM ledgerd.transactions AS t
            WHERE t.credit_account = s.account_id AND t.credit_version = s.newest - $13::bigint + 1
        ) AS oldest
        ON s.newest - $13::bigint > s.passed
),

tokens AS MATERIALIZED (
    SELECT $3::bigint AS token_id WHERE NOT $2::boolean
    UNION
    SELECT k.token_id FROM ledgerd.tokens AS k
    -- One that had ended long before has tried nothing since.
    WHERE
        NOT $2::boolean AND k.user_id = $4
        AND coalesce(k.expires_at >= $6::timestamptz - interval '1 day', true)
        AND coalesce(k.revoked_at >= $6::timestamptz - interval '1 day', true)
),

-- Everything by time; where there is more, down to the time of the last, and all of that time.
by_time AS MATERIALIZED (
    (
        SELECT t.transaction_id, t.kind, t.status, t.created_at, t.xact, t.xmin AS written_by, 1 AS source
        FROM ledgerd.transactions AS t
        WHERE
            $1::bigint [] IS NULL AND coalesce($11::text, 'posted') IN ('posted')
            AND t.created_at >= $6 AND t.created_at <= $7
        ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
    )
    UNION ALL
    (
        SELECT t.transaction_id, t.kind, t.status, t.created_at, t.xact, t.xmin AS written_by, 2 AS source
        FROM ledgerd.transactions AS t
        WHERE
            $1::bigint [] IS NULL AND $11::text NOT IN ('posted', 'failed') AND t.kind IN ('hold', 'cancel')
            AND t.created_at >= $6 AND t.created_at <= $7
        ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
    )
    UNION ALL
    SELECT x.transaction_id, x.kind, x.status, x.created_at, x.xact, x.written_by, -a.account_id AS source
    FROM unnest($1::bigint []) AS a (account_id)
    CROSS JOIN
        LATERAL (
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE
                t.debit_account = a.account_id
                AND t.kind = 'cancel'
                AND coalesce($11::text, 'cancelled') IN ('cancelled')
                AND t.created_at >= $6 AND t.created_at <= $7
            ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
        ) AS x
    UNION ALL
    SELECT x.transaction_id, x.kind, x.status, x.created_at, x.xact, x.written_by, a.account_id AS source
    FROM unnest($1::bigint []) AS a (account_id)
    CROSS JOIN
        LATERAL (
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE
                t.debit_account = a.account_id
                AND t.kind = 'hold'
                AND $11::text NOT IN ('posted', 'failed', 'cancelled')
                AND t.created_at >= $6 AND t.created_at <= $7
            ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
        ) AS x
),

attempts_by_time AS MATERIALIZED (
    (
        SELECT t.attempt_id, t.created_at, t.xact, t.xmin AS written_by, 1 AS source
        FROM ledgerd.attempts AS t
        WHERE
            $2::boolean AND $1::bigint [] IS NULL AND coalesce($11::text, 'failed') IN ('failed')
            AND t.created_at >= $6 AND t.created_at <= $7
        ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
    )
    UNION ALL
    SELECT x.attempt_id, x.created_at, x.xact, x.written_by, -a.account_id AS source
    FROM unnest($1::bigint []) AS a (account_id)
    CROSS JOIN
        LATERAL (
            SELECT t.attempt_id, t.created_at, t.xact, t.xmin AS written_by FROM ledgerd.attempts AS t
            WHERE
                $2::boolean AND coalesce(t.debit_account, t.credit_account) = a.account_id
                AND coalesce($11::text, 'failed') IN ('failed')
                AND t.created_at >= $6 AND t.created_at <= $7
            ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
        ) AS x
    UNION ALL
    SELECT x.attempt_id, x.created_at, x.xact, x.written_by, k.token_id AS source
    FROM tokens AS k
    CROSS JOIN
        LATERAL (
            SELECT t.attempt_id, t.created_at, t.xact, t.xmin AS written_by FROM ledgerd.attempts AS t
            WHERE
                t.token_id = k.token_id
                AND ($5::bigint IS NULL OR coalesce(t.debit_account, t.credit_account) = $5)
                AND coalesce($11::text, 'failed') IN ('failed')
                AND t.created_at >= $6 AND t.created_at <= $7
            ORDER BY t.created_at DESC FETCH FIRST $13 ROWS WITH TIES
        ) AS x
),

found AS (
    SELECT b.transaction_id AS id, false AS failed, b.kind, b.status, b.created_at, b.xact, b.written_by
    FROM by_time AS b
    UNION ALL
    SELECT x.transaction_id AS id, false AS failed, x.kind, x.status, x.created_at, x.xact, x.written_by
    FROM reach AS r
    -- The order and the limit keep the planner at the index.
    CROSS JOIN
        LATERAL (
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.debit_account = r.account_id AND t.debit_version > r.passed AND t.debit_version <= r.newest
            ORDER BY t.debit_version DESC LIMIT r.newest - r.passed
        ) AS x
    UNION ALL
    SELECT x.transaction_id AS id, false AS failed, x.kind, x.status, x.created_at, x.xact, x.written_by
    FROM reach AS r
    CROSS JOIN
        LATERAL (
            SELECT t.xmin AS written_by, t.* FROM ledgerd.transactions AS t
            WHERE t.credit_account = r.account_id AND t.credit_version > r.passed AND t.credit_version <= r.newest
            ORDER BY t.credit_version DESC LIMIT r.newest - r.passed
        ) AS x
    -- Between two of the accounts: it is among the versions of the one it left already.
    WHERE x.debit_version IS NULL OR x.debit_account <> ALL($1)
    UNION ALL
    SELECT a.attempt_id AS id, true AS failed, NULL AS kind, NULL AS status, a.created_at, a.xact, a.written_by
    FROM attempts_by_time AS a
),

-- Down to here every source was looked at; null if there is nothing below.
edge AS MATERIALIZED (
    SELECT max(e.created_at) AS created_at FROM (
        SELECT r.oldest_at AS created_at FROM reach AS r
        UNION ALL
        SELECT min(b.created_at) FROM by_time AS b GROUP BY b.source HAVING count(*) >= $13
        UNION ALL
        SELECT min(a.created_at) FROM attempts_by_time AS a GROUP BY a.source HAVING count(*) >= $13
    ) AS e
),

page AS MATERIALIZED (
    SELECT o.id, o.failed, o.created_at
    FROM (
        SELECT f.*
        FROM found AS f CROSS JOIN edge AS e CROSS JOIN now AS n
        WHERE
            (f.created_at, f.id, f.failed) < ($7::timestamptz, $8::uuid, $9::boolean)
            AND coalesce(f.created_at >= e.created_at, true)
            -- What was restored from elsewhere was there before the first page.
            AND (pg_visible_in_snapshot(f.xact, n.first) OR ledgerd.is_restored(f.written_by, f.xact, n.ids_from))
        -- A limit that is none: so that the states of holds are looked up in this order, and only for one page.
        ORDER BY f.created_at DESC, f.id DESC, f.failed DESC LIMIT 9223372036854775807
    ) AS o
    WHERE
        $11::text IS NULL OR o.failed OR $11 = CASE
            WHEN o.kind <> 'hold' THEN o.status::text
            ELSE (
                SELECT r.present_status::text FROM ledgerd.present_records AS r
                WHERE r.transaction_id = o.id
            )
        END
    ORDER BY o.created_at DESC, o.id DESC, o.failed DESC LIMIT $12
)

SELECT
    r.*, n.snapshot::text AS now, e.created_at AS edge, p.failed,
    a.attempt_id, a.transaction_id AS attempt_transaction_id, a.kind AS attempt_kind,
    a.debit_account AS attempt_debit_account, a.credit_account AS attempt_credit_account,
    a.amount AS attempt_amount, a.currency AS attempt_currency, c.scale AS attempt_scale, a.code,
    a.reference AS attempt_reference, a.reason AS attempt_reason, a.created_at AS attempt_created_at,
    a.token_id AS attempt_token, k.user_id AS attempt_user, k.scopes AS attempt_scopes
FROM now AS n
CROSS JOIN edge AS e
LEFT JOIN page AS p ON true
-- LIMIT: looked up row by row, because a plan that reads a whole table for a page is wrong however small it is.
LEFT JOIN
    LATERAL (
        SELECT x.* FROM ledgerd.present_records AS x WHERE x.transaction_id = p.id ORDER BY x.transaction_id LIMIT 1
    ) AS r
    ON NOT p.failed
LEFT JOIN
    LATERAL (SELECT x.* FROM ledgerd.attempts AS x WHERE x.attempt_id = p.id ORDER BY x.attempt_id LIMIT 1) AS a
    ON p.failed
LEFT JOIN
    LATERAL (SELECT x.scale FROM ledgerd.currencies AS x WHERE x.currency = a.currency ORDER BY x.currency LIMIT 1) AS c
    ON true
LEFT JOIN
    LATERAL (
        SELECT x.user_id, x.scopes FROM ledgerd.tokens AS x WHERE x.token_id = a.token_id ORDER BY x.token_id LIMIT 1
    ) AS k
    ON true
ORDER BY p.created_at DESC, p.id DESC, p.failed DESC;

-- name: report_total
-- How many items all pages of a report have together. $1 to $6 as of the report; $7 its end, included; $8 status.
WITH span AS MATERIALIZED (
    SELECT
        a.account_id,
        ledgerd.version_at(a.account_id, $7::timestamptz) AS newest,
        ledgerd.version_at(a.account_id, $6::timestamptz - interval '1 microsecond') AS passed
    FROM unnest($1::bigint []) AS a (account_id)
    WHERE coalesce($8::text, 'posted') IN ('posted')
),

tokens AS MATERIALIZED (
    SELECT $3::bigint AS token_id WHERE NOT $2::boolean
    UNION
    SELECT k.token_id FROM ledgerd.tokens AS k WHERE NOT $2 AND k.user_id = $4::bigint
),

-- Each condition on the parameters alone decides whether its part is executed at all.
parts AS (
    -- Counted in the index.
    SELECT count(*) AS items FROM ledgerd.transactions AS t
    WHERE $1 IS NULL AND coalesce($8, 'posted') IN ('posted') AND t.created_at >= $6 AND t.created_at <= $7
    UNION ALL
    SELECT -count(*) FROM ledgerd.transactions AS t
    WHERE
        $1 IS NULL
        AND coalesce($8, '') IN ('posted')
        AND t.kind IN ('hold', 'cancel')
        AND t.created_at >= $6
        AND t.created_at <= $7
    UNION ALL
    SELECT count(*) FROM ledgerd.transactions AS t
    WHERE
        $1 IS NULL AND $8 NOT IN ('posted', 'failed') AND t.kind IN ('hold', 'cancel')
        AND t.created_at >= $6 AND t.created_at <= $7
        AND CASE
            WHEN t.kind <> 'hold' THEN t.status::text
            ELSE (
                SELECT r.present_status::text FROM ledgerd.present_records AS r
                WHERE r.transaction_id = t.transaction_id
            )
        END = $8
    UNION ALL
    -- Versions have no holes.
    SELECT sum(s.newest - s.passed) FROM span AS s
    UNION ALL
    SELECT -count(*) FROM ledgerd.transactions AS t
    WHERE
        coalesce($8, '') IN ('posted') AND t.kind = 'hold' AND t.debit_account = ANY($1)
        AND t.created_at >= $6 AND t.created_at <= $7
    UNION ALL
    SELECT count(*) FROM ledgerd.transactions AS t
    WHERE
        $8 NOT IN ('posted', 'failed', 'cancelled') AND t.kind = 'hold' AND t.debit_account = ANY($1)
        AND t.created_at >= $6 AND t.created_at <= $7
        AND (
            SELECT r.present_status::text FROM ledgerd.present_records AS r
            WHERE r.transaction_id = t.transaction_id
        ) = $8
    UNION ALL
    SELECT count(*) FROM ledgerd.transactions AS t
    WHERE
        coalesce($8, 'cancelled') IN ('cancelled') AND t.kind = 'cancel' AND t.debit_account = ANY($1)
        AND t.created_at >= $6 AND t.created_at <= $7
    UNION ALL
    SELECT count(*) FROM ledgerd.attempts AS t
    WHERE $2 AND $1 IS NULL AND coalesce($8, 'failed') IN ('failed') AND t.created_at >= $6 AND t.created_at <= $7
    UNION ALL
    SELECT count(*) FROM ledgerd.attempts AS t
    WHERE
        $2 AND coalesce($8, 'failed') IN ('failed') AND coalesce(t.debit_account, t.credit_account) = ANY($1)
        AND t.created_at >= $6 AND t.created_at <= $7
    UNION ALL
    SELECT count(*)
    FROM tokens AS k INNER JOIN ledgerd.attempts AS t ON t.token_id = k.token_id
    WHERE
        coalesce($8, 'failed') IN ('failed') AND t.created_at >= $6 AND t.created_at <= $7
        AND coalesce(coalesce(t.debit_account, t.credit_account) = $5, $5::bigint IS NULL)
)

SELECT sum(p.items)::bigint AS total FROM parts AS p;

-- name: attempts
-- Refused attempts at an id: all of them, or those of one user's tokens.
SELECT a.attempt_id, a.code, a.created_at
FROM ledgerd.attempts AS a
WHERE
    a.transaction_id = $1
    AND ($2 OR EXISTS (SELECT FROM ledgerd.tokens AS t WHERE t.token_id = a.token_id AND t.user_id = $3))
ORDER BY a.created_at, a.attempt_id LIMIT 100;

-- name: user
-- A user, without the password's hash.
SELECT u.user_id, u.name, u.email, u.status, u.created_at FROM ledgerd.users AS u WHERE u.user_id = $1;

-- name: token
-- A token, without its hash.
SELECT t.token_id, t.user_id, t.account_id, t.scopes, t.label, t.created_at, t.expires_at, t.revoked_at
FROM ledgerd.tokens AS t WHERE t.token_id = $1;

-- name: tokens
-- Tokens of a user (of everybody when null), by number.
SELECT t.token_id, t.user_id, t.account_id, t.scopes, t.label, t.created_at, t.expires_at, t.revoked_at
FROM ledgerd.tokens AS t
WHERE ($1::bigint IS NULL OR t.user_id = $1) AND t.token_id > $2 ORDER BY t.token_id LIMIT $3;

-- name: token_id_by_hash
-- The number of the token with this SHA-256.
SELECT ledgerd.token_id_by_hash($1) AS token_id;

-- name: users
-- Users, by number.
SELECT u.user_id, u.name, u.email, u.status, u.created_at
FROM ledgerd.users AS u WHERE u.user_id > $1 ORDER BY u.user_id LIMIT $2;

-- name: update_user
-- Another name or e-mail of a user.
SELECT ledgerd.update_user($1, $2, $3) AS found;

-- name: set_user_status
-- Disable or enable a user.
SELECT ledgerd.set_user_status($1, $2) AS found;

-- name: login_material
-- User and password hash of an e-mail, all null if there is none: one round trip either way, so that nobody can tell.
SELECT m.password_hash, u.user_id, u.name, u.email, u.status, u.created_at
FROM ledgerd.login_material($1) AS m LEFT JOIN ledgerd.users AS u ON u.user_id = m.user_id;

-- name: take_password_try
-- Take a try at a password: 0, or the milliseconds until there is one.
SELECT ledgerd.take_password_try($1, $2, $3) AS wait_ms;

-- name: return_password_try
-- The password was right.
SELECT ledgerd.return_password_try($1, $2, $3);

-- name: open_session
-- A token for who knows the password; null if that has changed.
SELECT ledgerd.open_session($1, $2, $3, $4, $5) AS token_id;

-- name: change_password
-- Another password; how many other tokens ended, null if the old one has changed.
SELECT ledgerd.change_password($1, $2, $3, $4) AS revoked;

-- name: register_user
-- A user, an account and a token in one transaction.
SELECT user_id, account_id, token_id FROM ledgerd.register_user($1, $2, $3, $4, $5, $6, $7, $8);

-- name: open_account
-- The account of a user in a currency.
SELECT ledgerd.open_account($1, $2, $3) AS account_id;

-- name: create_token
-- A new token.
SELECT ledgerd.create_token($1, $2, $3, $4, $5, $6) AS token_id;

-- name: revoke_tokens
-- Revoke a token, or all of a user.
SELECT ledgerd.revoke_tokens($1, $2) AS revoked;

-- name: revoked_tokens
-- Those of some tokens that are revoked, or not there.
SELECT u.token_id
FROM unnest($1::bigint []) AS u (token_id)
LEFT JOIN ledgerd.tokens AS t ON t.token_id = u.token_id
WHERE t.token_id IS NULL OR t.revoked_at IS NOT NULL;

-- name: set_monitor
-- What came of setting a monitor, and its number.
SELECT s.outcome, s.number AS monitor_id FROM ledgerd.set_monitor($1, $2, $3, $4, $5, $6) AS s;

-- name: remove_monitor
-- How many monitors were removed.
SELECT ledgerd.remove_monitor($1) AS removed;

-- name: monitor
-- A monitor, removed or not.
SELECT m.*, a.user_id, a.currency, c.scale, t.user_id AS set_by
FROM ledgerd.monitors AS m
INNER JOIN ledgerd.accounts AS a ON a.account_id = m.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
INNER JOIN ledgerd.tokens AS t ON t.token_id = m.token_id
WHERE m.monitor_id = $1;

-- name: monitors
-- Monitors of a user's accounts, of one account, or (null and null) of everybody's, by number.
SELECT m.*, a.user_id, a.currency, c.scale, t.user_id AS set_by
FROM ledgerd.monitors AS m
INNER JOIN ledgerd.accounts AS a ON a.account_id = m.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
INNER JOIN ledgerd.tokens AS t ON t.token_id = m.token_id
WHERE
    m.removed_at IS NULL AND ($1::bigint IS NULL OR a.user_id = $1) AND ($2::bigint IS NULL OR m.account_id = $2)
    AND m.monitor_id > $3
ORDER BY m.monitor_id LIMIT $4;

-- name: monitors_since
-- Monitors that were set, or if asked for also removed, after a revision.
SELECT m.*, a.user_id, a.currency, c.scale, t.user_id AS set_by
FROM ledgerd.monitors AS m
INNER JOIN ledgerd.accounts AS a ON a.account_id = m.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
INNER JOIN ledgerd.tokens AS t ON t.token_id = m.token_id
WHERE m.revision > $1 AND ($3 OR m.removed_at IS NULL)
ORDER BY m.revision LIMIT $2;

-- name: advance_states
-- Advances with their latest payments ($2 of each) and events ($3 of each), and how many there are.
SELECT
    v.*, p.*, e.*, a.user_id, a.currency, c.scale,
    (SELECT count(*) FROM ledgerd.advance_payments AS x WHERE x.advance_id = v.advance_id) AS payments,
    (SELECT count(*) FROM ledgerd.advance_events AS x WHERE x.advance_id = v.advance_id) AS events
FROM ledgerd.advances AS v
INNER JOIN ledgerd.accounts AS a ON a.account_id = v.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
CROSS JOIN
    LATERAL (
        SELECT
            array_agg(x.number ORDER BY x.number) AS p_number, array_agg(x.due_at ORDER BY x.number) AS p_due_at,
            array_agg(x.amount ORDER BY x.number) AS p_amount,
            array_agg(x.rolled_over ORDER BY x.number) AS p_rolled_over,
            array_agg(x.paid ORDER BY x.number) AS p_paid, array_agg(x.status ORDER BY x.number) AS p_status,
            array_agg(x.reason ORDER BY x.number) AS p_reason
        FROM (
            SELECT y.* FROM ledgerd.advance_payments AS y
            WHERE y.advance_id = v.advance_id ORDER BY y.number DESC LIMIT $2
        ) AS x
    ) AS p
CROSS JOIN
    LATERAL (
        SELECT
            array_agg(x.event ORDER BY x.event) AS e_event, array_agg(x.type ORDER BY x.event) AS e_type,
            array_agg(x.number ORDER BY x.event) AS e_number, array_agg(x.amount ORDER BY x.event) AS e_amount,
            array_agg(x.outstanding ORDER BY x.event) AS e_outstanding,
            array_agg(x.reason ORDER BY x.event) AS e_reason,
            array_agg(x.transaction_id ORDER BY x.event) AS e_transaction_id,
            array_agg(x.created_at ORDER BY x.event) AS e_created_at
        FROM (
            SELECT y.* FROM ledgerd.advance_events AS y
            WHERE y.advance_id = v.advance_id ORDER BY y.event DESC LIMIT $3
        ) AS x
    ) AS e
WHERE v.advance_id = ANY($1::uuid []);

-- name: advances
-- Advances of an account before a place in the list, the newest first: all, or only those that run or are paid back.
SELECT v.advance_id
FROM ledgerd.advances AS v
WHERE
    v.account_id = $1 AND ($2::boolean IS NULL OR (v.outstanding > 0) = $2)
    AND ($3::timestamptz IS NULL OR (v.created_at, v.advance_id) < ($3, $4::uuid))
ORDER BY v.created_at DESC, v.advance_id DESC LIMIT $5;

-- name: wallet_unit
-- The unit of the betting wallet; null before its first use.
SELECT s.wallet_unit FROM ledgerd.settings AS s;

-- name: create_wallet_users
-- Users with these wallet names, each with a first credit; how many are new.
SELECT ledgerd.create_wallet_users($1, $2, $3, $4, $5, $6) AS created;

-- name: advance_heads
-- The last event of advances of some accounts that run, and of those of $2; with $3 of all of them.
SELECT
    v.advance_id, v.account_id, v.outstanding, a.currency, c.scale,
    (SELECT max(e.event) FROM ledgerd.advance_events AS e WHERE e.advance_id = v.advance_id) AS event
FROM ledgerd.advances AS v
INNER JOIN ledgerd.accounts AS a ON a.account_id = v.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
WHERE v.account_id = ANY($1::bigint []) AND (v.outstanding > 0 OR $3 OR v.advance_id = ANY($2::uuid []))
ORDER BY v.account_id, v.created_at, v.advance_id;

-- name: advance_events
-- Events of an advance above $2, ascending.
SELECT e.*, v.account_id, a.currency, c.scale
FROM ledgerd.advance_events AS e
INNER JOIN ledgerd.advances AS v ON v.advance_id = e.advance_id
INNER JOIN ledgerd.accounts AS a ON a.account_id = v.account_id
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency
WHERE e.advance_id = $1 AND e.event > $2
ORDER BY e.event LIMIT $3;

-- name: advance_events_since
-- A page of the events of advances committed since snapshot $1, by xact, whole transactions; at least one row.
WITH now AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot, s.ids_from FROM ledgerd.settings AS s),

-- As of transactions: those that were under way at the snapshot, then those that began later.
candidates AS (
    (
        SELECT e.* FROM ledgerd.advance_events AS e
        WHERE
            e.xact = ANY(ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
            AND NOT ledgerd.is_restored(e.xmin, e.xact, (SELECT n.ids_from FROM now AS n))
        ORDER BY e.xact FETCH FIRST $2 ROWS WITH TIES
    )
    UNION ALL
    (
        SELECT e.* FROM ledgerd.advance_events AS e
        WHERE
            e.xact >= pg_snapshot_xmax($1::text::pg_snapshot)
            AND e.xact < (SELECT pg_snapshot_xmax(n.snapshot) FROM now AS n)
            AND NOT ledgerd.is_restored(e.xmin, e.xact, (SELECT n.ids_from FROM now AS n))
        ORDER BY e.xact FETCH FIRST $2 ROWS WITH TIES
    )
),

page AS MATERIALIZED (SELECT c.* FROM candidates AS c ORDER BY c.xact FETCH FIRST $2 ROWS WITH TIES)

SELECT p.*, v.account_id, a.currency, c.scale, n.snapshot::text AS now, p.xact::text AS xact_text
FROM now AS n
LEFT JOIN page AS p ON true
LEFT JOIN ledgerd.advances AS v ON v.advance_id = p.advance_id
LEFT JOIN ledgerd.accounts AS a ON a.account_id = v.account_id
LEFT JOIN ledgerd.currencies AS c ON c.currency = a.currency
ORDER BY p.xact, p.advance_id, p.event;
