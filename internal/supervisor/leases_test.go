package supervisor

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
)

// TestOldLeases: records and job files of versions that had no leases say the first of
// the ids, and are read as a lease on these.
func TestOldLeases(t *testing.T) {
	t.Parallel()
	const base = 0x70050000
	if got := native.IDBase(outcome.LeasesOf(store.Record{Job: joblet.Job{IDBase: base}})); got != base {
		t.Errorf("record: %#x", got)
	}
	if got := outcome.LeasesOf(store.Record{Job: joblet.Job{State: joblet.Pending}}); len(got) > 0 {
		t.Errorf("record of a job that never ran: %s", got)
	}
	leases := native.IDLease(base)
	leases["cgroup"] = sandbox.Lease(`{"name":"x"}`)
	if got := outcome.LeasesOf(store.Record{Job: joblet.Job{IDBase: 1}, Leases: leases}); len(got) != 2 || native.IDBase(got) != base {
		t.Errorf("new record: %s", got)
	}

	s := newSite(t)
	id := joblet.NewID()
	file := map[string]any{
		"id": id, "owner": "uid:0", "created": time.Now(), "spec": joblet.Spec{Command: "true", WorkDir: "/work"},
		"attempt": 1, "box": joblet.NewID(), "id_base": base,
	}
	s.check(os.Mkdir(s.path("jobs", id), 0o700))
	for _, test := range []struct {
		name  string
		adds  any
		rec   sandbox.Leases
		wants uint32
	}{{"old", nil, nil, base}, {"new", native.IDLease(base + native.IDCount), native.IDLease(base + native.IDCount), base + native.IDCount}} {
		if test.adds != nil {
			file["leases"] = test.adds
		}
		data, err := json.Marshal(file)
		s.check(err)
		s.write(string(protocol.Seal(data)), "jobs", id, jobdir.FileName)
		s.write("", "jobs", id, "exit.json.tmp")
		rec, began, err := outcome.FromDir(s.path("jobs", id))
		if err != nil || !began || rec.IDBase != test.wants || native.IDBase(outcome.LeasesOf(rec)) != test.wants || len(rec.Leases) != len(test.rec) {
			t.Errorf("%s: %v, %v: %#x %s", test.name, began, err, rec.IDBase, rec.Leases)
		}
	}
}
