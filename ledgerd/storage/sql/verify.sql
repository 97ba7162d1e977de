-- The audit: what must hold of everything that is stored. All of it is read in one snapshot, by the daemon's own role.
--
-- A query whose rows have a check_name answers what is wrong, a row for each difference: of which check, and where. The
-- others answer what to look at next, or sums. Sums and what is compared with them are numeric: a damaged row may hold
-- any bigint, and must be told of instead of ending the audit.
--
-- Ranges include both their ends. What is grouped is what the range is of, so that no group is in two of them.

-- name: settings
-- What suits an audit, of what this server knows, until the end of the transaction.
SELECT set_config(s.name, s.value, true)
FROM (
    VALUES
    ('transaction_timeout', '0'),
    -- Plans for these very ranges, and no compiler for each of them.
    ('plan_cache_mode', 'force_custom_plan'),
    ('jit', 'off')
) AS s (name, value)
INNER JOIN pg_catalog.pg_settings AS known ON known.name = s.name;

-- name: snapshot
-- How this transaction reads.
SELECT
    current_setting('transaction_isolation') AS isolation,
    current_setting('transaction_read_only') AS read_only,
    pg_current_snapshot()::text AS snapshot,
    now() AS started_at;

-- name: sizes
-- How much there is.
SELECT
    (SELECT count(*) FROM ledgerd.accounts) AS accounts,
    (SELECT count(*) FROM ledgerd.advances) AS advances,
    pg_relation_size('ledgerd.transactions') / current_setting('block_size')::bigint AS pages;

-- name: account_slices
-- Ranges of accounts with about $1 entries each; an account with more than that is a range of its own.
SELECT
    min(s.account_id) AS first_account,
    max(s.account_id) AS last_account,
    max(s.version) AS version,
    count(*) AS accounts,
    sum(s.version)::bigint AS entries
FROM (
    SELECT
        a.account_id,
        a.version,
        a.version > $1::bigint AS is_large,
        count(*) FILTER (WHERE a.version > $1) OVER w AS large_ones,
        -- An account costs a little, whatever happened on it.
        div(sum(least(a.version, $1) + 1) OVER w, $1) AS slice
    FROM ledgerd.accounts AS a
    WINDOW w AS (ORDER BY a.account_id ROWS UNBOUNDED PRECEDING)
) AS s
GROUP BY s.large_ones, s.is_large, s.slice
ORDER BY first_account;

-- name: advance_slices
-- Ranges of at most $1 advances.
SELECT
    (array_agg(s.advance_id ORDER BY s.n))[1] AS first_advance,
    (array_agg(s.advance_id ORDER BY s.n DESC))[1] AS last_advance
FROM (
    SELECT a.advance_id, row_number() OVER (ORDER BY a.advance_id) AS n FROM ledgerd.advances AS a
) AS s
GROUP BY (s.n - 1) / $1::bigint
ORDER BY first_advance;

-- name: next_advances
-- The next advances from $1 on, at most $2 of them.
SELECT a.advance_id FROM ledgerd.advances AS a WHERE a.advance_id >= $1 ORDER BY a.advance_id LIMIT $2;

-- name: sampled_references
-- Ids that are referred to by the transactions on $1 percent of the pages.
SELECT t.refers_to
FROM ledgerd.transactions AS t TABLESAMPLE SYSTEM ($1) -- noqa: PRS
WHERE t.refers_to IS NOT NULL;

-- name: world_changes
-- What the pages' transactions changed on the world's side, by the world's accounts.
SELECT w.world_account, sum(w.change) AS change
FROM ledgerd.transactions AS t
CROSS JOIN
    LATERAL (
        VALUES (t.debit_account, -t.amount), (t.credit_account, t.amount)
    ) AS w (world_account, change)
WHERE t.ctid >= $1 AND t.ctid < $2 AND w.world_account <= 0 AND ledgerd.moves_money(t.kind)
GROUP BY w.world_account;

-- name: balances_of_currencies
-- The sum of all balances of each currency.
SELECT c.currency, c.world_account, coalesce(sum(a.balance), 0) AS balances
FROM ledgerd.currencies AS c LEFT JOIN ledgerd.accounts AS a ON a.currency = c.currency
GROUP BY c.currency, c.world_account
ORDER BY c.currency;

