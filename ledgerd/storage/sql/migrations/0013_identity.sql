-- Which data is this? A daemon that finds another than the last one did mints a new epoch, and clients begin anew.
--
-- What names the data: the cluster (system_identifier), its history (timeline), the database in it (database_id) and
-- the table that was made in it (table_id). Each of the ways by which a ledger can come back with less than clients
-- have seen changes one of them:
--
-- - a promoted replica, a point-in-time recovery: the timeline. It is that of the WAL that is being written: the one in
--   the control file is the old one until the first checkpoint after a promotion;
-- - a dump restored into another cluster: the system identifier;
-- - a dump restored into another database of the same cluster, a database copied as a template: the database;
-- - a dump restored over itself, in the same database: the table, because restoring makes it anew.
--
-- Files put back as they were some time ago (a snapshot of the disk, a base backup started without recovery) change
-- none of them. Only who remembers a later state can tell: a daemon tells how far it saw the WAL written to disk, and a
-- WAL that ends before that is another. A daemon that is started afterwards remembers nothing: whoever restores that
-- way says so with `ledgerd epoch new`.
--
-- Transaction ids. transactions, attempts and advance_events carry the id of the transaction that wrote them, and
-- readers compare it with snapshots. In another cluster ids begin anew, far below those of the restored rows: while
-- they pass through the same numbers, restored rows would come into feeds as new ones, be missing from the later pages
-- of a report, or come again and again while another transaction has the number. Nothing can rewrite all rows, and
-- nothing has to: a row that PostgreSQL wrote (xmin) under another id than the row says, and before ids_from, came from
-- elsewhere, and all who read know it already. No column, no index, no lock; it costs a comparison for each row that is
-- read by id, and nothing where ids_from is null, as in a database that was never restored. VACUUM FULL and CLUSTER
-- keep xmin. After something that does not (pg_repack), in a ledger that was restored, `ledgerd epoch new` sets
-- ids_from to what it then must be.
ALTER TABLE ledgerd.settings
ADD COLUMN database_id oid,
ADD COLUMN table_id oid,
-- The first transaction id after the data came to this cluster, if it came from elsewhere: older rows in it may say ids
-- that mean nothing.
ADD COLUMN ids_from xid8;

GRANT SELECT (ids_from) ON ledgerd.settings TO ledgerd_daemon;

-- An upgrade in place is no new identity, and one of a restored database is for the first daemon to find.
UPDATE ledgerd.settings SET
    database_id = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()),
    table_id = 'ledgerd.settings'::regclass
WHERE system_identifier = (SELECT c.system_identifier FROM pg_catalog.pg_control_system() AS c);
-- Unless it was served since it was restored.
UPDATE ledgerd.settings SET ids_from = pg_snapshot_xmax(pg_current_snapshot())
WHERE
    table_id IS NOT NULL
    AND pg_snapshot_xmax(pg_current_snapshot()) <= (
        SELECT t.xact FROM ledgerd.transactions AS t
        ORDER BY t.xact DESC LIMIT 1
    );

-- Whether a row came from elsewhere: written by the id p_written (its xmin), although it says p_xact; see above. Ids of
-- rows have 32 bits: which of two came first is said by the shorter way round.
CREATE FUNCTION ledgerd.is_restored(p_written xid, p_xact xid8, p_ids_from xid8) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN p_ids_from IS NOT NULL
AND p_written <> p_xact::xid
AND ((p_ids_from::xid::text::bigint - p_written::text::bigint) & 4294967295) BETWEEN 1 AND 2147483647;

REVOKE ALL ON FUNCTION ledgerd.is_restored FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.is_restored TO ledgerd_daemon;

