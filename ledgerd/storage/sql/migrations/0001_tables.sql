-- The ledger's tables.
--
-- What every table relies on: money columns are bigint minor units of the account's currency; times come from
-- ledgerd.clock(); rows are written only by the functions of the later migrations, which run as the owner.

-- The schema itself and ledgerd.migrations are there already: the migrator keeps its own list in it.
REVOKE ALL ON SCHEMA ledgerd FROM PUBLIC;

-- One row that says which ledger this is.
CREATE TABLE ledgerd.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Upper 16 bits of every advisory lock key: a team's Postgres has other people's small keys in the same space.
    deployment integer NOT NULL DEFAULT (1 + floor(random() * 32766))::integer CHECK (deployment BETWEEN 1 AND 32767),
    -- Clients resume a feed only within one epoch; a restored or promoted database gets a new one.
    epoch text NOT NULL DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 16),
    system_identifier bigint,
    timeline integer,
    -- Signs the cursors of lists.
    cursor_key bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()),
    -- Moves the clock of holds and advances in development; never that of tokens.
    clock_offset interval NOT NULL DEFAULT '0'
);
INSERT INTO ledgerd.settings DEFAULT VALUES;

-- A currency's scale is fixed with its first account and never changes.
CREATE TABLE ledgerd.currencies (
    currency text PRIMARY KEY CHECK (currency ~ '^[A-Z][A-Z0-9]{2,11}$'),
    scale smallint NOT NULL CHECK (scale BETWEEN 0 AND 8),
    -- The outside of the ledger, the other side of credit and debit. Negative, so that no command can name it, nobody
    -- locks it and it has no running balance: it would be the one hot row that everybody waits for.
    world_account bigint NOT NULL UNIQUE CHECK (world_account < 0)
);
CREATE SEQUENCE ledgerd.world_accounts INCREMENT BY -1 MAXVALUE -1 START WITH -1;

CREATE TABLE ledgerd.users (
    user_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL CHECK (name <> ''),
    email text CHECK (email <> ''),
    password_hash text,
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    created_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX users_email ON ledgerd.users (lower(email)) WHERE email IS NOT NULL;

CREATE TABLE ledgerd.accounts (
    -- Below 2^47, because the lock key puts the deployment above it.
    account_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (account_id BETWEEN 1 AND 140737488355327),
    user_id bigint NOT NULL REFERENCES ledgerd.users,
    currency text NOT NULL REFERENCES ledgerd.currencies,
    balance bigint NOT NULL DEFAULT 0 CHECK (balance BETWEEN -999999999999999999 AND 999999999999999999),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    overdraft_limit bigint NOT NULL DEFAULT 0 CHECK (overdraft_limit BETWEEN 0 AND 999999999999999999),
    -- Changes so far, counted without a hole under the account's lock: version order is commit order.
    version bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'frozen', 'closed')),
    -- Copied from the user under the locks of all its accounts, so that the kernel reads one row per account.
    owner_disabled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (user_id, currency),
    CONSTRAINT accounts_never_below_limit CHECK (balance - held + overdraft_limit >= 0)
)
-- Room on every page for the next version of a row: updates stay on the page and touch no index.
WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE ledgerd.tokens (
    token_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_hash bytea UNIQUE CHECK (length(token_hash) = 32),
    user_id bigint REFERENCES ledgerd.users,
    account_id bigint REFERENCES ledgerd.accounts,
    scopes text [] NOT NULL CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'user', 'topup', 'service', 'operator']
    ),
    label text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX tokens_of_user ON ledgerd.tokens (user_id, token_id);

CREATE TYPE ledgerd.transaction_kind AS ENUM (
    'credit', 'debit', 'transfer', 'hold', 'capture', 'release', 'expiry', 'reversal', 'bet', 'win', 'rollback',
    'advance', 'advance_payment', 'limit', 'freeze', 'close', 'cancel'
);
CREATE TYPE ledgerd.transaction_status AS ENUM (
    'posted', 'pending', 'captured', 'released', 'expired', 'cancelled'
);

