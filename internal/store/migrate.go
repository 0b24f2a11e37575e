package store

import (
	"embed"
	"fmt"
	"io/fs"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// applicationID marks a SQLite file as ours (PRAGMA application_id): "JOBL".
const applicationID = 0x4a4f424c

//go:embed migrations/*.sql
var migrations embed.FS

// steps returns the embedded migrations in order: step i leads from schema
// version i to version i+1 and never changes once it is released.
func steps() ([]string, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []string
	for _, name := range names {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, string(text))
	}
	return all, nil
}

// migrate brings a database from schema version from to version len(steps),
// each step in a transaction of its own together with its version number, so
// that an interrupted migration goes on where it was.
func migrate(c *sqlite.Conn, from int, steps []string) error {
	for version := from; version < len(steps); version++ {
		// The pragmas take effect with the transaction: both live in the
		// file's header.
		script := fmt.Sprintf("%s\nPRAGMA application_id = %d;\nPRAGMA user_version = %d;",
			steps[version], applicationID, version+1)
		if err := sqlitex.ExecuteScript(c, script, nil); err != nil {
			return fmt.Errorf("cannot migrate the schema to version %d: %w", version+1, err)
		}
	}
	return nil
}

// pragma returns the integer that a pragma or another one-value query gives.
func pragma(c *sqlite.Conn, query string) (int64, error) {
	var v int64
	err := sqlitex.ExecuteTransient(c, query, &sqlitex.ExecOptions{
		ResultFunc: func(stmt *sqlite.Stmt) error { v = stmt.ColumnInt64(0); return nil },
	})
	return v, err
}
