-- Reports and histories: where to begin in an account's versions, and what else is found by time.

-- The newest version an account had at a time; 0 before its first. Along an account time never falls, so it is looked
-- for by halves: twenty looks find the place among a million versions.
CREATE FUNCTION ledgerd.version_at(p_account_id bigint, p_time timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    -- The version v_at is at or before the time, v_after is later.
    v_at bigint := 0;
    v_after bigint := (SELECT a.version + 1 FROM ledgerd.accounts AS a WHERE a.account_id = p_account_id);
    -- The newest first: most ask about now.
    v_middle bigint := v_after - 1;
    v_created_at timestamptz;
BEGIN
    WHILE v_after - v_at > 1 LOOP
        v_created_at := coalesce(
            (
                SELECT t.created_at FROM ledgerd.transactions AS t
                WHERE t.debit_account = p_account_id AND t.debit_version = v_middle
            ),
            (
                SELECT t.created_at FROM ledgerd.transactions AS t
                WHERE t.credit_account = p_account_id AND t.credit_version = v_middle
            )
        );
        IF v_created_at > p_time THEN
            v_after := v_middle;
        ELSE
            v_at := v_middle;
        END IF;
        v_middle := (v_at + v_after) / 2;
    END LOOP;
    RETURN v_at;
END $$;

REVOKE ALL ON FUNCTION ledgerd.version_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.version_at TO ledgerd_daemon;

-- What most transactions are not, so that a report of a rare status need not read all the others.
CREATE INDEX transactions_still_by_time ON ledgerd.transactions (created_at) WHERE kind IN ('hold', 'cancel');
CREATE INDEX transactions_holds ON ledgerd.transactions (debit_account, created_at) WHERE kind = 'hold';
-- Tombstones take no version: they are not among those of their account.
CREATE INDEX transactions_cancelled ON ledgerd.transactions (debit_account, created_at) WHERE kind = 'cancel';
-- Attempts of a user's tokens, and of the account that would have acted: the one the money would have left, and for
-- money from outside the one it would have reached.
CREATE INDEX attempts_of_token ON ledgerd.attempts (token_id, created_at);
CREATE INDEX attempts_of_account ON ledgerd.attempts (coalesce(debit_account, credit_account), created_at);
