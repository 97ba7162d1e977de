-- Transactions that refer to others: captures, releases and expiries of holds, reversals, wins and rollbacks of bets.
--
-- Transactions are never updated. What became of one is said by those that refer to it.

-- Freezing and its end are two kinds, so that one id cannot mean both.
ALTER TYPE ledgerd.transaction_kind ADD VALUE 'unfreeze' AFTER 'freeze';

ALTER TABLE ledgerd.transactions
-- The hold, the original, the bet.
ADD COLUMN refers_to uuid,
-- Of holds: as stated, because a command with another lifetime is another command.
ADD COLUMN expires_in_s integer,
-- The command named no amount and meant all there was; null if it did.
ADD COLUMN amount_omitted boolean;
CREATE INDEX transactions_refers_to ON ledgerd.transactions (refers_to) WHERE refers_to IS NOT NULL;
-- Reports go by time. All rows of a call share one, so that this stays small.
CREATE INDEX transactions_by_time ON ledgerd.transactions (created_at);

-- Holds that are pending: a row comes with the hold and goes with its end, both under the lock of the account.
CREATE TABLE ledgerd.holds (
    hold_id uuid PRIMARY KEY,
    account_id bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX holds_by_expiry ON ledgerd.holds (expires_at);

-- Who posts what the daemon does by the clock. Without a hash nobody can sign in with it.
INSERT INTO ledgerd.tokens (token_id, token_hash, scopes, label)
OVERRIDING SYSTEM VALUE VALUES (0, NULL, ARRAY['operator'], 'the daemon itself');

-- The name under which betting suppliers know a user: a column of its own, never the display name or the e-mail.
ALTER TABLE ledgerd.users ADD COLUMN wallet_name text UNIQUE CHECK (wallet_name <> '');

-- The new columns belong to what is shown.
DROP VIEW ledgerd.records;
CREATE VIEW ledgerd.records AS
SELECT
    t.*,
    debit.user_id AS debit_user,
    credit.user_id AS credit_user,
    c.currency,
    c.scale,
    k.user_id AS actor_user,
    k.scopes AS actor_scopes
FROM ledgerd.transactions AS t
LEFT JOIN ledgerd.accounts AS debit ON debit.account_id = t.debit_account
LEFT JOIN ledgerd.accounts AS credit ON credit.account_id = t.credit_account
INNER JOIN ledgerd.currencies AS c ON c.currency = coalesce(debit.currency, credit.currency)
LEFT JOIN ledgerd.tokens AS k ON k.token_id = t.token_id;

-- The same with what became of each transaction since: the end of a hold, and how much was reversed.
CREATE VIEW ledgerd.present_records AS
SELECT
    r.*,
    CASE
        WHEN r.kind <> 'hold' THEN r.status
        ELSE coalesce(
            (
                SELECT
                    CASE e.kind
                        WHEN 'capture' THEN 'captured'::ledgerd.transaction_status
                        WHEN 'release' THEN 'released'::ledgerd.transaction_status
                        ELSE 'expired'::ledgerd.transaction_status
                    END
                FROM ledgerd.transactions AS e
                WHERE e.refers_to = r.transaction_id AND e.kind IN ('capture', 'release', 'expiry')
            ),
            r.status
        )
    END AS present_status,
    CASE WHEN r.kind IN ('credit', 'debit', 'transfer', 'capture') THEN (
        SELECT coalesce(sum(v.amount), 0)::bigint FROM ledgerd.transactions AS v
        WHERE v.refers_to = r.transaction_id AND v.kind = 'reversal'
    ) END AS reversed_amount
FROM ledgerd.records AS r;

-- Pending holds whose time has been over for p_by or longer, the oldest first, of any number if p_limit is null. By the
-- ledger's own clock, which nobody else reads.
CREATE FUNCTION ledgerd.expired_holds(p_by interval, p_limit integer)
RETURNS TABLE (hold_id uuid, account_id bigint, expires_at timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT h.hold_id, h.account_id, h.expires_at
    FROM ledgerd.holds AS h
    -- Read once: an index is not searched for what could be another time with every row.
    WHERE h.expires_at <= (SELECT ledgerd.clock()) - p_by
    ORDER BY h.expires_at LIMIT p_limit
$$;
REVOKE ALL ON FUNCTION ledgerd.expired_holds FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.expired_holds TO ledgerd_daemon;

REVOKE ALL ON ledgerd.holds FROM PUBLIC;
GRANT SELECT ON ledgerd.holds, ledgerd.records, ledgerd.present_records TO ledgerd_daemon;
GRANT SELECT (wallet_name) ON ledgerd.users TO ledgerd_daemon;
