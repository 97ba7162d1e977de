-- Who may do what: the daemon's role may EXECUTE functions and SELECT what is not secret, and nothing else.
--
-- ledgerd_daemon is a group: give it to the login role of the daemon (CREATE ROLE name LOGIN IN ROLE ledgerd_daemon).
-- Roles belong to the whole server, so another database may have made it already.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'ledgerd_daemon') THEN
        CREATE ROLE ledgerd_daemon NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA ledgerd FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA ledgerd FROM PUBLIC;
-- A fresh function is executable by everybody until it is taken away.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ledgerd FROM PUBLIC;

GRANT USAGE ON SCHEMA ledgerd TO ledgerd_daemon;
GRANT SELECT ON
ledgerd.currencies, ledgerd.accounts, ledgerd.transactions, ledgerd.attempts, ledgerd.entries, ledgerd.records
TO ledgerd_daemon;
GRANT SELECT (user_id, name, email, status, created_at) ON ledgerd.users TO ledgerd_daemon;
GRANT SELECT (token_id, user_id, account_id, scopes, label, created_at, expires_at, revoked_at)
ON ledgerd.tokens TO ledgerd_daemon;
GRANT SELECT (epoch, deployment) ON ledgerd.settings TO ledgerd_daemon;
GRANT SELECT ON ledgerd.migrations TO ledgerd_daemon;
GRANT EXECUTE ON FUNCTION
ledgerd.moves_money,
ledgerd.post,
ledgerd.register_user,
ledgerd.open_account,
ledgerd.create_token,
ledgerd.revoke_tokens,
ledgerd.token_id_by_hash,
ledgerd.login_material,
ledgerd.begin_serving
TO ledgerd_daemon;