-- One row per transaction, both sides in it: balanced by construction. Never updated, never deleted.
-- No foreign keys to accounts: checking them would lock account rows, and the kernel has read those accounts anyway.
CREATE TABLE ledgerd.transactions (
    debit_account bigint NOT NULL,
    credit_account bigint NOT NULL,
    amount bigint NOT NULL CHECK (amount BETWEEN 0 AND 999999999999999999),
    -- Change of what the debit side holds back; its balance changes by the amount if the kind moves money.
    held_change bigint NOT NULL DEFAULT 0,
    -- The account after the transaction; null for a side that takes no version (the world; the far side of a hold).
    debit_version bigint,
    debit_balance bigint,
    debit_held bigint,
    debit_available bigint,
    credit_version bigint,
    credit_balance bigint,
    credit_held bigint,
    credit_available bigint,
    token_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    -- Pages of a report show only what their first page's snapshot could see.
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    transaction_id uuid PRIMARY KEY,
    kind ledgerd.transaction_kind NOT NULL,
    status ledgerd.transaction_status NOT NULL,
    batch_index integer,
    batch_id uuid,
    reference text CHECK (length(reference) <= 255),
    reason text CHECK (length(reason) <= 255),
    metadata text CHECK (octet_length(metadata) <= 4096),
    CHECK (debit_account <> credit_account),
    CHECK (debit_account > 0 OR credit_account > 0)
);
CREATE UNIQUE INDEX transactions_debit ON ledgerd.transactions (debit_account, debit_version)
WHERE debit_version IS NOT NULL;
CREATE UNIQUE INDEX transactions_credit ON ledgerd.transactions (credit_account, credit_version)
WHERE credit_version IS NOT NULL;
CREATE INDEX transactions_reference ON ledgerd.transactions (reference) WHERE reference IS NOT NULL;
CREATE UNIQUE INDEX transactions_batch ON ledgerd.transactions (batch_id, batch_index) WHERE batch_id IS NOT NULL;

-- Refused commands, for the people who ask why. Never part of an account's history.
CREATE TABLE ledgerd.attempts (
    attempt_id uuid PRIMARY KEY,
    transaction_id uuid NOT NULL,
    kind ledgerd.transaction_kind NOT NULL,
    -- Null is the world, 0 an account that was named and does not exist.
    debit_account bigint,
    credit_account bigint,
    amount bigint,
    currency text,
    code integer NOT NULL,
    data text,
    reference text,
    reason text,
    token_id bigint NOT NULL,
    created_at timestamptz NOT NULL,
    xact xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX attempts_of_transaction ON ledgerd.attempts (transaction_id);
CREATE INDEX attempts_by_time ON ledgerd.attempts (created_at);

-- Kinds that move money between the two sides; the others only change what an account holds back or allows.
CREATE FUNCTION ledgerd.moves_money(kind ledgerd.transaction_kind) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN kind NOT IN ('hold', 'release', 'expiry', 'limit', 'freeze', 'close', 'cancel');

-- One row per side, for people who think in entries. The world's side has no version and no balance.
CREATE VIEW ledgerd.entries AS
SELECT
    t.transaction_id,
    t.debit_account AS account_id,
    'debit' AS direction,
    CASE WHEN ledgerd.moves_money(t.kind) THEN -t.amount ELSE 0 END AS balance_change,
    t.held_change,
    t.debit_version AS version,
    t.debit_balance AS balance,
    t.debit_held AS held,
    t.debit_available AS available,
    t.created_at
FROM ledgerd.transactions AS t
WHERE t.kind <> 'cancel'
UNION ALL
SELECT
    t.transaction_id,
    t.credit_account AS account_id,
    'credit' AS direction,
    CASE WHEN ledgerd.moves_money(t.kind) THEN t.amount ELSE 0 END AS balance_change,
    0::bigint AS held_change,
    t.credit_version AS version,
    t.credit_balance AS balance,
    t.credit_held AS held,
    t.credit_available AS available,
    t.created_at
FROM ledgerd.transactions AS t
WHERE t.kind <> 'cancel' AND ledgerd.moves_money(t.kind);

-- The clock of transactions, holds and advances. Tokens use the real clock.
CREATE FUNCTION ledgerd.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT clock_timestamp() + s.clock_offset FROM ledgerd.settings AS s;
END;

-- A transaction with all that is needed to show it. The currency is that of whichever side is not the world.
CREATE VIEW ledgerd.records AS
SELECT
    t.*,
    debit.user_id AS debit_user,
    credit.user_id AS credit_user,
    c.currency,
    c.scale,
    k.user_id AS actor_user,
    k.scopes AS actor_scopes
FROM ledgerd.transactions AS t
LEFT JOIN ledgerd.accounts AS debit ON debit.account_id = t.debit_account
LEFT JOIN ledgerd.accounts AS credit ON credit.account_id = t.credit_account
INNER JOIN ledgerd.currencies AS c ON c.currency = coalesce(debit.currency, credit.currency)
LEFT JOIN ledgerd.tokens AS k ON k.token_id = t.token_id;
