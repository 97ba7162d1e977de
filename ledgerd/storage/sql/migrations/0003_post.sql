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
--
-- Errors that abort the whole call, after which the caller runs the same call again: unique_violation (another call
-- took one of the ids), LD001 (the fence: a version moved without its lock), deadlock and serialization failures.

-- p_debits, p_credits: account ids; null is the world, 0 an account that was named and does not exist.
-- p_amounts: minor units; where the text was no amount of the currency, null and the error's code in p_problems.
-- p_kinds `limit`: the account is the debit side, the amount the new overdraft limit. `cancel`: the debit side only.
-- p_units: null for a command that stands alone; members of an atomic unit are adjacent and share a number.
-- p_batch_ids: of atomic units only. p_resent: this call may have been applied before.
--
-- Answers one element per command. codes: 0 posted, 1 posted before (read it by its id), null part of an atomic unit
-- that failed, else an error of the protocol with data (amounts in minor units). Balances are null for the world.
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
    p_units integer [],
    p_batch_ids uuid [],
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

    -- Per token, dense.
    v_tokens bigint [];
    v_token_codes integer [];
    v_token_users bigint [];
    v_token_accounts bigint [];
    v_token_sees_all boolean [];
    v_token_spends boolean [];
    v_token_issues boolean [];
    v_token_rules boolean [];

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
    v_places text [] := array_fill(NULL::text, ARRAY[v_count]);

    v_kind text;
    v_code integer;
    v_data text;
    v_amount bigint;
    v_debit integer;
    v_credit integer;
    v_acting integer;
    v_token integer;
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

    IF NOT p_kinds <@ ARRAY['credit', 'debit', 'transfer', 'limit', 'cancel'] THEN
        RAISE EXCEPTION 'a kind that this kernel does not post' USING ERRCODE = 'feature_not_supported';
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

    -- 1. Lock. One statement, sorted, without duplicates; the world and absent accounts have nothing to lock.
    SELECT array_agg(s.account_id ORDER BY s.account_id) INTO v_accounts
    FROM (SELECT DISTINCT u.account_id FROM unnest(p_debits || p_credits) AS u (account_id) WHERE u.account_id > 0) AS s;
    v_accounts := coalesce(v_accounts, '{}');
    SELECT s.deployment::bigint << 48 INTO v_lock_space FROM ledgerd.settings AS s;
    PERFORM pg_advisory_xact_lock(v_lock_space | u.account_id) FROM unnest(v_accounts) AS u (account_id);

    -- 2. Read, in new statements, whose snapshots are younger than the locks.
    created_at := ledgerd.clock();
    SELECT
        array_agg(a.user_id ORDER BY u.n), array_agg(a.currency ORDER BY u.n),
        array_agg(a.balance ORDER BY u.n), array_agg(a.held ORDER BY u.n), array_agg(a.overdraft_limit ORDER BY u.n),
        array_agg(a.version ORDER BY u.n), array_agg(a.status ORDER BY u.n), array_agg(a.owner_disabled ORDER BY u.n)
    INTO
        v_owners, v_account_currencies,
        v_balances, v_helds, v_limits,
        v_versions, v_statuses, v_disabled
    FROM unnest(v_accounts) WITH ORDINALITY AS u (account_id, n)
    LEFT JOIN ledgerd.accounts AS a ON a.account_id = u.account_id;
    v_versions_read := v_versions;

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
        array_agg('operator' = ANY(t.scopes) ORDER BY u.token_id)
    INTO
        v_tokens, v_token_codes, v_token_users, v_token_accounts,
        v_token_sees_all, v_token_spends, v_token_issues, v_token_rules
    FROM (SELECT DISTINCT x.token_id FROM unnest(p_token_ids) AS x (token_id)) AS u
    LEFT JOIN ledgerd.tokens AS t ON t.token_id = u.token_id;

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

    -- Ids that are taken: compare the stored normal form with the command's.
    FOR v_row IN
        SELECT
            u.i,
            concat_ws(
                ',',
                CASE WHEN t.kind::text <> u.kind THEN 'kind' END,
                CASE WHEN greatest(t.debit_account, 0) <> coalesce(u.debit, 0) THEN 'debit_account_id' END,
                CASE WHEN greatest(t.credit_account, 0) <> coalesce(u.credit, 0) THEN 'credit_account_id' END,
                CASE WHEN t.amount <> coalesce(u.amount, 0) THEN 'amount' END,
                CASE WHEN t.reference IS DISTINCT FROM u.reference THEN 'reference' END,
                CASE WHEN t.reason IS DISTINCT FROM u.reason THEN 'reason' END,
                CASE WHEN t.metadata IS DISTINCT FROM u.metadata THEN 'metadata' END
            ) AS mismatch,
            t.status = 'cancelled' AS cancelled,
            t.debit_account, t.credit_account, t.token_id,
            debit.user_id AS debit_owner, credit.user_id AS credit_owner,
            t.batch_id || '/' || t.batch_index AS place
        FROM unnest(
            p_transaction_ids, p_kinds, p_debits, p_credits, p_amounts, p_references, p_reasons, p_metadata
        ) WITH ORDINALITY AS u (transaction_id, kind, debit, credit, amount, reference, reason, metadata, i)
        INNER JOIN ledgerd.transactions AS t ON t.transaction_id = u.transaction_id
        LEFT JOIN ledgerd.accounts AS debit ON debit.account_id = t.debit_account
        LEFT JOIN ledgerd.accounts AS credit ON credit.account_id = t.credit_account
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

    -- A call that is sent again must not judge again what it refused before.
    IF p_resent THEN
        FOR v_row IN
            SELECT u.i, a.code, a.data
            FROM unnest(p_attempt_ids) WITH ORDINALITY AS u (attempt_id, i)
            INNER JOIN ledgerd.attempts AS a ON a.attempt_id = u.attempt_id
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

        -- What cannot change between two tries. -2001 is not_found for the far side.
        v_code := CASE
            WHEN v_judged[i] IS NOT NULL THEN v_judged[i]
            -- A token that ended since the call was lost does not turn what that call posted into a refusal.
            WHEN v_token_codes[v_token] IS NOT NULL AND NOT (p_resent AND coalesce(v_stored_own[i], false))
                THEN v_token_codes[v_token]
            WHEN v_kind = 'credit' AND NOT v_token_issues[v_token] THEN 1004
            WHEN v_kind = 'limit' AND NOT v_token_rules[v_token] THEN 1004
            WHEN v_kind <> 'credit' AND NOT v_token_spends[v_token] THEN 1004
            WHEN v_versions[v_acting] IS NULL THEN 2001
            WHEN NOT v_may_see AND v_owners[v_acting] IS DISTINCT FROM v_token_users[v_token] THEN 2001
            WHEN v_accounts[v_acting] <> v_token_accounts[v_token] THEN 2001
            WHEN v_kind = 'transfer' AND v_versions[v_credit] IS NULL THEN -2001
            WHEN v_debit = v_credit THEN 3005
            WHEN p_currencies[i] <> v_account_currencies[v_acting] THEN 3002
            WHEN v_kind = 'transfer' AND v_account_currencies[v_debit] <> v_account_currencies[v_credit]
                THEN CASE WHEN v_may_see THEN 3002 ELSE -2001 END
            WHEN v_amount IS NULL AND v_kind <> 'cancel' THEN coalesce(p_problems[i], 3004)
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
                    CASE WHEN p_debits[v_h] IS DISTINCT FROM p_debits[i] THEN 'debit_account_id' END,
                    CASE WHEN p_credits[v_h] IS DISTINCT FROM p_credits[i] THEN 'credit_account_id' END,
                    CASE WHEN p_amounts[v_h] IS DISTINCT FROM v_amount THEN 'amount' END,
                    CASE WHEN p_references[v_h] IS DISTINCT FROM p_references[i] THEN 'reference' END,
                    CASE WHEN p_reasons[v_h] IS DISTINCT FROM p_reasons[i] THEN 'reason' END,
                    CASE WHEN p_metadata[v_h] IS DISTINCT FROM p_metadata[i] THEN 'metadata' END
                );
                v_cancelled := p_kinds[v_h] = 'cancel';
                v_visible := v_may_see OR (
                    v_token_users[v_token] IN (v_owners[v_debit_at[v_h]], v_owners[v_credit_at[v_h]])
                    AND coalesce(v_token_accounts[v_token] IN (coalesce(p_debits[v_h], 0), coalesce(p_credits[v_h], 0)), true)
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

        -- What can change between two tries.
        IF v_code = c_posted THEN
            v_code := CASE
                WHEN v_kind = 'cancel' THEN c_posted
                WHEN v_kind = 'limit' AND v_statuses[v_debit] = 'closed' THEN 2003
                WHEN v_kind = 'limit' AND v_balances[v_debit] - v_helds[v_debit] + v_amount < 0 THEN 3006
                WHEN v_kind = 'limit' THEN c_posted
                WHEN v_disabled[v_debit] THEN 1005
                WHEN v_statuses[v_debit] = 'closed' THEN 2003
                WHEN v_statuses[v_debit] = 'frozen' THEN 2005
                WHEN v_statuses[v_credit] = 'closed' THEN CASE WHEN v_may_see OR v_debit IS NULL THEN 2003 ELSE -2001 END
                -- Limits before funds; but who may not see the far side needs the money to learn that it is full.
                WHEN v_may_see AND v_balances[v_credit] > c_minor_max - v_amount THEN 3006
                WHEN v_balances[v_debit] - v_helds[v_debit] + v_limits[v_debit] < v_amount THEN 3001
                WHEN v_balances[v_credit] > c_minor_max - v_amount THEN 3006
                ELSE c_posted
            END;
        END IF;

        IF v_code = c_posted THEN
            v_holder[v_first[i]] := i;
            IF p_units[i] IS NOT NULL THEN
                v_places[i] := p_batch_ids[i] || '/' || (i - v_unit_start);
            END IF;
            IF v_debit IS NOT NULL AND v_kind <> 'cancel' THEN
                IF v_kind = 'limit' THEN
                    v_limits[v_debit] := v_amount;
                ELSE
                    v_balances[v_debit] := v_balances[v_debit] - v_amount;
                END IF;
                v_versions[v_debit] := v_versions[v_debit] + 1;
                debit_versions[i] := v_versions[v_debit];
                debit_balances[i] := v_balances[v_debit];
                debit_held[i] := v_helds[v_debit];
                debit_available[i] := v_balances[v_debit] - v_helds[v_debit] + v_limits[v_debit];
            END IF;
            IF v_credit IS NOT NULL THEN
                v_balances[v_credit] := v_balances[v_credit] + v_amount;
                v_versions[v_credit] := v_versions[v_credit] + 1;
                credit_versions[i] := v_versions[v_credit];
                credit_balances[i] := v_balances[v_credit];
                credit_held[i] := v_helds[v_credit];
                credit_available[i] := v_balances[v_credit] - v_helds[v_credit] + v_limits[v_credit];
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
            END IF;
            -- One member refused: give back what the members before it did.
            IF p_units[i] IS NOT NULL THEN
                v_unit_failed := true;
                v_balances := v_unit_balances;
                v_helds := v_unit_helds;
                v_limits := v_unit_limits;
                v_versions := v_unit_versions;
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
        transaction_id, kind, status, amount, debit_account, credit_account,
        debit_version, debit_balance, debit_held, debit_available,
        credit_version, credit_balance, credit_held, credit_available,
        token_id, created_at, batch_id, batch_index, reference, reason, metadata
    )
    SELECT
        u.transaction_id, u.kind::ledgerd.transaction_kind,
        CASE u.kind
            WHEN 'cancel' THEN 'cancelled'::ledgerd.transaction_status ELSE 'posted'::ledgerd.transaction_status
        END,
        coalesce(u.amount, 0),
        -- The world's side: looked up only where there is one.
        coalesce(
            u.debit,
            (SELECT c.world_account FROM ledgerd.currencies AS c WHERE c.currency = v_account_currencies[v_credit_at[u.i]])
        ),
        coalesce(
            u.credit,
            (SELECT c.world_account FROM ledgerd.currencies AS c WHERE c.currency = v_account_currencies[v_debit_at[u.i]])
        ),
        u.debit_version, u.debit_balance, u.debit_held, u.debit_available,
        u.credit_version, u.credit_balance, u.credit_held, u.credit_available,
        u.token_id, post.created_at,
        u.batch_id, CASE WHEN u.batch_id IS NOT NULL THEN split_part(u.place, '/', 2)::integer END,
        u.reference, u.reason, u.metadata
    FROM unnest(
        codes, p_transaction_ids, p_kinds, p_amounts, p_debits, p_credits,
        debit_versions, debit_balances, debit_held, debit_available,
        credit_versions, credit_balances, credit_held, credit_available,
        p_token_ids, p_batch_ids, v_places, p_references, p_reasons, p_metadata
    ) WITH ORDINALITY AS u (
        code, transaction_id, kind, amount, debit, credit,
        debit_version, debit_balance, debit_held, debit_available,
        credit_version, credit_balance, credit_held, credit_available,
        token_id, batch_id, place, reference, reason, metadata, i
    )
    WHERE u.code = c_posted;

    -- The fence: compare-and-set on the version that was read. It misses only if a lock was lost.
    UPDATE ledgerd.accounts AS a SET
        balance = u.balance, held = u.held, overdraft_limit = u.overdraft_limit, version = u.version,
        updated_at = post.created_at
    FROM unnest(v_accounts, v_balances, v_helds, v_limits, v_versions, v_versions_read)
    AS u (account_id, balance, held, overdraft_limit, version, version_read)
    WHERE a.account_id = u.account_id AND a.version = u.version_read AND u.version <> u.version_read;
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
            codes, v_judged, p_attempt_ids, p_transaction_ids, p_kinds, p_debits, p_credits, p_amounts, p_currencies, data,
            p_references, p_reasons, p_token_ids
        ) WITH ORDINALITY AS u (
            code, judged, attempt_id, transaction_id, kind, debit, credit, amount, currency, data,
            reference, reason, token_id, i
        )
        WHERE u.code > c_replayed AND u.judged IS NULL;
    END IF;
END $$;
