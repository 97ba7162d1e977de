-- The betting wallet profile: its users, and the unit in which their suppliers count.

-- `minor` for the minor unit of each currency, or how many decimals the unit has. Written with the first users and
-- never changed: the same number would be another amount of money.
ALTER TABLE ledgerd.settings ADD COLUMN wallet_unit text CHECK (wallet_unit ~ '^(minor|[0-8])$');

-- Fix the unit at its first use. Another one than the stored is refused: LD003.
CREATE FUNCTION ledgerd.begin_wallet(p_unit text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_unit text;
BEGIN
    UPDATE ledgerd.settings SET wallet_unit = p_unit WHERE wallet_unit IS NULL;
    SELECT s.wallet_unit INTO v_unit FROM ledgerd.settings AS s;
    IF v_unit <> p_unit THEN
        RAISE EXCEPTION 'the unit of the betting wallet is % in this database, not %', v_unit, p_unit
        USING ERRCODE = 'LD003';
    END IF;
END $$;

-- Users with these wallet names, each with an account that begins with an amount; how many are new. Names that are
-- empty or taken are passed over, so that a call which is sent again creates nobody twice. The money comes from the
-- world through the kernel, like any other. If that refuses the token, nobody is created: LD004, its detail the code.
CREATE FUNCTION ledgerd.create_wallet_users(
    p_token_id bigint, p_names text [], p_unit text, p_currency text, p_scale integer, p_amount bigint
) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_now CONSTANT timestamptz := ledgerd.clock();
    v_users bigint [];
    v_accounts bigint [];
    v_count integer;
    v_codes integer [];
BEGIN
    -- Sorted, because calls with the same names wait for each other here, one name at a time.
    WITH made AS (
        INSERT INTO ledgerd.users (name, wallet_name, created_at)
        SELECT u.name, u.name, v_now FROM unnest(p_names) AS u (name) WHERE u.name <> '' GROUP BY u.name ORDER BY u.name
        ON CONFLICT (wallet_name) DO NOTHING
        RETURNING user_id
    )
    SELECT array_agg(m.user_id ORDER BY m.user_id) INTO v_users FROM made AS m;
    v_count := coalesce(cardinality(v_users), 0);
    IF v_count = 0 THEN
        RETURN 0;
    END IF;

    PERFORM ledgerd.ensure_currency(p_currency, p_scale);
    PERFORM ledgerd.begin_wallet(p_unit);
    WITH opened AS (
        INSERT INTO ledgerd.accounts (user_id, currency, created_at, updated_at)
        SELECT u.user_id, p_currency, v_now, v_now FROM unnest(v_users) AS u (user_id)
        RETURNING account_id
    )
    SELECT array_agg(o.account_id ORDER BY o.account_id) INTO v_accounts FROM opened AS o;

    SELECT p.codes INTO v_codes
    FROM ledgerd.post(
        p_resent => false,
        p_attempt_ids => ARRAY(SELECT gen_random_uuid() FROM generate_series(1, v_count)),
        p_token_ids => array_fill(p_token_id, ARRAY[v_count]),
        p_kinds => array_fill('credit'::text, ARRAY[v_count]),
        p_transaction_ids => ARRAY(SELECT gen_random_uuid() FROM generate_series(1, v_count)),
        p_debits => array_fill(NULL::bigint, ARRAY[v_count]),
        p_credits => v_accounts,
        p_amounts => array_fill(p_amount, ARRAY[v_count]),
        p_problems => NULL,
        p_currencies => NULL,
        p_references => NULL,
        p_reasons => array_fill('wallet_create_users'::text, ARRAY[v_count]),
        p_metadata => NULL,
        p_refers_to => NULL,
        p_expires_in_s => NULL,
        p_units => NULL,
        p_batch_ids => NULL
    ) AS p;
    IF v_codes <> array_fill(0, ARRAY[v_count]) THEN
        RAISE EXCEPTION 'the first credit of a wallet was refused'
        USING ERRCODE = 'LD004', DETAIL = (SELECT max(c.code) FROM unnest(v_codes) AS c (code));
    END IF;
    RETURN v_count;
END $$;

REVOKE ALL ON FUNCTION ledgerd.begin_wallet, ledgerd.create_wallet_users FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.create_wallet_users TO ledgerd_daemon;
GRANT SELECT (wallet_unit) ON ledgerd.settings TO ledgerd_daemon;
