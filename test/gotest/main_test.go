package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// module has a package of each kind.
var module = map[string]string{
	"go.mod":         "module example.com/m\n\ngo 1.26\n",
	"fine/a_test.go": "package fine\n\nimport \"testing\"\n\nfunc TestFine(t *testing.T) { t.Log(\"not shown\") }\nfunc TestLacks(t *testing.T) { t.Skip(\"requires luck\") }\n",
	"bad/a_test.go": "package bad\n\nimport \"testing\"\n\nfunc TestGood(t *testing.T) { t.Log(\"not shown\") }\n" +
		"func TestBad(t *testing.T) {\n\tt.Run(\"sub/x\", func(t *testing.T) { t.Error(\"wrong\") })\n}\n",
	"broken/a_test.go": "package broken\n\nfunc f() { undefined() }\n",
	"panics/a_test.go": "package panics\n\nimport \"testing\"\n\nfunc TestPanics(t *testing.T) { panic(\"at the disco\") }\n",
	"hangs/a_test.go": "package hangs\n\nimport \"testing\"\n\nfunc TestWaits(t *testing.T) { t.Parallel() }\n" +
		"func TestHangs(t *testing.T) {\n\tt.Run(\"sub\", func(t *testing.T) { t.Log(\"got here\"); waitForever() })\n}\nfunc waitForever() { <-make(chan int) }\n",
	"stays/a_test.go": "package stays\n\nimport (\n\t\"testing\"\n\t\"time\"\n)\n\nfunc TestMain(m *testing.M) {\n\tm.Run()\n\ttime.Sleep(time.Hour)\n}\nfunc TestFine(t *testing.T) {}\n",
	"none/a.go":       "package none\n",
}

// TestRun runs go test itself.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	for name, text := range module {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for _, test := range []struct {
		pkg    string
		args   []string
		limit  time.Duration
		status int
		want   []string // regular expressions over the output
		never  []string
	}{
		{"fine", nil, time.Hour, 0, []string{`(?m)^ok  \texample.com/m/fine\t[0-9.]+s$`, `(?m)^SKIP  example.com/m/fine TestLacks: .*requires luck$`, `(?m)^ +[0-9.]+s  example.com/m/fine TestFine$`},
			[]string{"not shown", "=== RUN", "PASS"}},
		{"fine", []string{"-v"}, time.Hour, 0, []string{`(?m)^=== RUN   TestFine$`, `not shown`, `(?m)^--- SKIP: TestLacks `, `(?m)^ok  \texample.com/m/fine\t[0-9.]+s$`}, nil},
		{"bad", nil, time.Hour, 1, []string{`(?m)^--- FAIL: TestBad `, `(?m)^--- FAIL: TestBad/sub/x `, `a_test.go:7: wrong`, `(?m)^FAIL\texample.com/m/bad\t[0-9.]+s$`}, []string{"not shown", "=== RUN", "HANG"}},
		{"broken", nil, time.Hour, 1, []string{`undefined: undefined`, `(?m)^FAIL\texample.com/m/broken \[build failed\]$`}, nil},
		{"panics", nil, time.Hour, 1, []string{`at the disco`, `panics.TestPanics`, `(?m)^FAIL\texample.com/m/panics\t`}, nil},
		{"hangs", nil, 2 * time.Second, 1, []string{`(?m)^HANG: TestHangs/sub of example.com/m/hangs has run for more than 2s`, `got here`, `waitForever`, `(?m)^FAIL\texample.com/m/hangs\t`}, []string{"TestWaits of"}},
		{"stays", nil, 2 * time.Second, 1, []string{`(?m)^HANG: TestMain of example.com/m/stays`, `(?m)^FAIL\texample.com/m/stays\t`}, nil},
		{"none", nil, time.Hour, 0, []string{`(?m)^\?   \texample.com/m/none\t\[no test files\]$`}, nil},
	} {
		t.Run(test.pkg, func(t *testing.T) {
			var out strings.Builder
			status, err := run(&out, &out, test.limit, 20, append(test.args, "-count=1", "-timeout=1m", "./"+test.pkg))
			if err != nil || status != test.status {
				t.Errorf("status %d, %v, want %d", status, err, test.status)
			}
			for _, want := range test.want {
				if !regexp.MustCompile(want).MatchString(out.String()) {
					t.Errorf("lacks %s", want)
				}
			}
			for _, never := range test.never {
				if strings.Contains(out.String(), never) {
					t.Errorf("has %q", never)
				}
			}
			if t.Failed() {
				t.Logf("%s", out.String())
			}
		})
	}
}
