package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox"
)

func TestWithUser(t *testing.T) {
	t.Parallel()
	const root, nobody = "root:x:0:0:root:/root:/bin/sh\n", "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	tests := []struct {
		name               string
		text               string
		uid, gid           uint32
		user, home, passwd string
	}{
		{"new", root, 1000, 100, "user1000", "/home/user1000", root + "user1000:*:1000:100::/home/user1000:/bin/sh\n"},
		{"the last id", root, 65535, 65535, "user65535", "/home/user65535", root + "user65535:*:65535:65535::/home/user65535:/bin/sh\n"},
		{"no line end", "root:x:0:0:root:/root:/bin/sh", 7, 7, "user7", "/home/user7", root + "user7:*:7:7::/home/user7:/bin/sh\n"},
		{"empty", "", 7, 7, "user7", "/home/user7", "user7:*:7:7::/home/user7:/bin/sh\n"},
		{"known", root + "node:x:1000:1000::/home/node:/bin/bash\n", 1000, 5, "node", "/home/node", root + "node:x:1000:1000::/home/node:/bin/bash\n"},
		{"known, at the end", root + "node:x:1000:1000::/home/node:/bin/bash", 1000, 5, "node", "/home/node", root + "node:x:1000:1000::/home/node:/bin/bash\n"},
		{"a home of a service", "pg:x:70:70::/var/lib/pg:\n", 70, 70, "pg", "/var/lib/pg", "pg:x:70:70::/var/lib/pg:\n"},
		{"no home", root + nobody, 65534, 65534, "nobody", "/home/nobody", root + "nobody:x:65534:65534:nobody:/home/nobody:/usr/sbin/nologin\n"},
		{"a home of everybody", "x:x:9:9::/var/lib:/bin/sh\n" + root, 9, 9, "x", "/home/x", "x:x:9:9::/home/x:/bin/sh\n" + root},
		{"a home outside", "x:x:9:9::/home/../etc:\n", 9, 9, "x", "/home/x", "x:x:9:9::/home/x:\n"},
		{"the name is taken", "user1000:x:5:5::/home/u:\n", 1000, 1000, "1000", "/home/1000", "user1000:x:5:5::/home/u:\n1000:*:1000:1000::/home/1000:/bin/sh\n"},
		{"no name for a directory", "../x:x:9:9::/home/x:\n", 9, 9, "user9", "/home/user9", "user9:*:9:9::/home/user9:/bin/sh\n"},
		{"damaged", "x:x:9\n:x:9:9::/home/x:\n", 9, 9, "user9", "/home/user9", "x:x:9\n:x:9:9::/home/x:\nuser9:*:9:9::/home/user9:/bin/sh\n"},
	}
	for _, test := range tests {
		user, home, passwd := withUser(test.text, test.uid, test.gid)
		if user != test.user || home != test.home || passwd != test.passwd {
			t.Errorf("%s: %s in %s\n%s\nwant %s in %s\n%s", test.name, user, home, passwd, test.user, test.home, test.passwd)
		}
	}
}

func TestWithGroup(t *testing.T) {
	t.Parallel()
	const base = "root:x:0:\ntty:x:5:\n"
	tests := []struct {
		text, user string
		uid, gid   uint32
		want       string
	}{
		{base, "user1000", 1000, 1000, base + "user1000:*:1000:\n"},
		{base, "user1000", 1000, 100, base + "group100:*:100:\n"},
		{base, "tty", 1000, 1000, base + "group1000:*:1000:\n"},
		{base + "group9:x:8:\n", "x", 1, 9, base + "group9:x:8:\n9:*:9:\n"},
		{base, "user7", 7, 5, base},
		{"", "root", 0, 7, "group7:*:7:\n"},
	}
	for _, test := range tests {
		if got := withGroup(test.text, test.user, test.uid, test.gid); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestAddUser: what a job's /etc is made of decides how its user gets an entry.
func TestAddUser(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, make func(etc string) error) *sandbox.Plan {
		t.Helper()
		rootfs := t.TempDir()
		etc := filepath.Join(rootfs, "etc")
		if err := os.Mkdir(etc, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(rootfs, "outside"), []byte("root:x:0:0:::\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := make(etc); err != nil {
			t.Fatal(err)
		}
		return &sandbox.Plan{Security: joblet.Security{User: "1000"}, Mounts: []sandbox.Mount{{Source: etc, Target: "/etc"}}}
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root:x:0:0:::\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		make func(etc string) error
		want bool // passwd is covered
	}{
		{"file", func(etc string) error { return os.WriteFile(etc+"/passwd", []byte("root:x:0:0:::\n"), 0o644) }, true},
		{"link", func(etc string) error { return os.Symlink("../outside", etc+"/passwd") }, true},
		{"link out", func(etc string) error { return os.Symlink(secret, etc+"/passwd") }, false},
		{"FIFO", func(etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) }, false},
		{"directory", func(etc string) error { return os.Mkdir(etc+"/passwd", 0o755) }, false},
		{"large", func(etc string) error { return os.WriteFile(etc+"/passwd", make([]byte, maxUsers+1), 0o644) }, false},
		{"none", func(string) error { return nil }, false},
	}
	for _, test := range tests {
		r := run(t, test.make)
		name, home := AddUser(r)
		covered := len(r.Covers) == 1 && r.Covers[0].Path == "/etc/passwd" && strings.HasPrefix(r.Covers[0].Text, "root:x:0:0:::\nuser1000:")
		if covered != test.want || len(r.Covers) > 1 || len(r.Files) > 0 {
			t.Errorf("%s: %+v", test.name, *r)
		}
		if name != "user1000" || home != "/home/user1000" || r.Home != home {
			t.Errorf("%s: %s in %s", test.name, name, home)
		}
	}
	r := &sandbox.Plan{}
	if name, home := AddUser(r); name != "root" || home != "/root" || r.Home != "" || len(r.Covers)+len(r.Files) > 0 {
		t.Errorf("root: %s in %s, %+v", name, home, *r)
	}
	r.Security.User = "0:7"
	if AddUser(r); r.Home != "" || len(r.Files) != 1 || r.Files[0].Path != "/etc/group" {
		t.Errorf("root of another group: %+v", *r)
	}
}
