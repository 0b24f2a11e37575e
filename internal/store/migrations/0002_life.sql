-- The whole life of a job. Columns that few jobs use are empty in most rows
-- and then take a byte or none.
ALTER TABLE job ADD COLUMN scheduled  INTEGER;                    -- ns since 1970 UTC; NULL: was to run at once
ALTER TABLE job ADD COLUMN parent     TEXT;                       -- id of the repeating job; NULL: none
ALTER TABLE job ADD COLUMN attempt    INTEGER NOT NULL DEFAULT 0; -- number of the latest run
ALTER TABLE job ADD COLUMN past       TEXT    NOT NULL DEFAULT ''; -- the runs before it, JSON; '': none
ALTER TABLE job ADD COLUMN failure    INTEGER NOT NULL DEFAULT 0; -- a joblet.Kind: 9 command not found, 10 not executable, …
ALTER TABLE job ADD COLUMN work_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN box        TEXT    NOT NULL DEFAULT ''; -- the latest attempt's; '': none
ALTER TABLE job ADD COLUMN idem_key   TEXT;                       -- NULL: the job has none
ALTER TABLE job ADD COLUMN sealed     BLOB;                       -- secrets, encrypted; NULL: none
ALTER TABLE job ADD COLUMN disk_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN labels     INTEGER NOT NULL DEFAULT 0; -- how many; 0 spares changes a look into label

-- One row per label of a job, for lookups: what a job's labels are stands in
-- its spec. owner, state and ended are copies of the job's.
CREATE TABLE label (
	seq   INTEGER NOT NULL,
	name  TEXT    NOT NULL,
	value TEXT    NOT NULL,
	owner TEXT    NOT NULL,
	state TEXT    NOT NULL,
	ended INTEGER,
	PRIMARY KEY (seq, name)
) STRICT, WITHOUT ROWID;

-- Triggers, because a statement is done as a whole or not at all with all
-- that its triggers do.
CREATE TRIGGER job_inserted AFTER INSERT ON job WHEN new.labels > 0 BEGIN
	INSERT INTO label (seq, name, value, owner, state, ended)
		SELECT new.seq, key, value, new.owner, new.state, new.ended FROM json_each(new.spec, '$.labels');
END;
CREATE TRIGGER job_updated AFTER UPDATE OF state, ended ON job
	WHEN new.labels > 0 AND (new.state IS NOT old.state OR new.ended IS NOT old.ended) BEGIN
	UPDATE label SET state = new.state, ended = new.ended WHERE seq = new.seq;
END;
CREATE TRIGGER job_deleted AFTER DELETE ON job WHEN old.labels > 0 BEGIN
	DELETE FROM label WHERE seq = old.seq;
END;

-- What a list may be narrowed by, then owner and state: one range in the
-- order of lists. ended is there to be compared without a look at the row.
DROP INDEX job_owner;
DROP INDEX job_name;
CREATE INDEX job_owner   ON job (owner, state, seq, ended);
CREATE INDEX job_name    ON job (name, owner, state, seq, ended) WHERE name IS NOT NULL;
CREATE INDEX job_parent  ON job (parent, owner, state, seq, ended) WHERE parent IS NOT NULL;
CREATE INDEX label_value ON label (name, value, owner, state, seq, ended);
CREATE INDEX label_name  ON label (name, owner, state, seq, ended);

CREATE UNIQUE INDEX job_key ON job (owner, idem_key) WHERE idem_key IS NOT NULL;

-- The jobs that have ended, by when, and what they take on the disk.
CREATE INDEX job_ended ON job (ended, disk_bytes)
	WHERE state IN ('COMPLETED', 'FAILED', 'STOPPED', 'CANCELED', 'TIMEOUT', 'LOST');

-- Where somebody set the clock back. All other jobs that ended before some
-- moment were created before it, too.
CREATE INDEX job_backwards ON job (ended, seq) WHERE ended < created;