-- name: accounts
-- Accounts that are not what their entries make of them.
WITH entries AS (
    SELECT
        t.debit_account AS account_id, t.debit_version AS version, t.kind, t.amount, t.created_at, t.held_change,
        CASE WHEN ledgerd.moves_money(t.kind) THEN -t.amount ELSE 0 END AS balance_change
    FROM ledgerd.transactions AS t
    WHERE t.debit_account BETWEEN $1 AND $2 AND t.debit_version IS NOT NULL
    UNION ALL
    SELECT
        t.credit_account AS account_id, t.credit_version AS version, NULL AS kind, t.amount, t.created_at,
        0 AS held_change,
        CASE WHEN ledgerd.moves_money(t.kind) THEN t.amount ELSE 0 END AS balance_change
    FROM ledgerd.transactions AS t
    WHERE t.credit_account BETWEEN $1 AND $2 AND t.credit_version IS NOT NULL
),

sums AS (
    SELECT
        e.account_id,
        max(e.version) AS head,
        count(*) AS entries,
        sum(e.balance_change) AS balance,
        sum(e.held_change) AS held,
        max(e.created_at) AS changed_at,
        -- Arrays are compared from the left: the newest version comes with what it set.
        max(ARRAY[e.version, e.amount]) FILTER (WHERE e.kind = 'limit') AS newest_limit,
        max(ARRAY[e.version, CASE e.kind WHEN 'freeze' THEN 1 WHEN 'unfreeze' THEN 2 ELSE 3 END])
        FILTER (WHERE e.kind IN ('freeze', 'unfreeze', 'close')) AS newest_status
    FROM entries AS e
    GROUP BY e.account_id
),

pending AS (
    SELECT h.account_id, sum(t.amount) AS held
    FROM ledgerd.holds AS h INNER JOIN ledgerd.transactions AS t ON t.transaction_id = h.hold_id
    WHERE h.account_id BETWEEN $1 AND $2
    GROUP BY h.account_id
),

compared AS (
    SELECT
        a.*,
        s.changed_at,
        coalesce(s.head, 0) AS head,
        coalesce(s.entries, 0) AS entries,
        coalesce(s.balance, 0) AS entries_balance,
        coalesce(s.held, 0) AS entries_held,
        coalesce(p.held, 0) AS pending_held,
        coalesce(s.newest_limit[2], 0) AS entries_limit,
        coalesce((ARRAY['frozen', 'active', 'closed'])[s.newest_status[2]], 'active') AS entries_status,
        u.status = 'disabled' AS user_disabled
    FROM ledgerd.accounts AS a
    LEFT JOIN sums AS s ON s.account_id = a.account_id
    LEFT JOIN pending AS p ON p.account_id = a.account_id
    LEFT JOIN ledgerd.users AS u ON u.user_id = a.user_id
    WHERE a.account_id BETWEEN $1 AND $2
)

SELECT f.check_name, c.account_id, NULL::uuid AS transaction_id, NULL::uuid AS advance_id, f.detail
FROM compared AS c
CROSS JOIN
    LATERAL (
        VALUES
        (
            'balances', CASE
                WHEN c.balance <> c.entries_balance
                    THEN format('the balance is %s, its entries give %s', c.balance, c.entries_balance)
            END
        ),
        (
            'balances', CASE
                WHEN c.held <> c.entries_held
                    THEN format('held is %s, its entries give %s', c.held, c.entries_held)
            END
        ),
        (
            'balances', CASE
                WHEN c.held <> c.pending_held
                    THEN format('held is %s, its pending holds are %s', c.held, c.pending_held)
            END
        ),
        (
            'versions', CASE
                WHEN c.version <> c.head OR c.version <> c.entries
                    THEN format('the version is %s, its %s entries reach %s', c.version, c.entries, c.head)
            END
        ),
        (
            'times', CASE
                WHEN c.updated_at < c.changed_at
                    THEN format('last changed at %s, its newest entry is of %s', c.updated_at, c.changed_at)
            END
        ),
        (
            'statuses', CASE
                WHEN c.status <> c.entries_status
                    THEN format('the status is %s, its entries say %s', c.status, c.entries_status)
            END
        ),
        (
            'statuses', CASE
                WHEN c.overdraft_limit <> c.entries_limit
                    THEN format('the overdraft limit is %s, its entries say %s', c.overdraft_limit, c.entries_limit)
            END
        ),
        (
            'statuses', CASE
                WHEN c.owner_disabled IS DISTINCT FROM c.user_disabled
                    THEN format('owner_disabled is %s, but not the status of user %s', c.owner_disabled, c.user_id)
            END
        )
    ) AS f (check_name, detail)
