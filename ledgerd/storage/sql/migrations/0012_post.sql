-- The ledger kernel: money moves in one call.
--
-- Rules of this file; everything that must never be broken is here and nowhere else:
--
-- 1. Lock, then read in a new statement, then decide, then write. A lock and a read in one statement would see the
--    balances from before the wait.
-- 2. All locks at once, sorted, once. Nothing after step 1 waits for another call, except the unique keys in step 4.
-- 3. A command is judged in this order: what cannot change between two tries (token, accounts exist and the caller may
--    act, same account, currency, amount), then its id, then what can change (status, limits, funds).
-- 4. A refusal changes nothing, leaves its id free, and is recorded as an attempt.
-- 5. Commands of one call see those before them. The members of a unit with a number stand or fall together.
-- 6. A transaction never changes. Whether a hold is pending, a bet won, or how much is reversed, is said by the
--    transactions that refer to it, and judged under the locks of the accounts that both are about.
-- 7. Rows are looked up one by one through their index, and LIMIT 1 says so: a plan that joins is chosen by statistics,
--    is kept for as long as the connection lives, and those of an empty table are true for a second.
--
-- Errors that abort the whole call, after which the caller runs the same call again: unique_violation (another call
-- took one of the ids), LD001 (the fence: a version moved without its lock), deadlock and serialization failures.

