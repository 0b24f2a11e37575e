package job

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv/peer"
)

func TestTree(t *testing.T) {
	t.Parallel()
	status, stdout, stderr := rnxAt(t, serveWatched(t).host, "job", "tree", peer.IDA)
	want := strings.Join([]string{
		"PROCESS    HOST-PID  COMMAND",
		"sh(1)      1001      sh -c x",
		"`-a\\nb(2)  1002      a\\x1b[2Jb\\nc \\u202e\uFFFD",
		"  `-zz(4)  1004      [zz]",
		"put in(3)  1003      put in",
		"and 7 more that were not looked at\n",
	}, "\n")
	if status != 0 || stdout != want || stderr != "" {
		t.Errorf("got %d, %q\n%swant\n%s", status, stderr, stdout, want)
	}
	status, _, stderr = rnxAt(t, serveWatched(t).host, "job", "tree", peer.IDC)
	if status != 1 || stderr != "rnx: job cccccccc has ended: COMPLETED\n" {
		t.Errorf("got %d, %q", status, stderr)
	}
	status, stdout, stderr = rnxAt(t, serveWatched(t).host, "job", "tree", "--json", "aa")
	var got treeJSON
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 0 || stderr != "" {
		t.Fatalf("got %d, %q, %q, %v", status, stdout, stderr, err)
	}
	var order []string
	for _, p := range got.Processes {
		order = append(order, fmt.Sprintf("%d<%d@%d", p.PID, p.PPID, *p.Depth))
	}
	if want := []string{"1<0@0", "2<1@1", "4<2@2", "3<0@0"}; !slices.Equal(order, want) || got.UUID != peer.IDA || got.Omitted != 7 || !got.Time.Equal(clock(0)) {
		t.Errorf("got %v in %+v, want %v", order, got, want)
	}
	if p := got.Processes[1]; p.Name != "a\nb" || p.Command != "a\x1b[2Jb\nc \u202e\uFFFD" || p.HostPID != 1002 || p.UID != 2 || p.State != "S" || p.Threads != 2 ||
		p.CPUPercent != 20 || p.CPUMS != 2000 || p.Memory != 8<<20 || !p.Started.Equal(clock(-60)) {
		t.Errorf("got %+v", p)
	}
}

// TestForest: whatever the daemon says, each process is shown once.
func TestForest(t *testing.T) {
	t.Parallel()
	deep := ""
	var chain []string
	for pid := 1; pid <= 5000; pid++ {
		chain = append(chain, fmt.Sprintf("%d<%d", pid, pid-1))
	}
	for d := range maxTreeDepth {
		deep += fmt.Sprintf("%s%d\n", strings.Repeat("  ", max(0, d-1))+map[bool]string{true: "└─"}[d > 0], d+1)
	}
	for _, tt := range []struct {
		name, processes, want string
	}{
		{"none", "", ""},
		{"one", "1<0", "1\n"},
		{"shape", "1<0 2<1 3<1 4<2 5<2 6<3 7<1", "1\n├─2\n│ ├─4\n│ └─5\n├─3\n│ └─6\n└─7\n"},
		{"out of order", "7<1 3<2 2<1 1<0", "1\n├─2\n│ └─3\n└─7\n"},
		{"roots", "1<0 5<0 6<5 9<44", "1\n5\n└─6\n9\n"},
		{"no PID 1", "3<1 4<3", "3\n└─4\n"},
		{"its own parent", "1<0 2<2", "1\n2\n"},
		{"a circle", "1<0 2<3 3<4 4<2", "1\n2\n└─4\n  └─3\n"},
		{"a number twice", "1<0 2<1 2<1 3<2", "1\n├─2\n│ └─3\n└─2\n"},
		{"deep", strings.Join(chain, " "), deep},
	} {
		var all []joblet.Process
		for i, word := range strings.Fields(tt.processes) {
			p := joblet.Process{HostPID: 100 + i}
			if _, err := fmt.Sscanf(word, "%d<%d", &p.PID, &p.PPID); err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		forest := makeForest(all)
		var b strings.Builder
		for _, n := range forest {
			fmt.Fprintf(&b, "%s%d\n", n.branch(unicodeLines), n.PID)
		}
		if got := b.String(); len(forest) != len(all) || got != tt.want && (tt.name != "deep" || !strings.HasPrefix(got, tt.want)) {
			t.Errorf("%s: got\n%.3000s\nwant\n%s", tt.name, got, tt.want)
		}
		for _, line := range strings.Split(b.String(), "\n") {
			if len([]rune(line)) > 2*maxTreeDepth+len("…5000") {
				t.Fatalf("%s: a line of %d", tt.name, len(line))
			}
		}
		if tt.name == "deep" && !strings.HasSuffix(b.String(), "└─…5000\n") {
			t.Errorf("got %q", b.String()[b.Len()-200:])
		}
	}
}

func TestUTF8Locale(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false},
		{"", "", "en_US.UTF-8", true},
		{"", "", "C.utf8", true},
		{"C", "", "en_US.UTF-8", false},
		{"", "POSIX", "en_US.UTF-8", false},
		{"de_DE.UTF-8", "POSIX", "C", true},
		{"", "", "de_DE.ISO-8859-1", false},
	} {
		got := utf8Locale(func(name string) string {
			return map[string]string{"LC_ALL": tt.all, "LC_CTYPE": tt.ctype, "LANG": tt.lang}[name]
		})
		if got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
}
