package escape

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// TestPrograms: the walls do not get in the way of ordinary programs. All of them
// must be on the host (scripts/test installs them): a program that is missing is a
// failure here, as a test that was left out would say nothing.
func TestPrograms(t *testing.T) {
	w := newWorld(t)
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("allow io_setup io_submit io_getevents io_cancel io_destroy\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const stress = `for s in cpu fork vfork pthread pipe switch futex mmap vm shm shm-sysv sem sem-sysv mq msg sock sockpair udp epoll poll eventfd timer timerfd signal sigq \
		dentry filename hdd memfd madvise mremap mprotect brk inotify sendfile splice tee vm-splice aio getrandom get prctl rlimit schedpolicy affinity seek sync-file xattr yield zero; do \
		set -- "$@" --$s 1; done; stress-ng --no-rand-seed --temp-path /tmp --vm-bytes 8m --mmap-bytes 8m --hdd-bytes 4m --shm-bytes 1m --shm-sysv-bytes 1m --memfd-bytes 4m --timeout 2s "$@" 2>&1`
	for _, test := range []struct {
		name, script string
		want         string // regular expression over stdout
		profiles     []string
	}{
		{"python3", `python3 -c 'import ssl, sqlite3, ctypes, json, subprocess, threading, multiprocessing as m; print(m.get_context("fork").Pool(2).map(abs, [-1, -2]))'`, `^\[1, 2\]\n$`, []string{"default", "strict"}},
		{"python3 asyncio", `python3 -c 'import asyncio; print(asyncio.run(asyncio.sleep(0, "ok")))'`, `^ok\n$`, []string{"default", "strict"}},
		{"pip", `/usr/bin/python3 -m pip --version`, `^pip \d`, []string{"default", "strict"}},
		{"gcc", `printf '#include <stdio.h>\nint main(void) { puts("ok"); }' >x.c && gcc -O2 -o x x.c && ./x`, `^ok\n$`, []string{"default", "strict", "nested"}},
		{"go build", `printf 'package main\nfunc main() { println("ok") }' >x.go && PATH=$PATH:/usr/local/go/bin CGO_ENABLED=0 GOFLAGS=-p=2 go build -o x x.go && ./x 2>&1`, `^ok\n$`, []string{"default"}},
		{"node", `node -e 'const w = require("worker_threads"); new w.Worker("require(\"worker_threads\").parentPort.postMessage(\"ok\")", {eval: true}).on("message", console.log)'`, `^ok\n$`, []string{"default", "strict"}},
		{"java", `java -XX:TieredStopAtLevel=1 -version 2>&1`, `Runtime Environment`, []string{"default", "strict"}},
		{"git", `git init -q r && cd r && echo x >f && git add f && git -c user.name=n -c user.email=e commit -qm m && git gc -q && git clone -q . ../c && git -C ../c log --format=%s`, `^m\n$`, []string{"default", "strict"}},
		{"tar", `mkdir -p a/b && echo ok >a/b/f && ln -s b/f a/l && tar czf - a | tar xzf - -C /tmp && cat /tmp/a/l`, `^ok\n$`, []string{"default"}},
		{"make -j", `printf 'all: a b c d\na b c d:\n\t@sleep 0.1; echo $@ >$@\n' >Makefile && make -s -j4 && cat a b c d`, `^a\nb\nc\nd\n$`, []string{"default", "strict"}},
		{"sh, sed, awk, find, xargs, sort", `seq 100 | sed s/1/x/ | awk 'NR%2' | xargs -n1 -P4 echo | sort | wc -l; find / -xdev -name work`, `^50\n/work\n$`, []string{"default", "strict"}},
		{"stress-ng", stress, `successful run completed`, []string{"default"}},
		{"stress-ng with libaio", `stress-ng --no-rand-seed --temp-path /tmp --aiol 1 --timeout 1s 2>&1`, `successful run completed`, []string{profile}},
	} {
		for _, profile := range test.profiles {
			t.Run(test.name+" "+profile, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				args := []string{"job", "run", "--security=" + profile, "--env=GOTOOLCHAIN=local", "--env=GOTELEMETRY=off", "sh", "-c", test.script}
				r := w.rnx(ctx, args...)
				if r.status != 0 || !regexp.MustCompile(test.want).MatchString(r.stdout) {
					t.Errorf("%v\nwant %s", r, test.want)
				}
			})
		}
	}
	r := w.job(t, "--security=nested", "bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib64", "/lib64",
		"--symlink", "usr/lib", "/lib", "--proc", "/proc", "--dev", "/dev", "/usr/bin/echo", "ok")
	if r.stdout != "ok\n" {
		t.Errorf("bwrap in a nested job: %v", r)
	}
}
