-- What the latest attempt holds of the host, by resource.
ALTER TABLE job ADD COLUMN leases TEXT NOT NULL DEFAULT ''; -- JSON object; '': of an earlier version, or nothing
