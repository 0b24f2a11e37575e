package testenv

import (
	"flag"
	"fmt"
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

// Require skips the test unless ok. The format says what it requires: a kernel feature, a
// processor, a file system.
func Require(t testing.TB, ok bool, format string, args ...any) {
	t.Helper()
	if !ok {
		lacks(t, fmt.Sprintf(format, args...))
	}
}

func lacks(t testing.TB, what string) {
	t.Helper()
	if All() {
		t.Fatalf("requires %s, and CI=true or JOBLET_TEST_ALL is set", what)
	}
	t.Skipf("requires %s", what)
}

// SkipSuite is for the TestMain of a suite that takes minutes and needs root, a part of
// scripts/test. It reports whether to skip all tests, and the status to exit with then.
// A plain go test ./... skips the suite; scripts/test, which sets JOBLET_TEST_BIN, and
// go test with -run do not.
func SkipSuite(part string) (status int, skip bool) {
	if !flag.Parsed() {
		flag.Parse()
	}
	what := ""
	switch run := flag.Lookup("test.run"); {
	case os.Geteuid() != 0:
		what = "root"
	case os.Getenv("JOBLET_TEST_BIN") == "" && run.Value.String() == "" && !All():
		what = "scripts/test " + part + ", or -run"
	default:
		return 0, false
	}
	if All() {
		fmt.Fprintf(os.Stderr, "requires %s, and CI=true or JOBLET_TEST_ALL is set\n", what)
		return 1, true
	}
	fmt.Fprintf(os.Stderr, "all tests skipped: requires %s\n", what)
	return 0, true
}
