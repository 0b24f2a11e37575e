-- How many changes the records have seen. The same number stands in a file
-- beside the database, so that a database that has lost changes is noticed.
CREATE TABLE ledger (
	one      INTEGER PRIMARY KEY CHECK (one = 1),
	identity INTEGER NOT NULL, -- random: tells this database from another
	seq      INTEGER NOT NULL
) STRICT;
INSERT INTO ledger VALUES (1, random(), 0);

CREATE TRIGGER ledger_inserted AFTER INSERT ON job BEGIN UPDATE ledger SET seq = seq + 1; END;
CREATE TRIGGER ledger_updated  AFTER UPDATE ON job BEGIN UPDATE ledger SET seq = seq + 1; END;
CREATE TRIGGER ledger_deleted  AFTER DELETE ON job BEGIN UPDATE ledger SET seq = seq + 1; END;
