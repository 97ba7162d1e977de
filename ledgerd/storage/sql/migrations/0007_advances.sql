-- Advances: funds now, paid back in payments, each collected exactly once.
--
-- Rules of this file:
--
-- 1. Everything about an advance changes only under the lock of its account, in the transaction that moves the money:
--    "charged, but not marked" cannot exist.
-- 2. What is paid plus what open payments still ask for is the principal, always. A payment that failed gives what was
--    left of it to the next one and asks for nothing any more.
-- 3. ledgerd.advance_queue belongs to the collector: it locks rows there before it takes the locks of accounts, so
--    nothing that holds such a lock may wait for one of them.
--
-- Payments:  not_due -> due -> paid       collected, or repaid early (also straight from not_due)
--                       due -> failed     what was left of it is rolled over to the next open payment, or a new one

CREATE TABLE ledgerd.advances (
    -- The transaction that paid the principal.
    advance_id uuid PRIMARY KEY,
    account_id bigint NOT NULL,
    principal bigint NOT NULL CHECK (principal > 0),
    outstanding bigint NOT NULL CHECK (outstanding BETWEEN 0 AND principal),
    installments integer NOT NULL CHECK (installments > 0),
    interval_days integer NOT NULL CHECK (interval_days > 0),
    created_at timestamptz NOT NULL
);
CREATE INDEX advances_of_account ON ledgerd.advances (account_id, created_at);

CREATE TABLE ledgerd.advance_payments (
    advance_id uuid NOT NULL REFERENCES ledgerd.advances,
    number integer NOT NULL CHECK (number > 0),
    due_at timestamptz NOT NULL,
    -- Of which `rolled_over` came from payments that failed.
    amount bigint NOT NULL CHECK (amount > 0),
    rolled_over bigint NOT NULL DEFAULT 0 CHECK (rolled_over BETWEEN 0 AND amount),
    paid bigint NOT NULL DEFAULT 0 CHECK (paid BETWEEN 0 AND amount),
    status text NOT NULL DEFAULT 'not_due' CHECK (status IN ('not_due', 'due', 'paid', 'failed')),
    reason text,
    PRIMARY KEY (advance_id, number),
    CHECK ((status = 'paid') = (paid = amount))
);

-- What happened, numbered per advance without a hole.
CREATE TABLE ledgerd.advance_events (
    advance_id uuid NOT NULL REFERENCES ledgerd.advances,
    event integer NOT NULL CHECK (event > 0),
    type text NOT NULL CHECK (type IN ('requested', 'due', 'paid', 'part_paid', 'failed', 'rolled_over', 'completed')),
    -- The payment it is about, if one.
    number integer,
    amount bigint NOT NULL,
    -- Of the advance, after it.
    outstanding bigint NOT NULL,
    reason text,
    transaction_id uuid,
    created_at timestamptz NOT NULL,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (advance_id, event)
);
CREATE INDEX advance_events_xact ON ledgerd.advance_events (xact);

-- Running advances and when their next payment is due; too early is harmless.
CREATE TABLE ledgerd.advance_queue (
    advance_id uuid PRIMARY KEY REFERENCES ledgerd.advances,
    due_at timestamptz NOT NULL
);
CREATE INDEX advance_queue_due ON ledgerd.advance_queue (due_at);