WHERE
    (
        c.balance <> c.entries_balance OR c.held <> c.entries_held OR c.held <> c.pending_held
        OR c.version <> c.head OR c.version <> c.entries OR c.updated_at < c.changed_at
        OR c.status <> c.entries_status OR c.overdraft_limit <> c.entries_limit
        OR c.owner_disabled IS DISTINCT FROM c.user_disabled
    )
    AND f.detail IS NOT NULL;

-- name: entries
-- Entries that do not follow from the one before them: of some accounts, the versions above $3 up to $4.
WITH entries AS (
    SELECT
        t.debit_account AS account_id, t.debit_version AS version, t.transaction_id, t.created_at,
        CASE WHEN ledgerd.moves_money(t.kind) THEN -t.amount ELSE 0 END AS balance_change, t.held_change,
        t.debit_balance AS balance, t.debit_held AS held, t.debit_available AS available,
        CASE WHEN t.kind = 'limit' THEN t.amount END AS new_limit,
        t.kind = 'close' AS closes
    FROM ledgerd.transactions AS t
    WHERE t.debit_account BETWEEN $1 AND $2 AND t.debit_version BETWEEN $3::bigint AND $4::bigint
    UNION ALL
    SELECT
        t.credit_account AS account_id, t.credit_version AS version, t.transaction_id, t.created_at,
        CASE WHEN ledgerd.moves_money(t.kind) THEN t.amount ELSE 0 END AS balance_change, 0 AS held_change,
        t.credit_balance AS balance, t.credit_held AS held, t.credit_available AS available,
        NULL AS new_limit,
        false AS closes
    FROM ledgerd.transactions AS t
    WHERE t.credit_account BETWEEN $1 AND $2 AND t.credit_version BETWEEN $3::bigint AND $4::bigint
),

-- Before the first version an account is empty. Before the first one of a later range is one that the range before it
-- has judged, and that is here only to be compared with: without it nothing is known.
steps AS (
    SELECT
        e.*,
        e.available::numeric - e.balance + e.held AS limit_then,
        lag(e.version, 1, CASE $3 WHEN 0 THEN 0 END::bigint) OVER w AS version_before,
        lag(e.balance, 1, CASE $3 WHEN 0 THEN 0 END::bigint) OVER w AS balance_before,
        lag(e.held, 1, CASE $3 WHEN 0 THEN 0 END::bigint) OVER w AS held_before,
        lag(e.available::numeric - e.balance + e.held, 1, CASE $3 WHEN 0 THEN 0 END::numeric) OVER w AS limit_before,
        lag(e.created_at, 1, '-infinity'::timestamptz) OVER w AS created_before,
        lag(e.closes, 1, false) OVER w AS closed_before
    FROM entries AS e
    WINDOW w AS (PARTITION BY e.account_id ORDER BY e.version)
),

judged AS (
    SELECT
        s.*,
        s.version_before IS NOT NULL AND s.version <> s.version_before + 1 AS jumps,
        s.balance_before IS NOT NULL
        AND (s.balance = s.balance_before::numeric + s.balance_change) IS NOT TRUE AS miscounts,
        s.held_before IS NOT NULL AND (s.held = s.held_before::numeric + s.held_change AND s.held >= 0) IS NOT TRUE
            AS misholds,
        s.limit_before IS NOT NULL AND (s.limit_then = coalesce(s.new_limit, s.limit_before)) IS NOT TRUE AS mislimits,
        (s.available >= 0) IS NOT TRUE AS overdrawn,
        s.created_at < s.created_before AS goes_back
    FROM steps AS s
    WHERE s.version > $3
)

