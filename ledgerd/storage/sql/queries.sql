-- Every read of the daemon. A query begins with "-- name:" and one line that says what it answers.

-- name: post
-- Judge and post commands; see the kernel in migrations/0003_post.sql.
SELECT * FROM ledgerd.post($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: begin_serving
-- Epoch, deployment and cursor key; mints a new epoch if the database's identity changed.
SELECT epoch, deployment, cursor_key FROM ledgerd.begin_serving($1);

-- name: currencies
-- Scales that are fixed already.
SELECT currency, scale FROM ledgerd.currencies;

-- name: applied_migrations
-- Which migrations the database has.
SELECT number, checksum FROM ledgerd.migrations ORDER BY number;

-- name: find_accounts
-- Facts of accounts that are named by number, or by user and currency.
SELECT u.n, a.account_id, a.user_id, a.currency, c.scale
FROM unnest($1::bigint [], $2::bigint [], $3::text []) WITH ORDINALITY AS u (account_id, user_id, currency, n)
INNER JOIN ledgerd.accounts AS a
    ON a.account_id = coalesce(
        u.account_id,
        (SELECT x.account_id FROM ledgerd.accounts AS x WHERE x.user_id = u.user_id AND x.currency = u.currency)
    )
INNER JOIN ledgerd.currencies AS c ON c.currency = a.currency;

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
WITH now AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot),

-- Those that were under way at the snapshot, then those that began later: two ranges of the index. Nothing from before
-- a dump and restore, where ids began anew, has an id that was not given yet.
candidates AS (
    (
        SELECT t.* FROM ledgerd.transactions AS t
        WHERE t.xact = ANY(ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
        ORDER BY t.xact FETCH FIRST $2 ROWS WITH TIES
    )
    UNION ALL
    (
        SELECT t.* FROM ledgerd.transactions AS t
        WHERE
            t.xact >= pg_snapshot_xmax($1::text::pg_snapshot)
            AND t.xact < (SELECT pg_snapshot_xmax(n.snapshot) FROM now AS n)
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
            SELECT t.* FROM ledgerd.transactions AS t
            WHERE t.debit_account = e.debit_account AND t.debit_version = e.debit_version - 1
            UNION ALL
            SELECT t.* FROM ledgerd.transactions AS t
            WHERE t.credit_account = e.debit_account AND t.credit_version = e.debit_version - 1
            UNION ALL
            SELECT t.* FROM ledgerd.transactions AS t
            WHERE t.debit_account = e.credit_account AND t.debit_version = e.credit_version - 1
            UNION ALL
            SELECT t.* FROM ledgerd.transactions AS t
            WHERE t.credit_account = e.credit_account AND t.credit_version = e.credit_version - 1
        ) AS p
    WHERE p.xact > $2::text::xid8 AND p.xact < $3::text::xid8
)

SELECT r.* FROM ledgerd.records AS r
WHERE r.transaction_id IN (SELECT e.transaction_id FROM earlier AS e WHERE e.xact > $2::text::xid8);

-- name: transactions_oldest_first
-- Records of an account above version $2 that match the filters.
(
    SELECT r.debit_version AS position, r.* FROM ledgerd.records AS r
    WHERE
        r.debit_account = $1 AND r.debit_version > coalesce($2, 0)
        AND ($4::text IS NULL OR r.kind::text = $4) AND ($5::text IS NULL OR r.status::text = $5)
        AND ($6::text IS NULL OR r.reference = $6)
        AND ($7::timestamptz IS NULL OR r.created_at >= $7) AND ($8::timestamptz IS NULL OR r.created_at < $8)
    ORDER BY r.debit_version LIMIT $3
)
UNION ALL
(
    SELECT r.credit_version AS position, r.* FROM ledgerd.records AS r
    WHERE
        r.credit_account = $1 AND r.credit_version > coalesce($2, 0)
        AND ($4::text IS NULL OR r.kind::text = $4) AND ($5::text IS NULL OR r.status::text = $5)
        AND ($6::text IS NULL OR r.reference = $6)
        AND ($7::timestamptz IS NULL OR r.created_at >= $7) AND ($8::timestamptz IS NULL OR r.created_at < $8)
    ORDER BY r.credit_version LIMIT $3
)
ORDER BY position LIMIT $3;

-- name: transactions_newest_first
-- Records of an account below version $2 that match the filters.
(
    SELECT r.debit_version AS position, r.* FROM ledgerd.records AS r
    WHERE
        r.debit_account = $1 AND r.debit_version < coalesce($2, 9223372036854775807)
        AND ($4::text IS NULL OR r.kind::text = $4) AND ($5::text IS NULL OR r.status::text = $5)
        AND ($6::text IS NULL OR r.reference = $6)
        AND ($7::timestamptz IS NULL OR r.created_at >= $7) AND ($8::timestamptz IS NULL OR r.created_at < $8)
    ORDER BY r.debit_version DESC LIMIT $3
)
UNION ALL
(
    SELECT r.credit_version AS position, r.* FROM ledgerd.records AS r
    WHERE
        r.credit_account = $1 AND r.credit_version < coalesce($2, 9223372036854775807)
        AND ($4::text IS NULL OR r.kind::text = $4) AND ($5::text IS NULL OR r.status::text = $5)
        AND ($6::text IS NULL OR r.reference = $6)
        AND ($7::timestamptz IS NULL OR r.created_at >= $7) AND ($8::timestamptz IS NULL OR r.created_at < $8)
    ORDER BY r.credit_version DESC LIMIT $3
)
ORDER BY position DESC LIMIT $3;

-- name: records
-- Stored transactions by id.
SELECT r.* FROM ledgerd.records AS r WHERE r.transaction_id = ANY($1::uuid []);

-- name: version_at
-- The newest version an account had before a time; null if it had none.
SELECT max(v.version) AS version FROM (
    (
        SELECT t.debit_version AS version FROM ledgerd.transactions AS t
        WHERE t.debit_account = $1 AND t.debit_version IS NOT NULL AND t.created_at <= $2
        ORDER BY t.debit_version DESC LIMIT 1
    )
    UNION ALL
    (
        SELECT t.credit_version AS version FROM ledgerd.transactions AS t
        WHERE t.credit_account = $1 AND t.credit_version IS NOT NULL AND t.created_at <= $2
        ORDER BY t.credit_version DESC LIMIT 1
    )
) AS v;

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

-- name: login_material
-- User and password hash of an e-mail.
SELECT user_id, password_hash FROM ledgerd.login_material($1);

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
