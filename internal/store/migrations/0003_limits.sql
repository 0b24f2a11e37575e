-- What a job may take, which can be changed while it runs, and what it took.
ALTER TABLE job ADD COLUMN limits        TEXT    NOT NULL DEFAULT ''; -- JSON; '': as in spec
ALTER TABLE job ADD COLUMN usage         TEXT    NOT NULL DEFAULT ''; -- JSON; '': nothing is known
ALTER TABLE job ADD COLUMN out_of_memory INTEGER NOT NULL DEFAULT 0;
