package store

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestLibcVersion: SQLite is written against one version of modernc.org/libc, and
// breaks with others. This package calls libc itself (syncData), so go.mod names its
// version, which an upgrade of either could pull apart.
func TestLibcVersion(t *testing.T) {
	t.Parallel()
	list := func(format, module string) string {
		out, err := exec.Command("go", "list", "-m", "-f", format, module).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", module, err)
		}
		return strings.TrimSpace(string(out))
	}
	text, err := os.ReadFile(list("{{.GoMod}}", "modernc.org/sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`modernc\.org/libc (v\S+)`).FindSubmatch(text)
	if required == nil {
		t.Fatalf("modernc.org/sqlite does not require modernc.org/libc: %s", text)
	}
	if got := list("{{.Version}}", "modernc.org/libc"); got != string(required[1]) {
		t.Errorf("go.mod has modernc.org/libc %s, and modernc.org/sqlite requires %s: go get modernc.org/libc@%[2]s", got, required[1])
	}
}
