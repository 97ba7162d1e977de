-- What happens to users after they have registered, and how often a password may be tried.

-- Tries at passwords that are left, for one e-mail or one network address: a bucket that fills up within a minute.
-- A row that is a minute old is full, which is the same as no row.
--
-- UNLOGGED: a try then waits for no disk, and a crash or a failover only forgets the failures of the last minute.
-- What is tried for is hashed, so that nobody who reads the table or a file of it learns who signs in from where.
CREATE UNLOGGED TABLE ledgerd.password_tries (
    key_hash bytea PRIMARY KEY CHECK (length(key_hash) = 32),
    tries_left double precision NOT NULL,
    filled_at timestamptz NOT NULL
)
WITH (fillfactor = 50);
CREATE INDEX password_tries_by_time ON ledgerd.password_tries (filled_at);

-- The keys of a try, in the order in which everybody locks them: addresses come before e-mails. The e-mail is compared
-- as in users_email, or one person's capital letters would be another bucket.
CREATE FUNCTION ledgerd.password_try_keys(p_email text, p_address text) RETURNS bytea []
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_remove(ARRAY[
        sha256(convert_to('address ' || p_address, 'UTF8')), sha256(convert_to('email ' || lower(p_email), 'UTF8'))
    ], NULL);
$$;

-- Take a try at a password before it is looked at: 0, or in how many milliseconds there will be one, and none is taken.
-- It is taken first and given back if the password was right, because of tries that are merely looked up before and
-- counted afterwards any number may be under way at once. A null e-mail or address is not counted.
--
-- By the real clock, like everything about signing in: who moves the ledger's clock must not move this.
CREATE FUNCTION ledgerd.take_password_try(p_email text, p_address text, p_per_min integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_keys CONSTANT bytea [] := ledgerd.password_try_keys(p_email, p_address);
    v_key bytea;
    v_left double precision;
    v_wait_ms bigint := 0;
BEGIN
    FOREACH v_key IN ARRAY v_keys LOOP
        -- Locks the row until the end, so that of two daemons one waits; the update is computed after the wait.
        INSERT INTO ledgerd.password_tries AS t (key_hash, tries_left, filled_at)
        VALUES (v_key, p_per_min, clock_timestamp())
        ON CONFLICT (key_hash) DO UPDATE SET
            tries_left = least(
                p_per_min,
                t.tries_left + greatest(extract(EPOCH FROM clock_timestamp() - t.filled_at), 0) * p_per_min / 60.0
            ),
            filled_at = greatest(clock_timestamp(), t.filled_at)
        RETURNING t.tries_left INTO v_left;
        IF v_left < 1 THEN
            v_wait_ms := greatest(ceil((1 - v_left) * 60000 / p_per_min), 1);
            EXIT;
        END IF;
    END LOOP;
    IF v_wait_ms = 0 THEN
        UPDATE ledgerd.password_tries AS t SET tries_left = t.tries_left - 1 WHERE t.key_hash = ANY(v_keys);
    END IF;
    -- Each call makes two rows at most and takes away more, so that there are about as many as tries in a minute. Last,
    -- and past what others have locked, so that nobody waits for a row while holding one out of turn.
    DELETE FROM ledgerd.password_tries AS t
    WHERE t.key_hash IN (
        SELECT o.key_hash FROM ledgerd.password_tries AS o
        WHERE o.filled_at < clock_timestamp() - interval '1 minute'
        ORDER BY o.filled_at LIMIT 8 FOR UPDATE SKIP LOCKED
    );
    RETURN v_wait_ms;
END $$;

-- Give a try back: the password was right.
CREATE FUNCTION ledgerd.return_password_try(p_email text, p_address text, p_per_min integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_key bytea;
BEGIN
    -- One after the other, because one statement would lock them in any order.
    FOREACH v_key IN ARRAY ledgerd.password_try_keys(p_email, p_address) LOOP
        UPDATE ledgerd.password_tries AS t SET tries_left = least(p_per_min, t.tries_left + 1)
        WHERE t.key_hash = v_key;
    END LOOP;
END $$;

-- The token of somebody whose password was right; null if it has been changed since it was looked up. The lock makes a
-- change of the password wait, which then revokes this token too.
CREATE FUNCTION ledgerd.open_session(
    p_token_hash bytea, p_user_id bigint, p_password_hash text, p_scopes text [], p_expires_at timestamptz
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM ledgerd.users AS u WHERE u.user_id = p_user_id AND u.password_hash = p_password_hash FOR SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN ledgerd.create_token(p_token_hash, p_user_id, NULL, p_scopes, p_expires_at, 'session');
END $$;

-- Another password, and the end of every token of the user but one; how many ended. Null if the password is not
-- p_old_hash any more.
CREATE FUNCTION ledgerd.change_password(
    p_user_id bigint, p_old_hash text, p_new_hash text, p_kept_token_id bigint
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_revoked bigint;
BEGIN
    UPDATE ledgerd.users AS u SET password_hash = p_new_hash
    WHERE u.user_id = p_user_id AND u.password_hash = p_old_hash;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE ledgerd.tokens AS t SET revoked_at = clock_timestamp()
    WHERE t.user_id = p_user_id AND t.token_id <> p_kept_token_id AND t.revoked_at IS NULL AND t.token_hash IS NOT NULL;
    GET DIAGNOSTICS v_revoked = ROW_COUNT;
    RETURN v_revoked;
END $$;

-- Another name or e-mail; what is null stays. False if there is no such user; an e-mail in use is a unique_violation.
CREATE FUNCTION ledgerd.update_user(p_user_id bigint, p_name text, p_email text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE ledgerd.users AS u SET name = coalesce(p_name, u.name), email = coalesce(p_email, u.email)
    WHERE u.user_id = p_user_id;
    RETURN found;
END $$;

-- Disable a user, or enable it again: from the end of this call on the kernel refuses, or takes again, what the user
-- would spend. False if there is no such user.
CREATE FUNCTION ledgerd.set_user_status(p_user_id bigint, p_status text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_accounts bigint [];
    v_lock_space bigint;
BEGIN
    -- The user first: an account that is being opened holds this row, so that it is there below, or waits for it and
    -- takes over the new status.
    UPDATE ledgerd.users AS u SET status = p_status WHERE u.user_id = p_user_id;
    IF NOT found THEN
        RETURN false;
    END IF;
    -- The same locks as the kernel's, in the same order, and then, as there, a new statement.
    SELECT coalesce(array_agg(a.account_id ORDER BY a.account_id), '{}') INTO v_accounts
    FROM ledgerd.accounts AS a WHERE a.user_id = p_user_id;
    SELECT s.deployment::bigint << 48 INTO v_lock_space FROM ledgerd.settings AS s;
    PERFORM pg_advisory_xact_lock(v_lock_space | l.account_id) FROM unnest(v_accounts) AS l (account_id);
    UPDATE ledgerd.accounts AS a SET owner_disabled = p_status = 'disabled'
    WHERE a.user_id = p_user_id AND a.owner_disabled <> (p_status = 'disabled');
    RETURN true;
END $$;

REVOKE ALL ON ledgerd.password_tries FROM PUBLIC;
REVOKE ALL ON FUNCTION
ledgerd.password_try_keys,
ledgerd.take_password_try,
ledgerd.return_password_try,
ledgerd.open_session,
ledgerd.change_password,
ledgerd.update_user,
ledgerd.set_user_status
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
ledgerd.take_password_try,
ledgerd.return_password_try,
ledgerd.open_session,
ledgerd.change_password,
ledgerd.update_user,
ledgerd.set_user_status
TO ledgerd_daemon;