SELECT f.check_name, j.account_id, j.transaction_id, NULL::uuid AS advance_id, f.detail
FROM judged AS j
CROSS JOIN
    LATERAL (
        VALUES
        (
            'versions', CASE
                WHEN j.jumps
                    THEN format('version %s comes after version %s', j.version, j.version_before)
            END
        ),
        (
            'running_balances', CASE
                WHEN j.miscounts
                    THEN format(
                        'version %s has the balance %s, %s and a change of %s give another',
                        j.version, j.balance, j.balance_before, j.balance_change
                    )
            END
        ),
        (
            'running_balances', CASE
                WHEN j.misholds
                    THEN format(
                        'version %s has %s held, %s and a change of %s give another',
                        j.version, j.held, j.held_before, j.held_change
                    )
            END
        ),
        (
            'running_balances', CASE
                WHEN j.mislimits
                    THEN format(
                        'version %s has %s available, which is a limit of %s, not of %s',
                        j.version, j.available, j.limit_then, coalesce(j.new_limit, j.limit_before)
                    )
            END
        ),
        (
            'running_balances',
            CASE WHEN j.overdrawn THEN format('version %s has %s available', j.version, j.available) END
        ),
        (
            'times', CASE
                WHEN j.goes_back
                    THEN
                        format(
                            'version %s is of %s, the one before it of %s', j.version, j.created_at, j.created_before
                        )
            END
        ),
        (
            'statuses',
            CASE WHEN j.closed_before THEN format('version %s comes after the account was closed', j.version) END
        ),
        (
            'statuses', CASE
                WHEN j.closes AND (j.balance <> 0 OR j.held <> 0)
                    THEN format('closed with the balance %s and %s held', j.balance, j.held)
            END
        )
    ) AS f (check_name, detail)
WHERE
    (j.jumps OR j.miscounts OR j.misholds OR j.mislimits OR j.overdrawn OR j.goes_back OR j.closed_before OR j.closes)
    AND f.detail IS NOT NULL;

