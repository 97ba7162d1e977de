-- Monitors: what is to be told when a balance crosses an amount.
--
-- Every daemon keeps the monitors in memory and asks again and again for those with a higher revision than the last.
-- A removed one stays, with a new revision, so that the others see it go.

-- Counts the changes of all monitors. Whoever makes one holds this row until its commit, so that nobody ever sees a
-- revision before a lower one: a sequence would not promise that.
CREATE TABLE ledgerd.monitor_revisions (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL DEFAULT 0
);
INSERT INTO ledgerd.monitor_revisions DEFAULT VALUES;

CREATE TABLE ledgerd.monitors (
    monitor_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES ledgerd.accounts,
    direction text NOT NULL CHECK (direction IN ('below', 'above')),
    amount bigint NOT NULL CHECK (amount BETWEEN 0 AND 999999999999999999),
    -- The account's version when the monitor was set: it looks at the changes above it.
    after_version bigint NOT NULL CHECK (after_version >= 0),
    label text CHECK (length(label) <= 255),
    token_id bigint NOT NULL REFERENCES ledgerd.tokens,
    created_at timestamptz NOT NULL,
    removed_at timestamptz,
    revision bigint NOT NULL UNIQUE
);
CREATE UNIQUE INDEX monitors_of_account ON ledgerd.monitors (account_id, direction, amount) WHERE removed_at IS NULL;

-- Set a monitor, and say what came of it: set, exists (with the number of the one that does), full, absent.
CREATE FUNCTION ledgerd.set_monitor(
    p_account_id bigint, p_direction text, p_amount bigint, p_label text, p_token_id bigint, p_per_account_max integer,
    OUT outcome text, OUT number bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_revision bigint;
BEGIN
    UPDATE ledgerd.monitor_revisions AS r SET revision = r.revision + 1 RETURNING r.revision INTO v_revision;
    SELECT m.monitor_id INTO number FROM ledgerd.monitors AS m
    WHERE m.account_id = p_account_id AND m.direction = p_direction AND m.amount = p_amount AND m.removed_at IS NULL;
    IF FOUND THEN
        outcome := 'exists';
        RETURN;
    END IF;
    IF (
        SELECT count(*) FROM ledgerd.monitors AS m WHERE m.account_id = p_account_id AND m.removed_at IS NULL
    ) >= p_per_account_max THEN
        outcome := 'full';
        RETURN;
    END IF;
    -- The account is not locked: what commits meanwhile has a higher version than is read here, and is looked at.
    INSERT INTO ledgerd.monitors AS m (
        account_id, direction, amount, after_version, label, token_id, created_at, revision
    )
    SELECT a.account_id, p_direction, p_amount, a.version, p_label, p_token_id, ledgerd.clock(), v_revision
    FROM ledgerd.accounts AS a WHERE a.account_id = p_account_id
    RETURNING m.monitor_id INTO number;
    outcome := CASE WHEN number IS NULL THEN 'absent' ELSE 'set' END;
END $$;

-- Remove a monitor; how many were set until now.
CREATE FUNCTION ledgerd.remove_monitor(p_monitor_id bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_revision bigint;
    v_removed bigint;
BEGIN
    UPDATE ledgerd.monitor_revisions AS r SET revision = r.revision + 1 RETURNING r.revision INTO v_revision;
    UPDATE ledgerd.monitors AS m SET removed_at = ledgerd.clock(), revision = v_revision
    WHERE m.monitor_id = p_monitor_id AND m.removed_at IS NULL;
    GET DIAGNOSTICS v_removed = ROW_COUNT;
    RETURN v_removed;
END $$;

REVOKE ALL ON ledgerd.monitors, ledgerd.monitor_revisions FROM PUBLIC;
REVOKE ALL ON FUNCTION ledgerd.set_monitor FROM PUBLIC;
REVOKE ALL ON FUNCTION ledgerd.remove_monitor FROM PUBLIC;
GRANT SELECT ON ledgerd.monitors TO ledgerd_daemon;
GRANT EXECUTE ON FUNCTION ledgerd.set_monitor, ledgerd.remove_monitor TO ledgerd_daemon;
