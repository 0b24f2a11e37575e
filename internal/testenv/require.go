package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// All reports whether every test must run: a test that cannot fails instead of
// skipping, so that continuous integration does not hide it.
func All() bool {
	return os.Getenv("CI") == "true" || os.Getenv("JOBLET_TEST_ALL") != ""
}

// RequireRoot skips the test for a user who is not root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lacks(t, "root")
	}
}

// RequireProgram skips the test where the program is not installed, and names
// Debian's package of it. It returns the program's path.
func RequireProgram(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacks(t, name+" (package "+debian+")")
	}
	return path
}

func lacks(t testing.TB, what string) {
	t.Helper()
	if All() {
		t.Fatalf("requires %s, and CI=true or JOBLET_TEST_ALL is set", what)
	}
	t.Skipf("requires %s", what)
}

// SkipAll is for a TestMain whose tests all need root. It reports whether to leave
// them out, and the status to exit with then.
func SkipAll() (status int, skip bool) {
	switch {
	case os.Geteuid() == 0:
		return 0, false
	case All():
		os.Stderr.WriteString("requires root, and CI=true or JOBLET_TEST_ALL is set\n")
		return 1, true
	}
	os.Stderr.WriteString("all tests skipped: requires root\n")
	return 0, true
}