-- What a daemon learns before it serves, and what it should remember while it runs. p_epoch, p_system_identifier,
-- p_timeline and p_wal are what it remembers of the last time, if there was one. A database that is another than the
-- last time may lack commits that clients have seen: it gets a new epoch unless p_keep_epoch, and even then if ids
-- began anew, because places in the order of commits would be wrong.
DROP FUNCTION ledgerd.begin_serving(boolean);
CREATE FUNCTION ledgerd.begin_serving(
    p_keep_epoch boolean,
    p_epoch text DEFAULT NULL,
    p_system_identifier bigint DEFAULT NULL,
    p_timeline integer DEFAULT NULL,
    p_wal pg_lsn DEFAULT NULL,
    OUT epoch text,
    OUT deployment integer,
    OUT cursor_key bytea,
    OUT system_identifier bigint,
    OUT timeline integer,
    OUT wal pg_lsn,
    -- What was found to have changed: null if nothing, and the epoch is the old one unless is_new_epoch.
    OUT changed text,
    OUT is_new_epoch boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_wal pg_lsn;
    v_database oid := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    v_xmax xid8 := pg_snapshot_xmax(pg_current_snapshot());
    v_ids_began_anew boolean := false;
    v_last record;
BEGIN
    -- A replica answers reads, and cannot say what this function asks.
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this is a replica: only a primary can be served' USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    system_identifier := (SELECT c.system_identifier FROM pg_control_system() AS c);
    -- What is not on disk yet may be gone after a crash, and is no loss: remembered is the one, compared is the other.
    wal := pg_current_wal_flush_lsn();
    v_wal := pg_current_wal_insert_lsn();
    timeline := ('x' || left(pg_walfile_name(v_wal), 8))::bit(32)::integer;
    IF system_identifier = p_system_identifier AND timeline < p_timeline THEN
        RAISE EXCEPTION 'this is timeline % of a database whose timeline % was seen already', timeline, p_timeline
        USING ERRCODE = 'LD005', HINT = 'an old primary that came back, or an old copy: stop it; see OPERATIONS.md';
    END IF;

    -- Nearly always nothing changed: then nothing is locked and nothing written.
    FOR attempt IN 1..2 LOOP
        SELECT s.*, s.tableoid AS present_table INTO v_last FROM ledgerd.settings AS s;
        changed := CASE
            WHEN v_last.system_identifier IS NULL THEN 'first time'
            WHEN v_last.system_identifier <> begin_serving.system_identifier THEN 'cluster'
            WHEN v_last.database_id IS DISTINCT FROM v_database THEN 'database'
            WHEN v_last.table_id IS DISTINCT FROM v_last.present_table THEN 'tables'
            WHEN v_last.timeline <> begin_serving.timeline THEN 'timeline'
            WHEN
                p_wal > v_wal AND p_epoch = v_last.epoch AND p_system_identifier = begin_serving.system_identifier
                AND p_timeline = begin_serving.timeline
                THEN 'write-ahead log'
        END;
        EXIT WHEN changed IS NULL OR attempt = 2;
        -- Of several daemons that find it, one mints; the others look again.
        PERFORM 1 FROM ledgerd.settings AS s FOR UPDATE;
    END LOOP;

    is_new_epoch := false;
    IF changed IS NOT NULL THEN
        IF changed IN ('cluster', 'database', 'tables') THEN
            v_ids_began_anew := v_xmax <= greatest(
                (SELECT t.xact FROM ledgerd.transactions AS t ORDER BY t.xact DESC LIMIT 1),
                (SELECT e.xact FROM ledgerd.advance_events AS e ORDER BY e.xact DESC LIMIT 1)
            );
        END IF;
        is_new_epoch := changed <> 'first time' AND (coalesce(v_ids_began_anew, false) OR NOT p_keep_epoch);
        UPDATE ledgerd.settings AS s SET
            system_identifier = begin_serving.system_identifier,
            timeline = begin_serving.timeline,
            database_id = v_database,
            table_id = s.tableoid,
            ids_from = CASE
                WHEN
                    changed NOT IN ('timeline', 'write-ahead log')
                    AND (EXISTS (SELECT FROM ledgerd.transactions) OR EXISTS (SELECT FROM ledgerd.attempts))
                    THEN v_xmax
                ELSE s.ids_from
            END,
            epoch = CASE
                WHEN is_new_epoch THEN left(replace(gen_random_uuid()::text, '-', ''), 16)
                ELSE s.epoch
            END;
    END IF;
    SELECT s.epoch, s.deployment, s.cursor_key INTO epoch, deployment, cursor_key FROM ledgerd.settings AS s;
END $$;

REVOKE ALL ON FUNCTION ledgerd.begin_serving FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledgerd.begin_serving TO ledgerd_daemon;
