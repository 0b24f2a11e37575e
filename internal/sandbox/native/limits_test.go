package native

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// TestCoreLimit: no job has a limit on core dumps of 0, of which a core_pattern with
// "|" takes no notice.
func TestCoreLimit(t *testing.T) {
	t.Parallel()
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &have); err != nil || have.Max < noCore && !mayRaise() {
		t.Skipf("requires a hard limit on core dumps of at least 1: it is %d, %v", have.Max, err)
	}
	const all = joblet.Unlimited
	for _, test := range []struct {
		asked map[string]joblet.Rlimit
		want  protocol.Rlimit
	}{
		{nil, protocol.Rlimit{Soft: 1, Hard: 1}},
		{map[string]joblet.Rlimit{"core": {}}, protocol.Rlimit{Soft: 1, Hard: 1}},
		{map[string]joblet.Rlimit{"core": {Soft: 0, Hard: all}}, protocol.Rlimit{Soft: 1, Hard: all}},
		{map[string]joblet.Rlimit{"core": {Soft: 4096, Hard: all}}, protocol.Rlimit{Soft: 4096, Hard: all}},
	} {
		test.want.Resource = unix.RLIMIT_CORE
		var got []protocol.Rlimit
		for _, l := range rlimitsOf(joblet.Limits{Rlimits: test.asked}) {
			if l.Resource == unix.RLIMIT_CORE {
				got = append(got, l)
			}
		}
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("%v: %+v, want %+v", test.asked, got, test.want)
		}
	}
}

// TestCorePattern: nobody may have core dumps where a program of the host would get
// them. Not parallel: it says what the pattern is.
func TestCorePattern(t *testing.T) {
	defer func(before string) { corePattern = before }(corePattern)
	corePattern = filepath.Join(t.TempDir(), "pattern")
	for _, test := range []struct {
		pattern string
		dumps   bool // may be asked for
		lacking bool // in the table of joblet check
	}{
		{"core", true, false}, {"/var/core/%p", true, false}, {"|/usr/lib/systemd/systemd-coredump %P", false, false}, {"@/run/coredump.socket", false, true},
	} {
		if err := os.WriteFile(corePattern, []byte(test.pattern+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := checkRlimit("core", joblet.Rlimit{Soft: 0, Hard: 1}); err != nil {
			t.Errorf("%s: 1: %v", test.pattern, err)
		}
		err := checkRlimit("core", joblet.Rlimit{Soft: 4096, Hard: 4096})
		if test.dumps && err != nil || !test.dumps && joblet.KindOf(err) != joblet.FailedPrecondition {
			t.Errorf("%s: 4096: %v", test.pattern, err)
		}
		if err := CheckCoreDumps(); (err != nil) != test.lacking {
			t.Errorf("%s: %v", test.pattern, err)
		}
	}
}
