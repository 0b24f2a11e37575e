package store

import (
	"context"
	"errors"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

// maxFaults is how many faults of each sort Check tells.
const maxFaults = 5

// checks are queries each of which names what is wrong, in words, in its rows.
var checks = []struct{ fault, query string }{
	{"", `PRAGMA integrity_check(5)`},
	{"the state is unknown of job ", `SELECT id FROM job WHERE state NOT IN (` + stateList() + `) LIMIT ?`},
	{"the spec is not JSON of job ", `SELECT id FROM job WHERE NOT json_valid(spec) LIMIT ?`},
	{"the past attempts are not JSON of job ", `SELECT id FROM job WHERE past <> '' AND NOT json_valid(past) LIMIT ?`},
	{"the name is not the spec's of job ", `SELECT id FROM job
		WHERE CASE WHEN json_valid(spec) THEN name IS NOT spec ->> '$.name' END LIMIT ?`},
	{"the idempotency key is not the spec's of job ", `SELECT id FROM job
		WHERE CASE WHEN json_valid(spec) THEN idem_key IS NOT spec ->> '$.idempotency_key' END LIMIT ?`},
	{"labels without a job, in row ", `SELECT DISTINCT seq FROM label WHERE seq NOT IN (SELECT seq FROM job) LIMIT ?`},
	{"labels out of step with job ", `SELECT DISTINCT job.id FROM label JOIN job USING (seq)
		WHERE label.owner <> job.owner OR label.state <> job.state OR label.ended IS NOT job.ended LIMIT ?`},
	{"the number of labels is wrong of job ", `SELECT id FROM job
		WHERE labels <> (SELECT count(*) FROM label WHERE label.seq = job.seq) LIMIT ?`},
	{"the labels are not the spec's of job ", `SELECT id FROM job WHERE labels > 0 AND CASE WHEN json_valid(spec) THEN
		(SELECT json_group_object(name, value) FROM (SELECT name, value FROM label WHERE label.seq = job.seq ORDER BY name))
		IS NOT (SELECT json_group_object(key, value) FROM (SELECT key, value FROM json_each(spec, '$.labels') ORDER BY key)) END LIMIT ?`},
}

func stateList() string {
	var names []string
	for _, s := range joblet.States() {
		names = append(names, "'"+s.String()+"'")
	}
	return strings.Join(names, ", ")
}

// Check reads all records and reports, with an error of kind
// FailedPrecondition, what of them is damaged or contradicts the rest. It
// takes some seconds for a million records and holds up no other call.
func (s *Store) Check(ctx context.Context) error {
	return s.read(ctx, "cannot check the job records", func(c *sqlite.Conn) error { return s.checkConn(ctx, c, true) })
}

// checkConn is Check through a connection. Without whole it leaves out what
// records of an older version do not have.
func (s *Store) checkConn(ctx context.Context, c *sqlite.Conn, whole bool) error {
	return snapshot(ctx, c, func() error {
		var faults []string
		all := checks
		if !whole {
			all = checks[:1]
		}
		for _, check := range all {
			var args []any
			if strings.HasSuffix(check.query, "?") {
				args = append(args, int64(maxFaults))
			}
			found, err := column(c, nil, (*sqlite.Stmt).ColumnText, check.query, args...)
			if err != nil {
				return err
			}
			for _, what := range found {
				if what == "ok" { // integrity_check has found nothing
					continue
				}
				faults = append(faults, check.fault+joblet.PrintableStart(what, 200))
			}
		}
		if faults != nil {
			return damaged(s.path, errors.New(strings.Join(faults, "; ")))
		}
		return nil
	})
}