-- One more event of an advance whose account is locked.
CREATE FUNCTION ledgerd.note_advance(
    p_advance_id uuid, p_type text, p_number integer, p_amount bigint, p_reason text, p_transaction_id uuid,
    p_now timestamptz
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO ledgerd.advance_events (
        advance_id, event, type, number, amount, outstanding, reason, transaction_id, created_at
    )
    SELECT
        p_advance_id, coalesce(last.event, 0) + 1, p_type, p_number, p_amount, a.outstanding, p_reason,
        p_transaction_id,
        -- Like that of the account's transactions, its time never runs backwards.
        greatest(p_now, last.created_at)
    FROM ledgerd.advances AS a
    LEFT JOIN LATERAL (
        SELECT e.event, e.created_at FROM ledgerd.advance_events AS e
        WHERE e.advance_id = p_advance_id ORDER BY e.event DESC LIMIT 1
    ) AS last ON true
    WHERE a.advance_id = p_advance_id;
$$;

-- The schedule of an advance that was just posted. The payments' sum is the principal; what does not divide is in the
-- first ones. Days of 24 hours: a time of day that daylight saving moves would be nobody's wish.
CREATE FUNCTION ledgerd.schedule_advance(
    p_advance_id uuid, p_account_id bigint, p_principal bigint, p_installments integer, p_interval_days integer,
    p_now timestamptz
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO ledgerd.advances (
        advance_id, account_id, principal, outstanding, installments, interval_days, created_at
    ) VALUES (p_advance_id, p_account_id, p_principal, p_principal, p_installments, p_interval_days, p_now);
    INSERT INTO ledgerd.advance_payments (advance_id, number, due_at, amount)
    SELECT
        p_advance_id, n.number, p_now + make_interval(hours => 24 * p_interval_days * n.number),
        p_principal / p_installments + CASE WHEN n.number <= p_principal % p_installments THEN 1 ELSE 0 END
    FROM generate_series(1, p_installments) AS n (number);
    INSERT INTO ledgerd.advance_queue (advance_id, due_at)
    VALUES (p_advance_id, p_now + make_interval(hours => 24 * p_interval_days));
    PERFORM ledgerd.note_advance(p_advance_id, 'requested', NULL, p_principal, NULL, p_advance_id, p_now);
END $$;

-- Give money that was just posted to the payments of an advance: what is due first, then the latest.
CREATE FUNCTION ledgerd.apply_to_payments(
    p_advance_id uuid, p_amount bigint, p_transaction_id uuid, p_now timestamptz
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_left bigint := p_amount;
    v_part bigint;
    v_outstanding bigint;
    v_payment ledgerd.advance_payments;
BEGIN
    FOR v_payment IN
        SELECT p.* FROM ledgerd.advance_payments AS p
        WHERE p.advance_id = p_advance_id AND p.status IN ('not_due', 'due')
        ORDER BY p.due_at > p_now, CASE WHEN p.due_at <= p_now THEN p.number ELSE -p.number END
    LOOP
        EXIT WHEN v_left = 0;
        v_part := least(v_left, v_payment.amount - v_payment.paid);
        v_left := v_left - v_part;
        UPDATE ledgerd.advance_payments AS p SET
            paid = p.paid + v_part,
            status = CASE WHEN p.paid + v_part = p.amount THEN 'paid' ELSE p.status END
        WHERE p.advance_id = p_advance_id AND p.number = v_payment.number;
        UPDATE ledgerd.advances AS a SET outstanding = a.outstanding - v_part
        WHERE a.advance_id = p_advance_id RETURNING a.outstanding INTO v_outstanding;
        PERFORM ledgerd.note_advance(
            p_advance_id,
            CASE WHEN v_payment.paid + v_part = v_payment.amount THEN 'paid' ELSE 'part_paid' END,
            v_payment.number, v_part, NULL, p_transaction_id, p_now
        );
    END LOOP;
    IF v_left <> 0 OR v_outstanding IS NULL THEN
        RAISE EXCEPTION 'advance % was paid more than it asks for', p_advance_id;
    END IF;
    IF v_outstanding = 0 THEN
        PERFORM ledgerd.note_advance(p_advance_id, 'completed', NULL, p_amount, NULL, p_transaction_id, p_now);
    END IF;
END $$;

-- A due payment that could not be collected: what is left of it goes to the next open payment, or to a new one an
-- interval later.
CREATE FUNCTION ledgerd.roll_over(p_advance_id uuid, p_number integer, p_reason text, p_now timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_payment ledgerd.advance_payments;
    v_left bigint;
    v_next integer;
BEGIN
    UPDATE ledgerd.advance_payments AS p SET status = 'failed', reason = p_reason
    WHERE p.advance_id = p_advance_id AND p.number = p_number RETURNING p.* INTO v_payment;
    v_left := v_payment.amount - v_payment.paid;
    PERFORM ledgerd.note_advance(p_advance_id, 'failed', p_number, v_left, p_reason, NULL, p_now);
    SELECT min(p.number) INTO v_next FROM ledgerd.advance_payments AS p
    WHERE p.advance_id = p_advance_id AND p.number > p_number AND p.status IN ('not_due', 'due');
    IF v_next IS NOT NULL THEN
        UPDATE ledgerd.advance_payments AS p SET amount = p.amount + v_left, rolled_over = p.rolled_over + v_left
        WHERE p.advance_id = p_advance_id AND p.number = v_next;
    ELSE
        INSERT INTO ledgerd.advance_payments (advance_id, number, due_at, amount, rolled_over)
        SELECT
            p_advance_id, max(p.number) + 1,
            v_payment.due_at + make_interval(hours => 24 * (
                SELECT a.interval_days FROM ledgerd.advances AS a WHERE a.advance_id = p_advance_id
            )),
            v_left, v_left
        FROM ledgerd.advance_payments AS p WHERE p.advance_id = p_advance_id
        RETURNING number INTO v_next;
    END IF;
    PERFORM ledgerd.note_advance(p_advance_id, 'rolled_over', v_next, v_left, NULL, NULL, p_now);
END $$;

-- Collect what is due of advances that no other daemon is at, payment by payment in order; money and state in this one
-- transaction, and of at most p_limit payments, so that it stays short however long nobody collected. Payments are
-- taken from what is there without the overdraft limit, whole or not at all. Answers the transactions posted, how many
-- payments failed, the advances looked at, and whether there may be more to do at once.
CREATE FUNCTION ledgerd.collect_due(
    p_limit integer, OUT collected uuid [], OUT failed integer, OUT advances uuid [], OUT more boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now timestamptz;
    v_advance ledgerd.advances;
    v_payment ledgerd.advance_payments;
    v_left bigint;
    v_transaction_id uuid;
    v_code integer;
BEGIN
    collected := '{}';
    failed := 0;
    SELECT coalesce(array_agg(q.advance_id), '{}') INTO advances
    FROM (
        SELECT x.advance_id FROM ledgerd.advance_queue AS x
        -- Read once: an index is not searched for what could be another time with every row.
        WHERE x.due_at <= (SELECT ledgerd.clock()) ORDER BY x.due_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) AS q;
    more := cardinality(advances) = p_limit;
    IF advances = '{}' THEN
        RETURN;
    END IF;

    -- The locks of all accounts, sorted, before anything is read that they guard.
    PERFORM pg_advisory_xact_lock(l.key)
    FROM (
        SELECT DISTINCT (s.deployment::bigint << 48) | a.account_id AS key
        FROM ledgerd.advances AS a CROSS JOIN ledgerd.settings AS s
        WHERE a.advance_id = ANY(collect_due.advances) ORDER BY key
        -- Sorted before the first lock is taken, whatever the plan.
        OFFSET 0
    ) AS l;
    v_now := ledgerd.clock();

    <<advances_due>>
    FOR v_advance IN
        SELECT a.* FROM ledgerd.advances AS a WHERE a.advance_id = ANY(collect_due.advances)
        ORDER BY a.account_id, a.created_at, a.advance_id
    LOOP
        LOOP
            SELECT p.* INTO v_payment FROM ledgerd.advance_payments AS p
            WHERE p.advance_id = v_advance.advance_id AND p.status IN ('not_due', 'due') AND p.due_at <= v_now
            ORDER BY p.number LIMIT 1;
            EXIT WHEN NOT FOUND;
            IF cardinality(collected) + failed >= p_limit THEN
                -- What is left stays in the queue as it is, and is the first to be looked at next.
                more := true;
                EXIT advances_due;
            END IF;
            v_left := v_payment.amount - v_payment.paid;
            UPDATE ledgerd.advance_payments AS p SET status = 'due'
            WHERE p.advance_id = v_advance.advance_id AND p.number = v_payment.number;
            PERFORM ledgerd.note_advance(
                v_advance.advance_id, 'due', v_payment.number, v_left, NULL, NULL, v_now
            );
            v_transaction_id := gen_random_uuid();
            SELECT CASE WHEN a.balance - a.held < v_left THEN 3001 ELSE 0 END INTO v_code
            FROM ledgerd.accounts AS a WHERE a.account_id = v_advance.account_id;
            IF v_code = 0 THEN
                SELECT p.codes[1] INTO v_code
                FROM ledgerd.post(
                    false, ARRAY[gen_random_uuid()], ARRAY[0::bigint], ARRAY['advance_payment'],
                    ARRAY[v_transaction_id], ARRAY[v_advance.account_id], ARRAY[NULL::bigint],
                    ARRAY[v_left], NULL, NULL, NULL, NULL, NULL,
                    ARRAY[v_advance.advance_id], NULL, NULL, NULL
                ) AS p;
            END IF;
            IF v_code = 0 THEN
                collected := collected || v_transaction_id;
            ELSE
                failed := failed + 1;
                PERFORM ledgerd.roll_over(
                    v_advance.advance_id, v_payment.number,
                    CASE v_code WHEN 3001 THEN 'insufficient_funds' ELSE 'error ' || v_code END, v_now
                );
            END IF;
        END LOOP;
        DELETE FROM ledgerd.advance_queue AS q
        WHERE q.advance_id = v_advance.advance_id AND NOT EXISTS (
            SELECT FROM ledgerd.advance_payments AS p
            WHERE p.advance_id = v_advance.advance_id AND p.status IN ('not_due', 'due')
        );
        UPDATE ledgerd.advance_queue AS q SET due_at = (
            SELECT min(p.due_at) FROM ledgerd.advance_payments AS p
            WHERE p.advance_id = v_advance.advance_id AND p.status IN ('not_due', 'due')
        )
        WHERE q.advance_id = v_advance.advance_id;
    END LOOP;
END $$;

REVOKE ALL ON ledgerd.advances, ledgerd.advance_payments, ledgerd.advance_events, ledgerd.advance_queue FROM PUBLIC;
REVOKE ALL ON FUNCTION
ledgerd.note_advance, ledgerd.schedule_advance, ledgerd.apply_to_payments, ledgerd.roll_over, ledgerd.collect_due
FROM PUBLIC;
GRANT SELECT ON ledgerd.advances, ledgerd.advance_payments, ledgerd.advance_events, ledgerd.advance_queue
TO ledgerd_daemon;
GRANT EXECUTE ON FUNCTION ledgerd.collect_due TO ledgerd_daemon;
