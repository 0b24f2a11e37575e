-- The system calls that a job was refused.
ALTER TABLE job ADD COLUMN denied TEXT NOT NULL DEFAULT ''; -- JSON; '': none is known