-- name: transactions
-- Transactions of some pages that are not what their kind must be, and those that miss what comes with them.
SELECT f.check_name, w.account_id, w.transaction_id, w.advance_id, f.detail
FROM (
    -- Of each check the first thing that is wrong with a transaction. Every one comes by here: nothing is made of a row
    -- before it is known to be one of the few.
    SELECT
        t.transaction_id,
        coalesce(debit.account_id, credit.account_id) AS account_id,
        CASE WHEN t.kind = 'advance' THEN t.transaction_id END AS advance_id,
        CASE
            WHEN debit.account_id IS NULL AND debit_world.world_account IS NULL
                THEN format('account %s on the debit side does not exist', t.debit_account)
            WHEN credit.account_id IS NULL AND credit_world.world_account IS NULL
                THEN format('account %s on the credit side does not exist', t.credit_account)
            WHEN coalesce(debit.currency, debit_world.currency) <> coalesce(credit.currency, credit_world.currency)
                THEN format(
                    'takes %s and gives %s',
                    coalesce(debit.currency, debit_world.currency), coalesce(credit.currency, credit_world.currency)
                )
            WHEN
                NOT CASE
                    WHEN t.kind IN ('credit', 'win', 'rollback', 'advance')
                        THEN t.debit_account < 0 AND t.credit_account > 0
                    WHEN t.kind = 'transfer' THEN t.debit_account > 0 AND t.credit_account > 0
                    WHEN t.kind IN ('hold', 'capture', 'release', 'expiry') THEN t.debit_account > 0
                    WHEN t.kind = 'reversal' THEN true
                    ELSE t.debit_account > 0 AND t.credit_account < 0
                END
                THEN
                    format('no %s goes from account %s to account %s', t.kind, t.debit_account, t.credit_account)
            WHEN
                num_nonnulls(t.debit_version, t.debit_balance, t.debit_held, t.debit_available)
                <> CASE WHEN t.debit_account > 0 AND t.kind <> 'cancel' THEN 4 ELSE 0 END
                OR num_nonnulls(t.credit_version, t.credit_balance, t.credit_held, t.credit_available)
                <> CASE WHEN t.credit_account > 0 AND ledgerd.moves_money(t.kind) THEN 4 ELSE 0 END
                OR least(t.debit_version, t.credit_version) < 1
                THEN format(
                    'takes version %s of its debit side and %s of its credit side',
                    coalesce(t.debit_version::text, 'no'), coalesce(t.credit_version::text, 'no')
                )
            WHEN
                CASE
                    WHEN t.amount = 0
                        THEN t.kind NOT IN ('freeze', 'unfreeze', 'close', 'cancel', 'limit', 'rollback')
                    ELSE t.kind IN ('freeze', 'unfreeze', 'close', 'cancel')
                END
                THEN format('a %s of %s', t.kind, t.amount)
            WHEN
                t.status <> CASE t.kind
                    WHEN 'hold' THEN 'pending'::ledgerd.transaction_status
                    WHEN 'cancel' THEN 'cancelled'::ledgerd.transaction_status
                    ELSE 'posted'::ledgerd.transaction_status
                END
                THEN format('a %s that is %s', t.kind, t.status)
            WHEN (t.refers_to IS NOT NULL) <> (
                t.kind IN ('capture', 'release', 'expiry', 'reversal', 'win', 'rollback', 'advance_payment')
            )
                THEN format('a %s that refers to %s', t.kind, coalesce(t.refers_to::text, 'nothing'))
        END AS sides_detail,
        CASE
            WHEN (t.kind = 'hold') <> (coalesce(t.expires_in_s, 0) > 0)
                THEN format('a %s that expires in %s s', t.kind, coalesce(t.expires_in_s::text, 'no'))
            WHEN t.kind IN ('capture', 'release', 'expiry') THEN NULL
            WHEN t.held_change <> CASE t.kind WHEN 'hold' THEN t.amount ELSE 0 END
                THEN format('a %s of %s changes what is held by %s', t.kind, t.amount, t.held_change)
            WHEN
                t.kind = 'hold'
                AND NOT EXISTS (SELECT FROM ledgerd.holds AS h WHERE h.hold_id = t.transaction_id)
                AND NOT EXISTS (
                    SELECT FROM ledgerd.transactions AS e
                    WHERE e.refers_to = t.transaction_id AND e.kind IN ('capture', 'release', 'expiry')
                )
                THEN 'neither pending nor ended'
        END AS holds_detail,
        CASE
            WHEN num_nulls(t.batch_id, t.batch_index) = 1
                THEN format('member %s of batch %s', t.batch_index, t.batch_id)
        END AS batches_detail,
        CASE
            WHEN
                t.kind = 'advance'
                AND NOT EXISTS (SELECT FROM ledgerd.advances AS a WHERE a.advance_id = t.transaction_id)
                THEN 'the money was paid, but there is no advance'
        END AS advances_detail
    FROM ledgerd.transactions AS t
    LEFT JOIN ledgerd.accounts AS debit ON debit.account_id = t.debit_account
    LEFT JOIN ledgerd.accounts AS credit ON credit.account_id = t.credit_account
    LEFT JOIN ledgerd.currencies AS debit_world ON debit_world.world_account = t.debit_account
    LEFT JOIN ledgerd.currencies AS credit_world ON credit_world.world_account = t.credit_account
    WHERE t.ctid >= $1 AND t.ctid < $2
) AS w
CROSS JOIN
    LATERAL (
        VALUES
        ('sides', w.sides_detail),
        ('holds', w.holds_detail),
        ('batches', w.batches_detail),
        ('advances', w.advances_detail)
    ) AS f (check_name, detail)
WHERE
    num_nonnulls(w.sides_detail, w.holds_detail, w.batches_detail, w.advances_detail) > 0
    AND f.detail IS NOT NULL;

-- name: references
-- Transactions that do not fit what they refer to, each alone or several together; by the id referred to.
WITH about AS (
    SELECT
        t.transaction_id,
        t.refers_to,
        t.kind,
        t.amount,
        t.held_change,
        t.debit_account,
        t.credit_account,
        t.created_at,
        o.kind AS of_kind,
        o.amount AS of_amount,
        o.debit_account AS of_debit,
        o.credit_account AS of_credit,
        o.created_at + make_interval(secs => o.expires_in_s) AS of_expires
    FROM ledgerd.transactions AS t
    LEFT JOIN ledgerd.transactions AS o ON o.transaction_id = t.refers_to
    WHERE t.refers_to BETWEEN $1 AND $2
),

together AS (
    SELECT
        a.refers_to,
        min(a.of_amount) AS of_amount,
        min(a.of_debit) AS of_debit,
        bool_or(a.of_kind = 'bet') AS is_bet,
        count(*) FILTER (WHERE a.kind IN ('capture', 'release', 'expiry')) AS ends,
        sum(a.amount) FILTER (WHERE a.kind = 'reversal') AS reversed,
        count(*) FILTER (WHERE a.kind = 'win') AS wins,
        count(*) FILTER (WHERE a.kind = 'rollback' AND a.amount > 0) AS returns,
        array_agg(a.credit_account) FILTER (WHERE a.kind = 'rollback' AND a.amount = 0 AND a.of_kind = 'bet') AS stones
    FROM about AS a
    GROUP BY a.refers_to
)

