-- Reading every transaction in the order of commits, whichever daemon committed it.
--
-- Neither a sequence nor a time is in that order: rows that commit late would be skipped. A reader keeps the snapshot
-- up to which it has read; what is new since then has an xact that the snapshot calls unfinished, or a later one. New
-- rows have the highest xact, so the index is appended to, and many rows of one call share an entry.
CREATE INDEX transactions_xact ON ledgerd.transactions (xact);
