-- One row per job. seq is the time of creation in nanoseconds, moved up to the
-- next free number when two jobs share one: the row id alone is the order of
-- every list and the cursor of every page.
CREATE TABLE job (
	seq         INTEGER PRIMARY KEY,
	id          TEXT    NOT NULL UNIQUE,
	state       TEXT    NOT NULL,
	owner       TEXT    NOT NULL,
	name        TEXT,             -- NULL: the job has none
	created     INTEGER NOT NULL, -- this and the next two: ns since 1970 UTC
	started     INTEGER,          -- NULL: not yet
	ended       INTEGER,          -- NULL: not yet
	exit_code   INTEGER,          -- NULL: no exit status
	exit_signal INTEGER,
	reason      TEXT    NOT NULL,
	pid         INTEGER NOT NULL,
	id_base     INTEGER NOT NULL,
	log_bytes   INTEGER NOT NULL,
	spec        TEXT    NOT NULL  -- JSON, secrets masked
) STRICT;

-- An index's entries end with the row id, so each (owner, state) and each
-- (name, owner, state) is one range in the order of lists.
CREATE INDEX job_owner ON job (owner, state);
CREATE INDEX job_name  ON job (name, owner, state) WHERE name IS NOT NULL;