SELECT w.check_name, w.account_id, w.transaction_id, w.advance_id, w.detail
FROM (
    SELECT
        a.transaction_id,
        greatest(a.debit_account, a.credit_account) AS account_id,
        CASE WHEN a.kind = 'advance_payment' THEN a.refers_to END AS advance_id,
        CASE
            WHEN a.kind IN ('capture', 'release', 'expiry') THEN 'holds'
            WHEN a.kind = 'reversal' THEN 'reversals'
            WHEN a.kind = 'advance_payment' THEN 'advances'
            ELSE 'bets'
        END AS check_name,
        CASE
            WHEN a.kind IN ('capture', 'release', 'expiry')
                THEN
                    CASE
                        WHEN (a.of_kind = 'hold') IS NOT TRUE THEN format('%s of no hold', a.kind)
                        WHEN (a.debit_account, a.credit_account) <> (a.of_debit, a.of_credit)
                            THEN format('%s on other accounts than those of hold %s', a.kind, a.refers_to)
                        WHEN a.held_change <> -a.of_amount
                            THEN
                                format(
                                    'lets %s go of the %s of hold %s', -a.held_change::numeric, a.of_amount, a.refers_to
                                )
                        WHEN a.amount > a.of_amount OR (a.kind <> 'capture' AND a.amount <> a.of_amount)
                            THEN format('%s of %s from the %s of hold %s', a.kind, a.amount, a.of_amount, a.refers_to)
                        WHEN (a.created_at >= a.of_expires) <> (a.kind = 'expiry')
                            THEN format('%s at %s of a hold until %s', a.kind, a.created_at, a.of_expires)
                    END
            WHEN a.kind = 'reversal'
                THEN
                    CASE
                        WHEN (a.of_kind IN ('credit', 'debit', 'transfer', 'capture')) IS NOT TRUE
                            THEN format('reverses %s %s', coalesce(a.of_kind::text, 'nothing:'), a.refers_to)
                        WHEN (a.debit_account, a.credit_account) <> (a.of_credit, a.of_debit)
                            THEN format('does not go the way of %s back', a.refers_to)
                    END
            WHEN a.kind = 'win' AND (a.of_kind = 'bet' AND a.credit_account = a.of_debit) IS NOT TRUE
                THEN format('%s is no bet of its account', a.refers_to)
            WHEN
                a.kind = 'rollback' AND a.amount > 0
                AND (a.of_kind = 'bet' AND a.credit_account = a.of_debit AND a.amount = a.of_amount) IS NOT TRUE
                THEN format('gives back %s, not the stake of a bet %s of its account', a.amount, a.refers_to)
            WHEN
                a.kind = 'advance_payment'
                AND (a.of_kind = 'advance' AND a.debit_account = a.of_credit) IS NOT TRUE
                THEN format('pays back %s, which is no advance of its account', a.refers_to)
        END AS detail
    FROM about AS a
) AS w
WHERE w.detail IS NOT NULL
UNION ALL
SELECT f.check_name, w.account_id, w.transaction_id, NULL AS advance_id, f.detail
FROM (
    SELECT
        g.refers_to AS transaction_id,
        nullif(greatest(g.of_debit, 0), 0) AS account_id,
        CASE
            WHEN g.ends > 1 THEN format('the hold ended %s times', g.ends)
            WHEN g.ends > 0 AND EXISTS (SELECT FROM ledgerd.holds AS h WHERE h.hold_id = g.refers_to)
                THEN 'the hold has ended and is pending'
        END AS holds_detail,
        CASE WHEN g.reversed > g.of_amount THEN format('%s of %s were given back', g.reversed, g.of_amount)
        END AS reversals_detail,
        CASE
            WHEN g.wins > 1 THEN format('the bet was won %s times', g.wins)
            WHEN g.returns > 1 OR (g.wins > 0 AND g.returns > 0)
                THEN format('the bet was won %s times and given back %s times', g.wins, g.returns)
            WHEN
                g.is_bet AND g.returns = 0
                AND EXISTS (
                    SELECT FROM ledgerd.accounts AS stone
                    INNER JOIN ledgerd.accounts AS bet ON bet.user_id = stone.user_id
                    WHERE stone.account_id = ANY(g.stones) AND bet.account_id = g.of_debit
                )
                THEN 'the bet is there although its user had rolled it back'
        END AS bets_detail
    FROM together AS g
) AS w
CROSS JOIN
    LATERAL (
        VALUES ('holds', w.holds_detail), ('reversals', w.reversals_detail), ('bets', w.bets_detail)
    ) AS f (check_name, detail)