-- p_debits, p_credits: account ids; null is the world, 0 an account that was named and does not exist.
-- p_amounts: minor units; where the text was no amount of the currency, null and the error's code in p_problems.
-- p_kinds `limit`: the account is the debit side, the amount the new overdraft limit. `freeze`, `unfreeze`, `close`,
-- `cancel`: the debit side only.
-- p_refers_to: of `capture`, `release`, `expiry` (the hold) and `reversal` (the original): both accounts are then those
-- of the transaction referred to. Of `win` and `rollback` (the bet): the account is the bet's if it has the same owner.
-- Of `advance_payment` (the advance): the payer is the account that had it.
-- An amount that is null without a problem is all there is, for `capture`, `reversal` and `advance_payment`; others of
-- these have none.
-- p_installments, p_interval_days: of `advance`, which is a credit with a schedule.
-- p_problems beside an amount, or of a `rollback`: refuses what nothing else refuses.
-- p_units: null for a command that stands alone; members of an atomic unit are adjacent and share a number.
-- p_batch_ids: of atomic units only. p_resent: this call may have been applied before.
--
-- Answers one element per command. codes: 0 posted, 1 posted before (read it by its id), null part of an atomic unit
-- that failed, else an error of the protocol with data (amounts in minor units). Balances are null for the world.
DROP FUNCTION ledgerd.post;
CREATE FUNCTION ledgerd.post(
    p_resent boolean,
    p_attempt_ids uuid [],
    p_token_ids bigint [],
    p_kinds text [],
    p_transaction_ids uuid [],
    p_debits bigint [],
    p_credits bigint [],
    p_amounts bigint [],
    p_problems integer [],
    p_currencies text [],
    p_references text [],
    p_reasons text [],
    p_metadata text [],
    p_refers_to uuid [],
    p_expires_in_s integer [],
    p_units integer [],
    p_batch_ids uuid [],
    p_installments integer [] DEFAULT NULL,
    p_interval_days integer [] DEFAULT NULL,
    OUT created_at timestamptz,
    OUT codes integer [],
    OUT data text [],
    OUT debit_versions bigint [],
    OUT debit_balances bigint [],
    OUT debit_held bigint [],
    OUT debit_available bigint [],
    OUT credit_versions bigint [],
    OUT credit_balances bigint [],
    OUT credit_held bigint [],
    OUT credit_available bigint []
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    c_posted CONSTANT integer := 0;
    c_replayed CONSTANT integer := 1;
    c_minor_max CONSTANT bigint := 999999999999999999;
    -- Kinds whose accounts are those of the transaction they refer to, and those of them that end a hold.
    c_referring CONSTANT text [] := ARRAY['capture', 'release', 'expiry', 'reversal', 'advance_payment'];
    -- Those whose money goes back where the other transaction's came from.
    c_backwards CONSTANT text [] := ARRAY['reversal', 'advance_payment'];
    c_endings CONSTANT text [] := ARRAY['capture', 'release', 'expiry'];
    c_wallet CONSTANT text [] := ARRAY['bet', 'win', 'rollback'];
    -- Those whose command names no amount, whatever it comes to.
    c_amountless CONSTANT text [] := ARRAY['release', 'expiry', 'rollback', 'freeze', 'unfreeze', 'close', 'cancel'];

    v_count CONSTANT integer := cardinality(p_transaction_ids);
    v_lock_space bigint;

    -- Per account, dense, in the order of v_accounts. Position 0 does not exist: every look-up there is null.
    v_accounts bigint [];
    v_owners bigint [];
    v_account_currencies text [];
    v_balances bigint [];
    v_helds bigint [];
    v_limits bigint [];
    v_versions bigint [];
    v_versions_read bigint [];
    v_statuses text [];
    v_disabled boolean [];
    -- When one of them was changed last: the time of this call is never before it.
    v_last_change timestamptz;
    -- Advances that are not paid back; read only when somebody wants to close an account.
    v_advances integer [];

    -- Per token, dense.
    v_tokens bigint [];
    v_token_codes integer [];
    v_token_users bigint [];
    v_token_accounts bigint [];
    v_token_sees_all boolean [];
    v_token_spends boolean [];
    v_token_issues boolean [];
    v_token_serves boolean [];
    v_token_rules boolean [];

    -- Per id that a command refers to, or under which a bet may come too late; dense, sorted. Without a kind there is
    -- no such transaction. Of a hold that is not pending, v_ref_expires is null.
    v_refs uuid [] := '{}';
    v_ref_kinds text [];
    v_ref_debits bigint [];
    v_ref_credits bigint [];
    v_ref_amounts bigint [];
    v_ref_token_users bigint [];
    v_ref_expires timestamptz [];
    v_ref_reversed bigint [];
    v_ref_won boolean [];
    -- What an advance still asks for; null if it is none.
    v_ref_outstanding bigint [];
    -- Who has rolled back which: 'position of the reference/user'.
    v_rolled_back text [] := '{}';
    -- Accounts to lock besides those of the commands.
    v_also bigint [];

    -- Per command: its place among the references, and that of what it refers to; 0 or null if it has none.
    v_own_at integer [];
    v_ref_at integer [];

    -- Per command: where its accounts, its token and the first command with its id stand.
    v_debit_at integer [];
    v_credit_at integer [];
    v_token_at integer [];
    v_first integer [];
    -- Per command that is the first with its id: who holds the id after this call's commands so far.
    v_holder integer [] := array_fill(NULL::integer, ARRAY[v_count]);
    -- Per command: what the tables know of its id and of its attempt.
    v_stored boolean [] := array_fill(false, ARRAY[v_count]);
    v_stored_mismatch text [];
    v_stored_cancelled boolean [];
    v_stored_visible boolean [];
    v_stored_place text [];
    v_stored_own boolean [];
    v_judged integer [] := array_fill(NULL::integer, ARRAY[v_count]);

    -- Atomic batches that are posted: by the tables, then by this call. A place is 'batch_id/index'.
    v_batches uuid [] := '{}';
    v_batch_sizes integer [] := '{}';
    v_unit_start integer := 1;
    v_unit_failed boolean := false;
    v_unit_size integer;
    -- Whether a member was refused when the call was sent before: then that refusal is the unit's.
    v_unit_judged boolean;
    -- The accounts as they were when the unit began.
    v_unit_balances bigint [];
    v_unit_helds bigint [];
    v_unit_limits bigint [];
    v_unit_versions bigint [];
    v_unit_statuses text [];
    v_unit_ref_kinds text [];
    v_unit_ref_expires timestamptz [];
    v_unit_ref_reversed bigint [];
    v_unit_ref_won boolean [];
    v_unit_ref_outstanding bigint [];
    v_unit_advances integer [];
    v_unit_rolled_back text [];
    v_places text [] := array_fill(NULL::text, ARRAY[v_count]);

    -- Per command: what it moves once the reference is known, and how that changes what the debit side holds back.
    v_amounts bigint [] := p_amounts;
    v_held_changes bigint [] := array_fill(0::bigint, ARRAY[v_count]);

    v_kind text;
    v_code integer;
    v_data text;
    v_amount bigint;
    v_debit integer;
    v_credit integer;
    v_acting integer;
    v_token integer;
    v_ref integer;
    v_ref_kind text;
    v_remaining bigint;
    v_account bigint;
    -- The reference does not exist, is no hold where one is ended, or is not the caller's to see.
    v_lost boolean;
    v_h integer;
    v_mismatch text;
    v_cancelled boolean;
    v_visible boolean;
    v_place text;
    v_known_size integer;
    v_may_see boolean;
    v_refusals boolean := false;
    v_rows integer;
    v_row record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'ledgerd.post needs READ COMMITTED, not %', current_setting('transaction_isolation')
        USING HINT = 'In any other isolation a call that waited for a lock reads the balance from before the wait.';
    END IF;

    IF NOT p_kinds <@ ARRAY[
        'credit', 'debit', 'transfer', 'hold', 'capture', 'release', 'expiry', 'reversal', 'bet', 'win', 'rollback',
        'advance', 'advance_payment', 'limit', 'freeze', 'unfreeze', 'close', 'cancel'
    ] THEN
        RAISE EXCEPTION 'a kind that this kernel does not post' USING ERRCODE = 'feature_not_supported';
    END IF;
    IF p_kinds && (c_referring || ARRAY['win', 'rollback']) AND EXISTS (
        SELECT FROM unnest(p_kinds, p_refers_to) AS u (kind, refers_to)
        WHERE u.kind = ANY(c_referring || ARRAY['win', 'rollback']) AND u.refers_to IS NULL
    ) THEN
        RAISE EXCEPTION 'a command that must refer to a transaction and does not'
        USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- Every answer has an element per command.
    codes := array_fill(NULL::integer, ARRAY[v_count]);
    data := array_fill(NULL::text, ARRAY[v_count]);
    debit_versions := array_fill(NULL::bigint, ARRAY[v_count]);
    debit_balances := debit_versions;
    debit_held := debit_versions;
    debit_available := debit_versions;
    credit_versions := debit_versions;
    credit_balances := debit_versions;
    credit_held := debit_versions;
    credit_available := debit_versions;

    -- References, without a lock: what a transaction is never changes, only what came of it does.
    IF array_remove(p_refers_to, NULL) <> '{}' OR 'bet' = ANY(p_kinds) THEN
        SELECT array_agg(DISTINCT u.id ORDER BY u.id) INTO v_refs
        FROM (
            SELECT x.refers_to FROM unnest(p_refers_to) AS x (refers_to) WHERE x.refers_to IS NOT NULL
            UNION ALL
            SELECT x.transaction_id FROM unnest(p_transaction_ids, p_kinds) AS x (transaction_id, kind)
            WHERE x.kind = 'bet'
        ) AS u (id);
        SELECT
            array_agg(t.kind::text ORDER BY u.n),
            array_agg(CASE WHEN t.debit_account > 0 THEN t.debit_account END ORDER BY u.n),
            array_agg(CASE WHEN t.credit_account > 0 THEN t.credit_account END ORDER BY u.n),
            array_agg(t.amount ORDER BY u.n), array_agg(k.user_id ORDER BY u.n)
        INTO v_ref_kinds, v_ref_debits, v_ref_credits, v_ref_amounts, v_ref_token_users
        FROM unnest(v_refs) WITH ORDINALITY AS u (id, n)
        LEFT JOIN LATERAL (
            SELECT x.* FROM ledgerd.transactions AS x WHERE x.transaction_id = u.id LIMIT 1
        ) AS t ON true
        LEFT JOIN LATERAL (
            SELECT x.user_id FROM ledgerd.tokens AS x WHERE x.token_id = t.token_id LIMIT 1
        ) AS k ON true;
        SELECT
            array_agg(CASE WHEN v_refs[u.own] = u.transaction_id THEN u.own END ORDER BY u.i),
            array_agg(width_bucket(u.refers_to, v_refs) ORDER BY u.i)
        INTO v_own_at, v_ref_at
        FROM (
            SELECT x.*, width_bucket(x.transaction_id, v_refs) AS own
            FROM unnest(p_transaction_ids, p_refers_to) WITH ORDINALITY AS x (transaction_id, refers_to, i)
        ) AS u;

        -- The accounts of commands that refer to a transaction, or to what an earlier command of this call may post.
        FOR i IN 1..v_count LOOP
            CONTINUE WHEN p_refers_to[i] IS NULL;
            v_ref := v_ref_at[i];
            v_h := CASE WHEN v_ref_kinds[v_ref] IS NULL THEN array_position(p_transaction_ids, p_refers_to[i]) END;
            IF v_h >= i THEN
                v_h := NULL;
            END IF;
            v_ref_kind := coalesce(v_ref_kinds[v_ref], p_kinds[v_h]);
            IF p_kinds[i] = ANY(c_backwards) THEN
                p_debits[i] := CASE WHEN v_h IS NULL THEN v_ref_credits[v_ref] ELSE p_credits[v_h] END;
                p_credits[i] := CASE WHEN v_h IS NULL THEN v_ref_debits[v_ref] ELSE p_debits[v_h] END;
            ELSIF p_kinds[i] = ANY(c_referring) THEN
                p_debits[i] := CASE WHEN v_h IS NULL THEN v_ref_debits[v_ref] ELSE p_debits[v_h] END;
                p_credits[i] := CASE WHEN v_h IS NULL THEN v_ref_credits[v_ref] ELSE p_credits[v_h] END;
            ELSIF v_ref_kind = 'bet' THEN
                -- A user's accounts are few, and a bet is nearly always on the one that was named.
                SELECT bet.account_id INTO v_account
                FROM ledgerd.accounts AS bet
                INNER JOIN ledgerd.accounts AS named ON named.user_id = bet.user_id
                WHERE bet.account_id = CASE WHEN v_h IS NULL THEN v_ref_debits[v_ref] ELSE p_debits[v_h] END
                    AND named.account_id = p_credits[i];
                p_credits[i] := coalesce(v_account, p_credits[i]);
            END IF;
            -- Nothing to refer to: absent, rather than both sides the world.
            IF p_debits[i] IS NULL AND p_credits[i] IS NULL THEN
                p_debits[i] := 0;
            END IF;
        END LOOP;

        -- Bets and rollbacks of one user exclude each other on all its accounts, for a rollback names none: whatever
        -- account they are on, they also lock the user's first.
        SELECT array_agg(f.account_id) INTO v_also
        FROM (
            SELECT DISTINCT a.user_id
            FROM unnest(p_kinds, p_debits, p_credits) AS u (kind, debit, credit)
            CROSS JOIN LATERAL (
                SELECT x.user_id FROM ledgerd.accounts AS x WHERE x.account_id = coalesce(u.debit, u.credit) LIMIT 1
            ) AS a
            WHERE u.kind IN ('bet', 'rollback')
        ) AS o
        CROSS JOIN LATERAL (
            SELECT min(x.account_id) AS account_id FROM ledgerd.accounts AS x WHERE x.user_id = o.user_id
        ) AS f;
    END IF;

    -- 1. Lock. One statement, sorted, without duplicates; the world and absent accounts have nothing to lock.
    SELECT array_agg(s.account_id ORDER BY s.account_id) INTO v_accounts
    FROM (
        SELECT DISTINCT u.account_id
        FROM unnest(p_debits || p_credits || v_also) AS u (account_id) WHERE u.account_id > 0
    ) AS s;
    v_accounts := coalesce(v_accounts, '{}');
    SELECT s.deployment::bigint << 48 INTO v_lock_space FROM ledgerd.settings AS s;
    PERFORM pg_advisory_xact_lock(v_lock_space | u.account_id) FROM unnest(v_accounts) AS u (account_id);

    -- 2. Read, in new statements, whose snapshots are younger than the locks.
    SELECT
        array_agg(a.user_id ORDER BY u.n), array_agg(a.currency ORDER BY u.n),
        array_agg(a.balance ORDER BY u.n), array_agg(a.held ORDER BY u.n), array_agg(a.overdraft_limit ORDER BY u.n),
        array_agg(a.version ORDER BY u.n), array_agg(a.status ORDER BY u.n), array_agg(a.owner_disabled ORDER BY u.n),
        max(a.updated_at)
    INTO
        v_owners, v_account_currencies,
        v_balances, v_helds, v_limits,
        v_versions, v_statuses, v_disabled,
        v_last_change
    FROM unnest(v_accounts) WITH ORDINALITY AS u (account_id, n)
    LEFT JOIN LATERAL (SELECT x.* FROM ledgerd.accounts AS x WHERE x.account_id = u.account_id LIMIT 1) AS a ON true;
    v_versions_read := v_versions;
    -- Along an account time never runs backwards, whatever the clock of the machine does: histories are searched by it.
    created_at := greatest(ledgerd.clock(), v_last_change);

    -- The tokens are read here too: a revoked one moves no money, whatever a daemon still believes.
    SELECT
        array_agg(u.token_id ORDER BY u.token_id),
        array_agg(
            CASE
                WHEN t.token_id IS NULL THEN 1001
                WHEN t.revoked_at IS NOT NULL OR t.expires_at <= clock_timestamp() THEN 1003
            END ORDER BY u.token_id
        ),
        array_agg(t.user_id ORDER BY u.token_id), array_agg(t.account_id ORDER BY u.token_id),
        array_agg(t.account_id IS NULL AND t.scopes && ARRAY['service', 'operator'] ORDER BY u.token_id),
        array_agg(t.scopes && ARRAY['user', 'service', 'operator'] ORDER BY u.token_id),
        array_agg(t.scopes && ARRAY['topup', 'service', 'operator'] ORDER BY u.token_id),
        array_agg(t.scopes && ARRAY['service', 'operator'] ORDER BY u.token_id),
        array_agg('operator' = ANY(t.scopes) ORDER BY u.token_id)
    INTO
        v_tokens, v_token_codes, v_token_users, v_token_accounts,
        v_token_sees_all, v_token_spends, v_token_issues, v_token_serves, v_token_rules
    FROM (SELECT DISTINCT x.token_id FROM unnest(p_token_ids) AS x (token_id)) AS u
    LEFT JOIN LATERAL (SELECT x.* FROM ledgerd.tokens AS x WHERE x.token_id = u.token_id LIMIT 1) AS t ON true;

    -- width_bucket is a binary search here: the position of an id in a sorted array, 0 for the absent account.
    SELECT
        array_agg(width_bucket(u.debit, v_accounts) ORDER BY u.i),
        array_agg(width_bucket(u.credit, v_accounts) ORDER BY u.i),
        array_agg(width_bucket(u.token_id, v_tokens) ORDER BY u.i),
        array_agg(u.first ORDER BY u.i)
    INTO v_debit_at, v_credit_at, v_token_at, v_first
    FROM (
        SELECT x.*, min(x.i) OVER (PARTITION BY x.transaction_id) AS first
        FROM unnest(p_debits, p_credits, p_token_ids, p_transaction_ids)
        WITH ORDINALITY AS x (debit, credit, token_id, transaction_id, i)
    ) AS u;

    -- What came of the references so far.
    IF v_refs <> '{}' THEN
        -- A rollback that found no bet does not stand beside one that came while it waited for the locks.
        IF 'rollback' = ANY(p_kinds) AND EXISTS (
            SELECT FROM unnest(p_kinds, v_ref_at) AS u (kind, ref)
            CROSS JOIN LATERAL (
                SELECT x.transaction_id FROM ledgerd.transactions AS x WHERE x.transaction_id = v_refs[u.ref] LIMIT 1
            ) AS t
            WHERE u.kind = 'rollback' AND v_ref_kinds[u.ref] IS NULL
        ) THEN
            RAISE EXCEPTION 'a bet came while its rollback waited' USING ERRCODE = 'unique_violation';
        END IF;
        SELECT
            array_agg(h.expires_at ORDER BY u.n),
            array_agg(coalesce(r.reversed, 0) ORDER BY u.n),
            array_agg(coalesce(r.won, false) ORDER BY u.n),
            array_agg(v.outstanding ORDER BY u.n)
        INTO v_ref_expires, v_ref_reversed, v_ref_won, v_ref_outstanding
        FROM unnest(v_refs) WITH ORDINALITY AS u (id, n)
        LEFT JOIN LATERAL (SELECT x.expires_at FROM ledgerd.holds AS x WHERE x.hold_id = u.id LIMIT 1) AS h ON true
        LEFT JOIN LATERAL (
            SELECT x.outstanding FROM ledgerd.advances AS x WHERE x.advance_id = u.id LIMIT 1
        ) AS v ON true
        CROSS JOIN LATERAL (
            SELECT
                sum(t.amount) FILTER (WHERE t.kind = 'reversal')::bigint AS reversed,
                bool_or(t.kind = 'win') AS won
            FROM ledgerd.transactions AS t WHERE t.refers_to = u.id
        ) AS r;
        SELECT coalesce(array_agg(u.n || '/' || a.user_id), '{}') INTO v_rolled_back
        FROM unnest(v_refs) WITH ORDINALITY AS u (id, n)
        CROSS JOIN LATERAL (
            SELECT x.credit_account FROM ledgerd.transactions AS x
            WHERE x.refers_to = u.id AND x.kind = 'rollback' OFFSET 0
        ) AS t
        CROSS JOIN LATERAL (
            SELECT x.user_id FROM ledgerd.accounts AS x WHERE x.account_id = t.credit_account LIMIT 1
        ) AS a;
    END IF;

    IF 'close' = ANY(p_kinds) THEN
        SELECT array_agg(
            (
                SELECT count(*)::integer FROM ledgerd.advances AS v
                WHERE v.account_id = u.account_id AND v.outstanding > 0
            ) ORDER BY u.n
        ) INTO v_advances
        FROM unnest(v_accounts) WITH ORDINALITY AS u (account_id, n);
    END IF;

    -- Ids that are taken, nearly always none: compare the stored normal form with the command's.
    IF EXISTS (
        SELECT FROM unnest(p_transaction_ids) AS u (transaction_id)
        CROSS JOIN LATERAL (
            SELECT FROM ledgerd.transactions AS x WHERE x.transaction_id = u.transaction_id LIMIT 1
        ) AS t
    ) THEN
        FOR v_row IN
            SELECT
                u.i,
                concat_ws(
                    ',',
                    CASE WHEN t.kind::text <> u.kind THEN 'kind' END,
                    CASE WHEN NOT u.referring AND greatest(t.debit_account, 0) <> coalesce(u.debit, 0)
                        THEN 'debit_account_id' END,
                    CASE WHEN NOT u.referring AND greatest(t.credit_account, 0) <> coalesce(u.credit, 0)
                        THEN 'credit_account_id' END,
                    -- Omitted stays omitted, whatever it came to.
                    CASE WHEN u.amount IS DISTINCT FROM
                        CASE WHEN NOT coalesce(t.amount_omitted, false) AND t.kind::text <> ALL(c_amountless)
                            THEN t.amount END
                        THEN 'amount' END,
                    -- That of the betting wallet is not judged before the id.
                    CASE WHEN u.kind = ANY(c_wallet) AND u.currency <> coalesce(debit.currency, credit.currency)
                        THEN 'currency' END,
                    CASE WHEN t.refers_to IS DISTINCT FROM u.refers_to THEN 'refers_to' END,
                    CASE WHEN t.expires_in_s IS DISTINCT FROM u.expires_in_s THEN 'expires_in_s' END,
                    CASE WHEN v.installments IS DISTINCT FROM u.installments THEN 'installments' END,
                    CASE WHEN v.interval_days IS DISTINCT FROM u.interval_days THEN 'interval_days' END,
                    CASE WHEN t.reference IS DISTINCT FROM u.reference THEN 'reference' END,
                    CASE WHEN t.reason IS DISTINCT FROM u.reason THEN 'reason' END,
                    -- That of the betting wallet keeps what belongs to the first request only.
                    CASE WHEN u.kind <> ALL(c_wallet) AND t.metadata IS DISTINCT FROM u.metadata THEN 'metadata' END
                ) AS mismatch,
                t.status = 'cancelled' AS cancelled,
                t.debit_account, t.credit_account, t.token_id,
                debit.user_id AS debit_owner, credit.user_id AS credit_owner,
                t.batch_id || '/' || t.batch_index AS place
            FROM (
                SELECT x.*, x.kind = ANY(c_referring) AS referring
                FROM unnest(
                    p_transaction_ids, p_kinds, p_debits, p_credits, p_amounts, p_currencies,
                    p_refers_to, p_expires_in_s, p_installments, p_interval_days, p_references, p_reasons, p_metadata
                ) WITH ORDINALITY AS x (
                    transaction_id, kind, debit, credit, amount, currency, refers_to, expires_in_s,
                    installments, interval_days, reference, reason, metadata, i
                )
            ) AS u
            CROSS JOIN LATERAL (
                SELECT x.* FROM ledgerd.transactions AS x WHERE x.transaction_id = u.transaction_id LIMIT 1
            ) AS t
            LEFT JOIN LATERAL (
                SELECT x.* FROM ledgerd.advances AS x WHERE x.advance_id = t.transaction_id LIMIT 1
            ) AS v ON true
            LEFT JOIN LATERAL (
                SELECT x.user_id, x.currency FROM ledgerd.accounts AS x WHERE x.account_id = t.debit_account LIMIT 1
            ) AS debit ON true
            LEFT JOIN LATERAL (
                SELECT x.user_id, x.currency FROM ledgerd.accounts AS x WHERE x.account_id = t.credit_account LIMIT 1
            ) AS credit ON true
        LOOP
            v_token := v_token_at[v_row.i];
            v_stored[v_row.i] := true;
            v_stored_mismatch[v_row.i] := v_row.mismatch;
            v_stored_cancelled[v_row.i] := v_row.cancelled;
            v_stored_place[v_row.i] := v_row.place;
            v_stored_own[v_row.i] := v_row.mismatch = '' AND v_row.token_id = p_token_ids[v_row.i];
            v_stored_visible[v_row.i] := v_token_sees_all[v_token] OR (
                v_token_users[v_token] IN (v_row.debit_owner, v_row.credit_owner)
                AND coalesce(v_token_accounts[v_token] IN (v_row.debit_account, v_row.credit_account), true)
            );
        END LOOP;
    END IF;

    -- A call that is sent again must not judge again what it refused before.
    IF p_resent THEN
        FOR v_row IN
            SELECT u.i, a.code, a.data
            FROM unnest(p_attempt_ids) WITH ORDINALITY AS u (attempt_id, i)
            CROSS JOIN LATERAL (
                SELECT x.code, x.data FROM ledgerd.attempts AS x WHERE x.attempt_id = u.attempt_id LIMIT 1
            ) AS a
        LOOP
            v_judged[v_row.i] := v_row.code;
            data[v_row.i] := v_row.data;
        END LOOP;
    END IF;

    IF array_remove(p_batch_ids, NULL) <> '{}' THEN
        SELECT coalesce(array_agg(s.batch_id), '{}'), coalesce(array_agg(s.size), '{}') INTO v_batches, v_batch_sizes
        FROM (
            SELECT t.batch_id, count(*)::integer AS size
            FROM ledgerd.transactions AS t WHERE t.batch_id = ANY(p_batch_ids) GROUP BY t.batch_id
        ) AS s;
    END IF;

    -- 3. Decide.
    FOR i IN 1..v_count LOOP
        IF p_units[i] IS NOT NULL AND p_units[i] IS DISTINCT FROM p_units[i - 1] THEN
            v_unit_start := i;
            v_unit_failed := false;
            v_unit_balances := v_balances;
            v_unit_helds := v_helds;
            v_unit_limits := v_limits;
            v_unit_versions := v_versions;
            v_unit_statuses := v_statuses;
            v_unit_ref_kinds := v_ref_kinds;
            v_unit_ref_expires := v_ref_expires;
            v_unit_ref_reversed := v_ref_reversed;
            v_unit_ref_won := v_ref_won;
            v_unit_ref_outstanding := v_ref_outstanding;
            v_unit_advances := v_advances;
            v_unit_rolled_back := v_rolled_back;
            SELECT count(*), bool_or(u.judged IS NOT NULL) INTO v_unit_size, v_unit_judged
            FROM unnest(p_units, v_judged) AS u (unit, judged) WHERE u.unit = p_units[i];
        END IF;
        CONTINUE WHEN p_units[i] IS NOT NULL AND (v_unit_failed OR (v_unit_judged AND v_judged[i] IS NULL));

        v_kind := p_kinds[i];
        v_amount := p_amounts[i];
        v_debit := v_debit_at[i];
        v_credit := v_credit_at[i];
        v_token := v_token_at[i];
        -- Who acts: the side the money leaves, or for money from the world the side it reaches.
        v_acting := coalesce(v_debit, v_credit);
        v_may_see := v_token_sees_all[v_token];
        v_ref := v_ref_at[i];
        v_lost := false;
        IF v_ref IS NOT NULL THEN
            v_ref_kind := v_ref_kinds[v_ref];
            v_remaining := CASE v_kind
                WHEN 'capture' THEN v_ref_amounts[v_ref]
                WHEN 'advance_payment' THEN v_ref_outstanding[v_ref]
                ELSE v_ref_amounts[v_ref] - v_ref_reversed[v_ref]
            END;
            -- What an earlier command was to post may have been posted by another one, on accounts without a lock.
            v_lost := v_kind = ANY(c_referring) AND (
                v_ref_kind IS NULL OR v_versions[v_acting] IS NULL
                OR (v_kind = ANY(c_endings) AND v_ref_kind <> 'hold')
                OR (
                    v_kind = ANY(c_backwards)
                    AND (v_ref_debits[v_ref], v_ref_credits[v_ref]) IS DISTINCT FROM (p_credits[i], p_debits[i])
                )
                OR (
                    v_kind <> ALL(c_backwards)
                    AND (v_ref_debits[v_ref], v_ref_credits[v_ref]) IS DISTINCT FROM (p_debits[i], p_credits[i])
                )
                OR (NOT v_may_see AND v_owners[v_acting] IS DISTINCT FROM v_token_users[v_token])
                OR coalesce(v_accounts[v_acting] <> v_token_accounts[v_token], false)
            );
        END IF;

        -- What cannot change between two tries. -2001 is not_found for the far side.
        v_code := CASE
            WHEN v_judged[i] IS NOT NULL THEN v_judged[i]
            -- A token that ended since the call was lost does not turn what that call posted into a refusal.
            WHEN v_token_codes[v_token] IS NOT NULL AND NOT (p_resent AND coalesce(v_stored_own[i], false))
                THEN v_token_codes[v_token]
            WHEN v_kind = 'credit' AND NOT v_token_issues[v_token] THEN 1004
            WHEN v_kind IN ('limit', 'freeze', 'unfreeze', 'expiry') AND NOT v_token_rules[v_token] THEN 1004
            WHEN v_kind IN ('capture', 'reversal', 'bet', 'win', 'rollback', 'advance')
                AND NOT v_token_serves[v_token] THEN 1004
            WHEN v_kind <> 'credit' AND NOT v_token_spends[v_token] THEN 1004
            WHEN v_lost THEN c_posted
            WHEN v_versions[v_acting] IS NULL THEN 2001
            WHEN NOT v_may_see AND v_owners[v_acting] IS DISTINCT FROM v_token_users[v_token] THEN 2001
            WHEN v_accounts[v_acting] <> v_token_accounts[v_token] THEN 2001
            WHEN v_kind = 'release' AND NOT v_may_see
                AND v_ref_token_users[v_ref] IS DISTINCT FROM v_token_users[v_token] THEN 1004
            WHEN v_kind IN ('transfer', 'hold') AND p_credits[i] IS NOT NULL AND v_versions[v_credit] IS NULL THEN -2001
            WHEN v_debit = v_credit THEN 3005
            WHEN p_currencies[i] <> v_account_currencies[v_acting] AND v_kind <> ALL(c_wallet) THEN 3002
            WHEN v_kind IN ('transfer', 'hold') AND v_account_currencies[v_debit] <> v_account_currencies[v_credit]
                THEN CASE WHEN v_may_see THEN 3002 ELSE -2001 END
            WHEN v_amount IS NULL AND v_kind IN ('capture', 'reversal', 'advance_payment')
                THEN coalesce(p_problems[i], c_posted)
            WHEN v_amount IS NULL
                AND v_kind IN ('credit', 'debit', 'transfer', 'hold', 'bet', 'win', 'advance', 'limit')
                THEN coalesce(p_problems[i], 3004)
            WHEN v_kind = 'advance' AND v_amount < p_installments[i] THEN 3004
            WHEN v_amount > c_minor_max OR v_amount < 0 OR (v_amount = 0 AND v_kind <> 'limit') THEN 3004
            ELSE c_posted
        END;

        -- The id: taken by the tables, or by an earlier command of this call.
        v_h := v_holder[v_first[i]];
        IF v_code = c_posted AND (v_stored[i] OR v_h IS NOT NULL) THEN
            IF v_stored[i] THEN
                v_mismatch := v_stored_mismatch[i];
                v_cancelled := v_stored_cancelled[i];
                v_visible := v_stored_visible[i];
                v_place := v_stored_place[i];
            ELSE
                v_mismatch := concat_ws(
                    ',',
                    CASE WHEN p_kinds[v_h] <> v_kind THEN 'kind' END,
                    CASE WHEN v_kind <> ALL(c_referring) AND p_debits[v_h] IS DISTINCT FROM p_debits[i]
                        THEN 'debit_account_id' END,
                    CASE WHEN v_kind <> ALL(c_referring) AND p_credits[v_h] IS DISTINCT FROM p_credits[i]
                        THEN 'credit_account_id' END,
                    CASE WHEN p_amounts[v_h] IS DISTINCT FROM v_amount THEN 'amount' END,
                    CASE WHEN v_kind = ANY(c_wallet)
                        AND p_currencies[i] <> v_account_currencies[coalesce(v_debit_at[v_h], v_credit_at[v_h])]
                        THEN 'currency' END,
                    CASE WHEN p_refers_to[v_h] IS DISTINCT FROM p_refers_to[i] THEN 'refers_to' END,
                    CASE WHEN p_expires_in_s[v_h] IS DISTINCT FROM p_expires_in_s[i] THEN 'expires_in_s' END,
                    CASE WHEN p_installments[v_h] IS DISTINCT FROM p_installments[i] THEN 'installments' END,
                    CASE WHEN p_interval_days[v_h] IS DISTINCT FROM p_interval_days[i] THEN 'interval_days' END,
                    CASE WHEN p_references[v_h] IS DISTINCT FROM p_references[i] THEN 'reference' END,
                    CASE WHEN p_reasons[v_h] IS DISTINCT FROM p_reasons[i] THEN 'reason' END,
                    CASE WHEN v_kind <> ALL(c_wallet) AND p_metadata[v_h] IS DISTINCT FROM p_metadata[i]
                        THEN 'metadata' END
                );
                v_cancelled := p_kinds[v_h] = 'cancel';
                v_visible := v_may_see OR (
                    v_token_users[v_token] IN (v_owners[v_debit_at[v_h]], v_owners[v_credit_at[v_h]])
                    AND coalesce(
                        v_token_accounts[v_token] IN (coalesce(p_debits[v_h], 0), coalesce(p_credits[v_h], 0)), true
                    )
                );
                v_place := v_places[v_h];
            END IF;
            v_code := CASE
                WHEN v_visible IS NOT TRUE THEN 4001
                WHEN v_mismatch = '' THEN c_replayed
                WHEN v_cancelled AND v_kind <> 'cancel' THEN 4003
                WHEN v_kind = 'cancel' AND NOT v_cancelled THEN 4002
                ELSE 4001
            END;
            -- An atomic batch replays only as the whole that it was.
            IF v_code = c_replayed AND p_units[i] IS NOT NULL
                AND v_place IS DISTINCT FROM p_batch_ids[i] || '/' || (i - v_unit_start)
            THEN
                v_code := 4001;
                v_mismatch := 'batch_id';
            END IF;
            IF v_code = 4001 AND v_visible THEN
                data[i] := jsonb_build_object('mismatch', string_to_array(v_mismatch, ','))::text;
            END IF;
        END IF;

        -- Members that are new, or missing, in a batch that was posted before.
        IF p_units[i] IS NOT NULL AND v_code IN (c_posted, c_replayed) THEN
            v_known_size := v_batch_sizes[array_position(v_batches, p_batch_ids[i])];
            IF (v_code = c_posted AND v_known_size IS NOT NULL)
                OR (v_code = c_replayed AND v_known_size IS DISTINCT FROM v_unit_size)
            THEN
                v_code := 4001;
                data[i] := jsonb_build_object('mismatch', ARRAY['items'])::text;
            END IF;
        END IF;

        -- A bet that its user has rolled back before it came.
        IF v_code = c_posted AND v_kind = 'bet' AND v_own_at[i] || '/' || v_owners[v_acting] = ANY(v_rolled_back) THEN
            v_code := 4003;
        END IF;

        -- What can change between two tries: status, then the reference, then limits and funds.
        IF v_code = c_posted AND v_kind <> 'cancel' THEN
            IF v_amount IS NULL THEN
                v_amount := CASE
                    WHEN v_kind = ANY(c_backwards) THEN v_remaining
                    WHEN v_kind = ANY(c_endings) THEN v_ref_amounts[v_ref]
                    -- The stake of a bet that is this user's, and is given back once.
                    WHEN v_kind = 'rollback' AND v_ref_kind = 'bet' AND v_ref_debits[v_ref] = v_accounts[v_acting]
                        AND v_ref || '/' || v_owners[v_acting] <> ALL(v_rolled_back) THEN v_ref_amounts[v_ref]
                    ELSE 0
                END;
            END IF;

            v_code := CASE
                WHEN v_lost THEN 3008
                -- Of the betting wallet: all others are refused above.
                WHEN p_currencies[i] <> v_account_currencies[v_acting] THEN 3002
                -- Who only gives back, captures or collects may do so on a frozen account too.
                WHEN v_disabled[v_debit] AND v_kind IN ('debit', 'transfer', 'hold', 'bet') THEN 1005
                WHEN v_statuses[v_debit] = 'closed' THEN 2003
                WHEN v_statuses[v_debit] = 'frozen' AND v_kind IN ('debit', 'transfer', 'hold', 'bet') THEN 2005
                WHEN v_disabled[v_credit] AND v_kind = 'advance' THEN 1005
                WHEN v_statuses[v_credit] = 'frozen' AND v_kind = 'advance' THEN 2005
                WHEN v_statuses[v_credit] = 'closed' AND v_kind NOT IN ('release', 'expiry')
                    THEN CASE WHEN v_may_see OR v_debit IS NULL THEN 2003 ELSE -2001 END
                ELSE c_posted
            END;

            IF v_code = c_posted AND v_ref IS NOT NULL THEN
                v_code := CASE v_kind
                    WHEN 'capture' THEN CASE
                        WHEN coalesce(v_ref_expires[v_ref] <= created_at, true) THEN 3009
                        WHEN v_amount > v_remaining THEN 3004
                        ELSE c_posted
                    END
                    WHEN 'release' THEN CASE
                        WHEN coalesce(v_ref_expires[v_ref] <= created_at, true) THEN 3009 ELSE c_posted
                    END
                    WHEN 'expiry' THEN CASE
                        WHEN coalesce(v_ref_expires[v_ref] > created_at, true) THEN 3009 ELSE c_posted
                    END
                    WHEN 'reversal' THEN CASE
                        WHEN v_ref_kind NOT IN ('credit', 'debit', 'transfer', 'capture') THEN 3010
                        WHEN v_amount > v_remaining OR v_remaining = 0 THEN 3007
                        ELSE c_posted
                    END
                    WHEN 'advance_payment' THEN CASE
                        WHEN v_ref_kind <> 'advance' THEN 3008
                        WHEN v_remaining = 0 THEN 6001
                        WHEN v_amount > v_remaining THEN 3004
                        ELSE c_posted
                    END
                    WHEN 'win' THEN CASE
                        WHEN v_ref_kind IS DISTINCT FROM 'bet' OR v_ref_debits[v_ref] <> v_accounts[v_acting]
                            OR v_ref || '/' || v_owners[v_acting] = ANY(v_rolled_back) THEN 3008
                        WHEN v_ref_won[v_ref] THEN 3007
                        ELSE c_posted
                    END
                    WHEN 'rollback' THEN CASE
                        WHEN v_ref_kind = 'bet' AND v_ref_debits[v_ref] = v_accounts[v_acting] AND v_ref_won[v_ref]
                            THEN 3010
                        ELSE c_posted
                    END
                    ELSE c_posted
                END;
            END IF;

            IF v_code = c_posted THEN
                v_code := CASE
                    WHEN v_kind IN ('limit', 'freeze', 'unfreeze', 'close', 'release', 'expiry') THEN CASE
                        WHEN v_kind = 'limit' AND v_balances[v_debit] - v_helds[v_debit] + v_amount < 0 THEN 3006
                        WHEN v_kind = 'close' AND (
                            v_balances[v_debit] <> 0 OR v_helds[v_debit] <> 0 OR v_advances[v_debit] <> 0
                        ) THEN 2004
                        ELSE c_posted
                    END
                    -- Limits before funds; but who may not see the far side needs the money to learn that it is full.
                    WHEN v_balances[v_credit] > c_minor_max - v_amount AND v_may_see AND v_kind <> 'hold' THEN 3006
                    WHEN v_balances[v_debit] - v_helds[v_debit] + v_limits[v_debit] < v_amount AND v_kind <> 'capture'
                        THEN 3001
                    WHEN v_balances[v_credit] > c_minor_max - v_amount AND v_kind <> 'hold' THEN 3006
                    ELSE coalesce(p_problems[i], c_posted)
                END;
            END IF;
        END IF;

        IF v_code = c_posted THEN
            v_holder[v_first[i]] := i;
            IF p_units[i] IS NOT NULL THEN
                v_places[i] := p_batch_ids[i] || '/' || (i - v_unit_start);
            END IF;
            v_amounts[i] := v_amount;
            IF v_debit IS NOT NULL AND v_kind <> 'cancel' THEN
                IF v_kind IN ('debit', 'transfer', 'capture', 'reversal', 'advance_payment', 'bet') THEN
                    v_balances[v_debit] := v_balances[v_debit] - v_amount;
                ELSIF v_kind = 'limit' THEN
                    v_limits[v_debit] := v_amount;
                ELSIF v_kind IN ('freeze', 'unfreeze', 'close') THEN
                    v_statuses[v_debit] := CASE v_kind
                        WHEN 'freeze' THEN 'frozen' WHEN 'unfreeze' THEN 'active' ELSE 'closed'
                    END;
                END IF;
                IF v_kind IN ('hold', 'capture', 'release', 'expiry') THEN
                    v_held_changes[i] := CASE v_kind WHEN 'hold' THEN v_amount ELSE -v_ref_amounts[v_ref] END;
                    v_helds[v_debit] := v_helds[v_debit] + v_held_changes[i];
                END IF;
                v_versions[v_debit] := v_versions[v_debit] + 1;
                debit_versions[i] := v_versions[v_debit];
                debit_balances[i] := v_balances[v_debit];
                debit_held[i] := v_helds[v_debit];
                debit_available[i] := v_balances[v_debit] - v_helds[v_debit] + v_limits[v_debit];
            END IF;
            IF v_credit IS NOT NULL AND v_kind NOT IN ('hold', 'release', 'expiry') THEN
                v_balances[v_credit] := v_balances[v_credit] + v_amount;
                v_versions[v_credit] := v_versions[v_credit] + 1;
                credit_versions[i] := v_versions[v_credit];
                credit_balances[i] := v_balances[v_credit];
                credit_held[i] := v_helds[v_credit];
                credit_available[i] := v_balances[v_credit] - v_helds[v_credit] + v_limits[v_credit];
            END IF;
            -- Later commands of this call may refer to this one.
            IF v_own_at[i] IS NOT NULL THEN
                v_ref_kinds[v_own_at[i]] := v_kind;
                v_ref_debits[v_own_at[i]] := p_debits[i];
                v_ref_credits[v_own_at[i]] := p_credits[i];
                v_ref_amounts[v_own_at[i]] := v_amount;
                v_ref_token_users[v_own_at[i]] := v_token_users[v_token];
                IF v_kind = 'hold' THEN
                    v_ref_expires[v_own_at[i]] := created_at + make_interval(secs => p_expires_in_s[i]);
                ELSIF v_kind = 'advance' THEN
                    v_ref_outstanding[v_own_at[i]] := v_amount;
                END IF;
            END IF;
            IF v_kind = 'advance' THEN
                v_advances[v_credit] := v_advances[v_credit] + 1;
            ELSIF v_ref IS NOT NULL THEN
                IF v_kind = ANY(c_endings) THEN
                    v_ref_expires[v_ref] := NULL;
                ELSIF v_kind = 'reversal' THEN
                    v_ref_reversed[v_ref] := v_ref_reversed[v_ref] + v_amount;
                ELSIF v_kind = 'advance_payment' THEN
                    v_ref_outstanding[v_ref] := v_ref_outstanding[v_ref] - v_amount;
                    v_advances[v_debit] := v_advances[v_debit] - (v_ref_outstanding[v_ref] = 0)::integer;
                ELSIF v_kind = 'win' THEN
                    v_ref_won[v_ref] := true;
                ELSIF v_kind = 'rollback' THEN
                    v_rolled_back := v_rolled_back || (v_ref || '/' || v_owners[v_acting]);
                END IF;
            END IF;
        ELSIF v_code <> c_replayed THEN
            v_refusals := true;
            IF v_code IN (2001, -2001) AND v_judged[i] IS NULL THEN
                data[i] := jsonb_build_object(
                    'resource', CASE WHEN v_code < 0 THEN 'destination' ELSE 'account' END
                )::text;
                v_code := 2001;
            ELSIF v_code = 3001 AND v_judged[i] IS NULL THEN
                data[i] := jsonb_build_object(
                    'available', v_balances[v_debit] - v_helds[v_debit] + v_limits[v_debit],
                    'requested', v_amount,
                    'version', v_versions[v_debit]
                )::text;
            ELSIF v_code = 3007 AND v_kind = 'reversal' AND v_judged[i] IS NULL THEN
                data[i] := jsonb_build_object('remaining', v_remaining)::text;
            ELSIF v_code = 3004 AND v_kind IN ('capture', 'advance_payment') AND v_judged[i] IS NULL
                AND v_amount > v_remaining AND v_amount <= c_minor_max
            THEN
                data[i] := jsonb_build_object('remaining', v_remaining)::text;
            END IF;
            -- One member refused: give back what the members before it did.
            IF p_units[i] IS NOT NULL THEN
                v_unit_failed := true;
                v_balances := v_unit_balances;
                v_helds := v_unit_helds;
                v_limits := v_unit_limits;
                v_versions := v_unit_versions;
                v_statuses := v_unit_statuses;
                v_ref_kinds := v_unit_ref_kinds;
                v_ref_expires := v_unit_ref_expires;
                v_ref_reversed := v_unit_ref_reversed;
                v_ref_won := v_unit_ref_won;
                v_ref_outstanding := v_unit_ref_outstanding;
                v_advances := v_unit_advances;
                v_rolled_back := v_unit_rolled_back;
                FOR k IN v_unit_start..(i - 1) LOOP
                    IF v_holder[v_first[k]] = k THEN
                        v_holder[v_first[k]] := NULL;
                    END IF;
                    codes[k] := NULL;
                END LOOP;
            END IF;
        END IF;
        codes[i] := v_code;

        IF p_units[i] IS NOT NULL AND NOT v_unit_failed AND i - v_unit_start + 1 = v_unit_size
            AND array_position(v_batches, p_batch_ids[i]) IS NULL
        THEN
            v_batches := v_batches || p_batch_ids[i];
            v_batch_sizes := v_batch_sizes || v_unit_size;
        END IF;
    END LOOP;

    -- 4. Write: one statement per table, whatever the size of the call.
    INSERT INTO ledgerd.transactions (
        transaction_id, kind, status, amount, amount_omitted, held_change, debit_account, credit_account,
        debit_version, debit_balance, debit_held, debit_available,
        credit_version, credit_balance, credit_held, credit_available,
        token_id, created_at, batch_id, batch_index, reference, reason, metadata, refers_to, expires_in_s
    )
    SELECT
        u.transaction_id, u.kind::ledgerd.transaction_kind,
        CASE u.kind
            WHEN 'cancel' THEN 'cancelled'::ledgerd.transaction_status
            WHEN 'hold' THEN 'pending'::ledgerd.transaction_status
            ELSE 'posted'::ledgerd.transaction_status
        END,
        coalesce(u.amount, 0),
        CASE WHEN u.kind IN ('capture', 'reversal', 'advance_payment') THEN nullif(p_amounts[u.i] IS NULL, false) END,
        u.held_change,
        -- The world's side: looked up only where there is one.
        coalesce(
            u.debit,
            (
                SELECT c.world_account FROM ledgerd.currencies AS c
                WHERE c.currency = v_account_currencies[v_credit_at[u.i]]
            )
        ),
        coalesce(
            u.credit,
            (
                SELECT c.world_account FROM ledgerd.currencies AS c
                WHERE c.currency = v_account_currencies[v_debit_at[u.i]]
            )
        ),
        u.debit_version, u.debit_balance, u.debit_held, u.debit_available,
        u.credit_version, u.credit_balance, u.credit_held, u.credit_available,
        u.token_id, post.created_at,
        u.batch_id, CASE WHEN u.batch_id IS NOT NULL THEN split_part(u.place, '/', 2)::integer END,
        u.reference, u.reason, u.metadata, u.refers_to, u.expires_in_s
    FROM unnest(
        codes, p_transaction_ids, p_kinds, v_amounts, v_held_changes, p_debits, p_credits,
        debit_versions, debit_balances, debit_held, debit_available,
        credit_versions, credit_balances, credit_held, credit_available,
        p_token_ids, p_batch_ids, v_places, p_references, p_reasons, p_metadata, p_refers_to, p_expires_in_s
    ) WITH ORDINALITY AS u (
        code, transaction_id, kind, amount, held_change, debit, credit,
        debit_version, debit_balance, debit_held, debit_available,
        credit_version, credit_balance, credit_held, credit_available,
        token_id, batch_id, place, reference, reason, metadata, refers_to, expires_in_s, i
    )
    WHERE u.code = c_posted;

    -- Pending holds: those that came, and then those that went, some of them in the same call.
    IF 'hold' = ANY(p_kinds) THEN
        INSERT INTO ledgerd.holds (hold_id, account_id, expires_at)
        SELECT u.transaction_id, u.debit, post.created_at + make_interval(secs => u.expires_in_s)
        FROM unnest(codes, p_kinds, p_transaction_ids, p_debits, p_expires_in_s)
        AS u (code, kind, transaction_id, debit, expires_in_s)
        WHERE u.code = c_posted AND u.kind = 'hold';
    END IF;
    IF p_kinds && c_endings THEN
        DELETE FROM ledgerd.holds AS h
        USING unnest(codes, p_kinds, p_refers_to) AS u (code, kind, refers_to)
        WHERE u.code = c_posted AND u.kind = ANY(c_endings) AND h.hold_id = u.refers_to;
    END IF;

    -- Advances are few: one after the other.
    IF p_kinds && ARRAY['advance', 'advance_payment'] THEN
        FOR i IN 1..v_count LOOP
            CONTINUE WHEN codes[i] IS DISTINCT FROM c_posted;
            IF p_kinds[i] = 'advance' THEN
                PERFORM ledgerd.schedule_advance(
                    p_transaction_ids[i], p_credits[i], v_amounts[i], p_installments[i], p_interval_days[i], created_at
                );
            ELSIF p_kinds[i] = 'advance_payment' THEN
                PERFORM ledgerd.apply_to_payments(p_refers_to[i], v_amounts[i], p_transaction_ids[i], created_at);
            END IF;
        END LOOP;
    END IF;

    -- The fence: compare-and-set on the version that was read. It misses only if a lock was lost.
    UPDATE ledgerd.accounts AS a SET
        balance = v_balances[width_bucket(a.account_id, v_accounts)],
        held = v_helds[width_bucket(a.account_id, v_accounts)],
        overdraft_limit = v_limits[width_bucket(a.account_id, v_accounts)],
        version = v_versions[width_bucket(a.account_id, v_accounts)],
        status = v_statuses[width_bucket(a.account_id, v_accounts)],
        updated_at = post.created_at
    WHERE
        a.account_id = ANY(v_accounts)
        AND a.version = v_versions_read[width_bucket(a.account_id, v_accounts)]
        AND a.version <> v_versions[width_bucket(a.account_id, v_accounts)];
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows <> (
        SELECT count(*) FROM unnest(v_versions, v_versions_read) AS u (version, version_read)
        WHERE u.version <> u.version_read
    ) THEN
        RAISE EXCEPTION 'the version of an account moved although its lock was held' USING ERRCODE = 'LD001';
    END IF;

    IF v_refusals THEN
        INSERT INTO ledgerd.attempts (
            attempt_id, transaction_id, kind, debit_account, credit_account, amount, currency, code, data,
            reference, reason, token_id, created_at
        )
        SELECT
            u.attempt_id, u.transaction_id, u.kind::ledgerd.transaction_kind, u.debit, u.credit, u.amount,
            coalesce(v_account_currencies[coalesce(v_debit_at[u.i], v_credit_at[u.i])], u.currency), u.code, u.data,
            u.reference, u.reason, u.token_id, post.created_at
        FROM unnest(
            codes, v_judged, p_attempt_ids, p_transaction_ids, p_kinds, p_debits, p_credits, p_amounts,
            p_currencies, data, p_references, p_reasons, p_token_ids
        ) WITH ORDINALITY AS u (
            code, judged, attempt_id, transaction_id, kind, debit, credit, amount, currency, data,
            reference, reason, token_id, i
        )
        WHERE u.code NOT IN (c_posted, c_replayed) AND u.judged IS NULL;
    END IF;
END $$;

REVOKE ALL ON FUNCTION ledgerd.post FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.post TO ledgerd_daemon;

-- Kinds that move no money between their sides; `unfreeze` is new among them.
CREATE OR REPLACE FUNCTION ledgerd.moves_money(kind ledgerd.transaction_kind) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN kind NOT IN ('hold', 'release', 'expiry', 'limit', 'freeze', 'unfreeze', 'close', 'cancel');
