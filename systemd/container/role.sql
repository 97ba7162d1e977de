-- The daemon's role, made once with the database: it may execute the ledger's functions, and nothing else.
\getenv password LEDGERD_PASSWORD
CREATE ROLE ledgerd_daemon NOLOGIN;
CREATE ROLE ledgerd LOGIN PASSWORD :'password' IN ROLE ledgerd_daemon;