WHERE num_nonnulls(w.holds_detail, w.reversals_detail, w.bets_detail) > 0 AND f.detail IS NOT NULL;

-- name: pending_holds
-- Pending holds that are not as they were placed.
SELECT 'holds' AS check_name, h.account_id, h.hold_id AS transaction_id, NULL::uuid AS advance_id, f.detail
FROM ledgerd.holds AS h
LEFT JOIN ledgerd.transactions AS t ON t.transaction_id = h.hold_id
CROSS JOIN
    LATERAL (
        SELECT CASE
            WHEN (t.kind = 'hold') IS NOT TRUE THEN 'pending, but never placed'
            WHEN t.debit_account <> h.account_id
                THEN format('pending on account %s, placed on %s', h.account_id, t.debit_account)
            WHEN (h.expires_at = t.created_at + make_interval(secs => t.expires_in_s)) IS NOT TRUE
                THEN format(
                    'expires at %s, not %s s after it was placed at %s', h.expires_at, t.expires_in_s, t.created_at
                )
        END AS detail
    ) AS f
WHERE f.detail IS NOT NULL;

-- name: overdue_holds
-- Pending holds whose time has been over for longer than an expirer may need: a warning.
SELECT
    'overdue_holds' AS check_name, h.account_id, h.hold_id AS transaction_id, NULL::uuid AS advance_id,
    format('expired at %s and is still pending', h.expires_at) AS detail
FROM ledgerd.expired_holds($1, NULL) AS h;

-- name: batches
-- Atomic batches that lack a member; by the id of the batch.
SELECT
    'batches' AS check_name, NULL::bigint AS account_id, NULL::uuid AS transaction_id, NULL::uuid AS advance_id,
    format('batch %s has %s members, numbered %s to %s', b.batch_id, b.members, b.first_member, b.last_member) AS detail
FROM (
    SELECT
        t.batch_id,
        count(*) AS members,
        min(t.batch_index) AS first_member,
        max(t.batch_index) AS last_member
    FROM ledgerd.transactions AS t
    WHERE t.batch_id BETWEEN $1 AND $2
    GROUP BY t.batch_id
) AS b
WHERE b.first_member <> 0 OR b.last_member <> b.members - 1;

-- name: advances
-- Advances whose sums do not hold, or whose payments, events and transactions tell different stories; by their ids.
WITH told AS (
    SELECT
        a.*,
        p.payments,
        p.last_number,
        p.amounts,
        p.rolled_over,
        p.given_up,
        p.paid,
        p.open,
        p.next_due_at,
        p.odd_payment,
        e.events,
        e.last_event,
        e.completed,
        e.failures,
        p.failures AS payments_failed,
        x.money,
        x.odd_transaction,
        t.kind,
        t.amount AS posted,
        t.credit_account,
        q.due_at
    FROM ledgerd.advances AS a
    LEFT JOIN ledgerd.transactions AS t ON t.transaction_id = a.advance_id
    LEFT JOIN ledgerd.advance_queue AS q ON q.advance_id = a.advance_id
    CROSS JOIN
        LATERAL (
            SELECT
                count(*) AS payments,
                coalesce(max(p.number), 0) AS last_number,
                coalesce(sum(p.amount), 0) AS amounts,
                coalesce(sum(p.rolled_over), 0) AS rolled_over,
                coalesce(sum(p.amount - p.paid) FILTER (WHERE p.status = 'failed'), 0) AS given_up,
                coalesce(sum(p.paid), 0) AS paid,
                coalesce(sum(p.amount - p.paid) FILTER (WHERE p.status NOT IN ('paid', 'failed')), 0) AS open,
                min(p.due_at) FILTER (WHERE p.status NOT IN ('paid', 'failed')) AS next_due_at,
                count(*) FILTER (WHERE p.status = 'failed') AS failures,
                min(p.number) FILTER (WHERE p.paid <> (
                    SELECT coalesce(sum(v.amount), 0) FROM ledgerd.advance_events AS v
                    WHERE v.advance_id = a.advance_id AND v.number = p.number AND v.type IN ('paid', 'part_paid')
                )) AS odd_payment
            FROM ledgerd.advance_payments AS p WHERE p.advance_id = a.advance_id
        ) AS p
    CROSS JOIN
        LATERAL (
            SELECT
                count(*) AS events,
                coalesce(max(v.event), 0) AS last_event,
                count(*) FILTER (WHERE v.type = 'completed') AS completed,
                count(*) FILTER (WHERE v.type = 'failed') AS failures
            FROM ledgerd.advance_events AS v WHERE v.advance_id = a.advance_id
        ) AS e
    CROSS JOIN
        LATERAL (
            SELECT
                coalesce(sum(m.amount), 0) AS money,
                (array_agg(m.transaction_id) FILTER (WHERE m.amount <> (
                    SELECT coalesce(sum(v.amount), 0) FROM ledgerd.advance_events AS v
                    WHERE
                        v.advance_id = a.advance_id AND v.transaction_id = m.transaction_id
                        AND v.type IN ('paid', 'part_paid')
                )))[1] AS odd_transaction
            FROM ledgerd.transactions AS m WHERE m.refers_to = a.advance_id AND m.kind = 'advance_payment'
        ) AS x
    WHERE a.advance_id BETWEEN $1 AND $2
)

