-- Users, accounts, tokens: everything that writes a row outside the kernel, and every read of a secret.
--
-- The daemon's role may only EXECUTE these. Each runs as the owner with a pinned search_path.

-- The currency's row, made with its first account. A scale other than the stored one is refused: LD002.
CREATE FUNCTION ledgerd.ensure_currency(p_currency text, p_scale integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_scale integer;
BEGIN
    SELECT c.scale INTO v_scale FROM ledgerd.currencies AS c WHERE c.currency = p_currency;
    IF NOT FOUND THEN
        INSERT INTO ledgerd.currencies (currency, scale, world_account)
        VALUES (p_currency, p_scale, nextval('ledgerd.world_accounts'))
        ON CONFLICT (currency) DO NOTHING;
        SELECT c.scale INTO v_scale FROM ledgerd.currencies AS c WHERE c.currency = p_currency;
    END IF;
    IF v_scale <> p_scale THEN
        RAISE EXCEPTION 'currency % has % decimals in this database, not %', p_currency, v_scale, p_scale
        USING ERRCODE = 'LD002';
    END IF;
END $$;

-- The account of a user in a currency; a second one is a unique_violation, no such user a foreign_key_violation.
CREATE FUNCTION ledgerd.open_account(p_user_id bigint, p_currency text, p_scale integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_now timestamptz := ledgerd.clock();
    v_account_id bigint;
BEGIN
    PERFORM ledgerd.ensure_currency(p_currency, p_scale);
    INSERT INTO ledgerd.accounts (user_id, currency, owner_disabled, created_at, updated_at)
    VALUES (
        p_user_id, p_currency,
        coalesce((SELECT u.status = 'disabled' FROM ledgerd.users AS u WHERE u.user_id = p_user_id FOR SHARE), false),
        v_now, v_now
    )
    RETURNING account_id INTO v_account_id;
    RETURN v_account_id;
END $$;

-- A token; null p_expires_at never expires.
CREATE FUNCTION ledgerd.create_token(
    p_token_hash bytea, p_user_id bigint, p_account_id bigint, p_scopes text [], p_expires_at timestamptz, p_label text
) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO ledgerd.tokens (token_hash, user_id, account_id, scopes, expires_at, label)
    VALUES (p_token_hash, p_user_id, p_account_id, p_scopes, p_expires_at, p_label)
    RETURNING token_id;
$$;

-- A user, the account at balance zero and the first token, in one transaction. An e-mail in use is a unique_violation.
CREATE FUNCTION ledgerd.register_user(
    p_name text, p_email text, p_password_hash text, p_currency text, p_scale integer,
    p_token_hash bytea, p_scopes text [], p_expires_at timestamptz,
    OUT user_id bigint, OUT account_id bigint, OUT token_id bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO ledgerd.users AS u (name, email, password_hash, created_at)
    VALUES (p_name, p_email, p_password_hash, ledgerd.clock())
    RETURNING u.user_id INTO register_user.user_id;
    account_id := ledgerd.open_account(user_id, p_currency, p_scale);
    token_id := ledgerd.create_token(p_token_hash, user_id, NULL, p_scopes, p_expires_at, 'registration');
END $$;

-- Revoke one token, or every token of a user; how many were valid until now.
CREATE FUNCTION ledgerd.revoke_tokens(p_token_id bigint, p_user_id bigint) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH revoked AS (
        UPDATE ledgerd.tokens SET revoked_at = clock_timestamp()
        WHERE (token_id = p_token_id OR user_id = p_user_id) AND revoked_at IS NULL AND token_hash IS NOT NULL
        RETURNING 1
    )
    SELECT count(*) FROM revoked;
$$;

-- The token with this SHA-256, whatever its state.
CREATE FUNCTION ledgerd.token_id_by_hash(p_token_hash bytea) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT token_id FROM ledgerd.tokens WHERE token_hash = p_token_hash;
$$;

-- What signing in needs: the user with this e-mail and the hash of the password.
CREATE FUNCTION ledgerd.login_material(p_email text, OUT user_id bigint, OUT password_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.user_id, u.password_hash FROM ledgerd.users AS u WHERE lower(u.email) = lower(p_email);
$$;

-- What a daemon learns before it serves. A database whose identity changed since the last time (restored elsewhere,
-- promoted) may have lost commits that clients have seen: it gets a new epoch unless p_keep_epoch.
CREATE FUNCTION ledgerd.begin_serving(
    p_keep_epoch boolean, OUT epoch text, OUT deployment integer, OUT cursor_key bytea
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_system bigint := (SELECT system_identifier FROM pg_control_system());
    v_timeline integer := (SELECT timeline_id FROM pg_control_checkpoint());
BEGIN
    UPDATE ledgerd.settings AS s SET
        system_identifier = v_system,
        timeline = v_timeline,
        epoch = CASE
            WHEN p_keep_epoch OR s.system_identifier IS NULL THEN s.epoch
            ELSE left(replace(gen_random_uuid()::text, '-', ''), 16)
        END
    WHERE (s.system_identifier, s.timeline) IS DISTINCT FROM (v_system, v_timeline);
    SELECT s.epoch, s.deployment, s.cursor_key INTO epoch, deployment, cursor_key FROM ledgerd.settings AS s;
END $$;
