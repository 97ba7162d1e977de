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
