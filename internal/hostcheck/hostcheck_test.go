package hostcheck

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/testenv"
)

// TestCheck tries this host out, beside an engine, and looks for what is left.
func TestCheck(t *testing.T) {
	testenv.RequireRoot(t)
	t.Setenv("TMPDIR", t.TempDir()) // where nobody else checks
	e, err := native.Open(native.Config{RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	before := leftovers(t)
	found, err := Check(t.Context(), filepath.Join(t.TempDir(), "not", "yet", "made"))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]FindingState{}
	for _, f := range found {
		status[f.Feature] = f.Status
		if f.Cost == "" || (f.Status == Lacking || f.Status == Missing) != (f.Mend != "") || f.Status != Present && f.Found == "" {
			t.Errorf("says too little: %+v", f)
		}
		if f.Status == Missing || f.Status == Untried { // other tests run jobs here
			t.Errorf("%+v", f)
		}
	}
	if len(status) != len(found) {
		t.Error("a feature is there twice")
	}
	for _, name := range []string{"user namespace", "tmpfs", "controller pids", "a whole sandbox"} {
		if status[name] != Present {
			t.Errorf("%s: %q", name, status[name])
		}
	}
	if after := leftovers(t); !slices.Equal(after, before) {
		t.Errorf("before: %v, after: %v", before, after)
	}
}

// leftovers lists what a check makes, by name.
func leftovers(t *testing.T) (all []string) {
	t.Helper()
	group := "joblet-check-" + strconv.Itoa(os.Getpid()) // others may be checking
	for _, pattern := range []string{"/sys/fs/cgroup/" + group, "/sys/fs/cgroup/*/" + group, filepath.Join(os.TempDir(), "joblet-check-*")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestFind(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		needed bool
		found  string
		err    error
		want   Finding
	}{
		"there":   {true, "x", nil, Finding{Status: Present, Found: "x"}},
		"needed":  {true, "", unix.ENOSYS, Finding{Status: Missing, Found: unix.ENOSYS.Error(), Mend: "mend"}},
		"wanted":  {false, "", unix.ENOSYS, Finding{Status: Lacking, Found: unix.ENOSYS.Error(), Mend: "mend"}},
		"untried": {true, "why", errUntried, Finding{Status: Untried, Found: "why"}},
	} {
		f := feature{name, test.needed, "cost", "mend", func(context.Context) (string, error) { return test.found, test.err }}
		test.want.Feature, test.want.Cost = name, "cost"
		if got := f.find(t.Context()); got != test.want {
			t.Errorf("got %+v, want %+v", got, test.want)
		}
	}
}

// TestCheckNothing shows what is said when nearly nothing works.
func TestCheckNothing(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	c := &checker{stateDir: "/proc", tmp: t.TempDir(), shimErr: broken, groupsErr: broken}
	missing := 0
	for _, f := range c.features() {
		got := f.find(t.Context())
		if got.Status == Missing {
			missing++
			if got.Mend == "" || !strings.Contains(got.Found, "broken") && !strings.Contains(got.Found, "there are no cgroups") {
				t.Errorf("%+v", got)
			}
		}
	}
	if want := 1 + 7 + 1 + 1; missing != want { // memfd, namespaces, cgroups, the sandbox
		t.Errorf("%d features are missing, want %d", missing, want)
	}
}
