package jobdir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/joblet/joblet/internal/shim/protocol"
)

func TestPutRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "exit-2.json")
	// What a shim has reserved is longer than what is written there.
	if err := os.WriteFile(name+".tmp", make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	want := protocol.Record{Signal: 9, Cause: protocol.CauseStop, EndedNanos: 1}
	if err := PutExit(dir, 2, want); err != nil {
		t.Fatal(err)
	}
	if err := PutExit(dir, 2, protocol.Record{Code: 1}); err != nil { // the first one stays
		t.Fatal(err)
	}
	got, err := ReadExit(dir, 2)
	if err != nil || got.Signal != want.Signal || got.Cause != want.Cause || got.EndedNanos != want.EndedNanos {
		t.Errorf("%+v %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}