SELECT 'advances' AS check_name, a.account_id, f.transaction_id, a.advance_id, f.detail
FROM told AS a
CROSS JOIN
    LATERAL (
        VALUES
        (
            NULL::uuid, CASE
                WHEN (a.kind = 'advance' AND a.posted = a.principal AND a.credit_account = a.account_id) IS NOT TRUE
                    THEN format('the principal is %s, the transaction says otherwise', a.principal)
            END
        ),
        (
            NULL, CASE
                WHEN a.paid + a.open <> a.principal
                    THEN format('%s paid and %s still due are not the principal of %s', a.paid, a.open, a.principal)
            END
        ),
        (
            NULL, CASE
                WHEN a.outstanding <> a.open
                    THEN format('outstanding is %s, its open payments ask for %s', a.outstanding, a.open)
            END
        ),
        (
            NULL, CASE
                WHEN a.money <> a.paid
                    THEN format('transactions paid %s, its payments say %s', a.money, a.paid)
            END
        ),
        (
            NULL, CASE
                WHEN a.amounts - a.rolled_over <> a.principal OR a.given_up <> a.rolled_over
                    THEN format(
                        'payments of %s with %s rolled over, %s given up by failed ones, of a principal of %s',
                        a.amounts, a.rolled_over, a.given_up, a.principal
                    )
            END
        ),
        (
            NULL, CASE
                WHEN a.payments <> a.last_number OR a.payments < a.installments
                    THEN format('%s payments, numbered up to %s', a.payments, a.last_number)
            END
        ),
        (
            NULL, CASE
                WHEN a.odd_payment IS NOT NULL
                    THEN format('payment %s does not agree with its events', a.odd_payment)
            END
        ),
        (
            a.odd_transaction, CASE
                WHEN a.odd_transaction IS NOT NULL
                    THEN 'a payment''s transaction does not agree with its events'
            END
        ),
        (
            NULL, CASE
                WHEN a.events <> a.last_event
                    THEN format('%s events, numbered up to %s', a.events, a.last_event)
            END
        ),
        (
            NULL, CASE
                WHEN a.failures <> a.payments_failed
                    THEN format('%s payments failed, its events say %s', a.payments_failed, a.failures)
            END
        ),
        (
            NULL, CASE
                WHEN a.completed <> CASE WHEN a.outstanding = 0 THEN 1 ELSE 0 END
                    THEN format('completed %s times with %s outstanding', a.completed, a.outstanding)
            END
        ),
        (
            NULL, CASE
                WHEN a.next_due_at IS NULL THEN NULL
                WHEN a.due_at IS NULL THEN 'runs, but is not queued to be collected'
                WHEN a.due_at > a.next_due_at
                    THEN format('queued for %s, its next payment is due at %s', a.due_at, a.next_due_at)
            END
        )
    ) AS f (transaction_id, detail)
WHERE f.detail IS NOT NULL;
