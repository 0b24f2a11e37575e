package flags

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestSampleInterval(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"1s": time.Second, "100ms": 100 * time.Millisecond, "2": 2 * time.Second, "0.5": 500 * time.Millisecond, "1h": time.Hour,
		"99ms": 0, "2h": 0, "": 0, "x": 0, "-1s": 0, "NaN": 0, "Inf": 0, "1e9": 0, "0": 0,
	} {
		if got, err := ParseInterval(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"0": 0, "65536": 65536, "64K": 64 << 10, "64k": 64 << 10, "10MiB": 10 << 20, "10mb": 10 << 20, "1G": 1 << 30, "2t": 2 << 40, "5B": 5,
		"8388607T": 8388607 << 40,
		"":         -1, "K": -1, "-1": -1, "+1": -1, "1.5G": 3 << 29, "1.5": -1, "1.G": -1, ".5G": -1, "-1.5G": -1, "1P": -1, "1KK": -1, "1BK": -1, "1Ki": -1, "8388608T": -1, "99999999999999999999": -1, "1 K": -1, "1i": -1,
	} {
		got, err := joblet.ParseSize(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseMoment(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("here", 2*3600)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, zone)
	for s, want := range map[string]string{
		"2h":                        "2026-01-02T01:04:05+02:00",
		"3d":                        "2025-12-30T03:04:05+02:00",
		"2026-01-01":                "2026-01-01T00:00:00+02:00",
		"2026-01-01 12:30":          "2026-01-01T12:30:00+02:00",
		"2026-01-01T12:30:15":       "2026-01-01T12:30:15+02:00",
		"2026-01-01T12:30:15Z":      "2026-01-01T12:30:15Z",
		"2026-01-01T12:30:15-05:00": "2026-01-01T12:30:15-05:00",
		"2026-13-01":                "",
		"noon":                      "",
		"":                          "",
	} {
		got, err := parseMoment(s, now)
		text := ""
		if err == nil {
			text = got.Format(time.RFC3339)
		}
		if text != want {
			t.Errorf("%q: got %s, %v; want %s", s, text, err, want)
		}
	}
}

func TestParseStatuses(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"1": "1", "3,1": "1,3", "1,3,100-110": "1,3,100-110", "5-5": "5", "1-255": "1-255", "2,1,3-4,4": "1-4", "1, 2": "1-2",
		"": "", "0": "", "256": "", "3-1": "", "1-": "", "-1": "", "a": "", "1,,2": "", "1-300": "", "0-3": "",
	} {
		all, err := parseStatuses(s)
		if got := FormatStatuses(all); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", s, got, err, want)
		}
	}
}

func TestEnvFile(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) { return "here", name == "PASSED" }
	for _, tt := range []struct {
		text string
		want map[string]string
		err  string
	}{
		{"", map[string]string{}, ""},
		{"\ufeffA=1\r\n# comment\n\n   \t\n  B= x y \nC=\"q\"=#no comment\nEMPTY=\nPASSED\nA=2", map[string]string{
			"A": "2", "B": " x y ", "C": `"q"=#no comment`, "EMPTY": "", "PASSED": "here",
		}, ""},
		{"A=1\n\nNOT_HERE\n", nil, "f.env:3: the environment of rnx has no variable NOT_HERE"},
		{"A=1\nhunter2-rest-of-a-secret\n", nil, "f.env:2: not NAME=VALUE"},
		{"discovery.type=single-node\nmy-var=1\nüber=2\n\xff=\xfe\na b=3\n%=\n2=\n", map[string]string{
			"discovery.type": "single-node", "my-var": "1", "über": "2", "\xff": "\xfe", "a b": "3", "%": "", "2": "",
		}, ""},
		{"JOBLET_JOB_ID=1\n", nil, "f.env:1: environment variable name \"JOBLET_JOB_ID\": names that begin with JOBLET_"},
		{"JOBLET_a.b=1\n", nil, "f.env:1: environment variable name \"JOBLET_a.b\": names that begin with JOBLET_"},
		{"joblet_x=1\nJOBLETX=2\nXJOBLET_=3\n", map[string]string{"joblet_x": "1", "JOBLETX": "2", "XJOBLET_": "3"}, ""},
		{"A =1\n", nil, "f.env:1: not NAME=VALUE"},
		{"export A=1\n", nil, "f.env:1: not NAME=VALUE"},
		{"=1\n", nil, "f.env:1: not NAME=VALUE"},
		{"A=\x00hunter2\n", nil, "f.env:1: A holds a NUL"},
		{"hunter2\x00=x\n", nil, "f.env:1: the line holds a NUL"},
		{"A=" + strings.Repeat("x", joblet.MaxStringLen) + "\n", nil, "f.env:1: A is "},
	} {
		env := map[string]string{}
		err := parseEnvFile(env, "f.env", []byte(tt.text), lookup)
		switch {
		case tt.err == "" && (err != nil || !reflect.DeepEqual(env, tt.want)):
			t.Errorf("%.60q: got %q, %v", tt.text, env, err)
		case tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)):
			t.Errorf("%.60q: got %v, want %s", tt.text, err, tt.err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.60q: the error shows the secret: %v", tt.text, err)
		}
	}
}

// TestEnvOrder: files first, in their order, then what is given.
func TestEnvOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two, large := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3")
	for name, text := range map[string]string{one: "A=1\nB=1\nC=1\n", two: "B=2\nC=2\n", large: strings.Repeat("#", maxEnvFile+1)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v := Variables{Flag: "--env", Files: []string{one, two}, Given: []string{"C=3"}}
	got, err := v.Read(os.LookupEnv)
	if want := map[string]string{"A": "1", "B": "2", "C": "3"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	v.Files = []string{large}
	if _, err := v.Read(os.LookupEnv); err == nil || !strings.Contains(err.Error(), "is longer than") {
		t.Errorf("large file: got %v", err)
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add([]byte("A=1\n#x\n B\r\n=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		env := map[string]string{}
		if parseEnvFile(env, "f", text, func(string) (string, bool) { return "v", true }) != nil {
			return
		}
		for name, value := range env {
			if joblet.ValidEnvName(name) != nil || strings.ContainsAny(value, "\x00\n") {
				t.Errorf("%q gives %q=%q", text, name, value)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("1,3,100-110")
	f.Add("64M")
	f.Add("1w2d3h")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := joblet.ParseSize(s); err == nil && n < 0 {
			t.Errorf("size %q: %d", s, n)
		}
		if d, err := joblet.ParseDuration(s); err == nil && d < 0 {
			t.Errorf("span %q: %d", s, d)
		}
		all, err := parseStatuses(s)
		if err != nil {
			return
		}
		again, err := parseStatuses(FormatStatuses(all))
		if err != nil || !reflect.DeepEqual(all, again) {
			t.Errorf("statuses %q: %v, then %v, %v", s, all, again, err)
		}
	})
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{"TERM": 15, "sigint": 2, "9": 9, "64": 64, "SIGRTMIN": 34, "rtmin+3": 37, "SIGRTMAX-1": 63, "RTMAX": 64,
		"RTMIN-1": 0, "RTMAX+1": 0, "RTMIN3": 0, "RTMIN+": 0, "RTMIN+99999999999999999999": 0, "0": 0, "65": 0, "NOPE": 0, "": 0} {
		if got, err := ParseSignal(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v", s, got, err)
		}
	}
	if got := SignalName(15) + " " + SignalName(40); got != "SIGTERM signal 40" {
		t.Errorf("got %s", got)
	}
}
