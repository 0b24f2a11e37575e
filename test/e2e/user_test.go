package e2e

import (
	"strings"
	"testing"
)

// TestUser: a job of any of its ids is a user with a name, a home directory and
// standard streams that can be opened.
func TestUser(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const look = `id -u; id -g; id -gn; whoami; echo $USER $LOGNAME $HOME; echo ~; stat -c %u:%g $HOME; touch $HOME/x; echo out >/dev/stdout; echo err >/dev/stderr; head -1 /etc/passwd; : </dev/stdin`
	const root = "root:x:0:0:root:/root:/bin/sh\n"
	for _, test := range []struct {
		flags []string
		want  string
	}{
		{nil, "0\n0\nroot\nroot\nroot root /root\n/root\n0:0\nout\n" + root},
		{[]string{"--user=1000"}, "1000\n1000\nuser1000\nuser1000\nuser1000 user1000 /home/user1000\n/home/user1000\n1000:1000\nout\n" + root},
		{[]string{"--user=1000:5"}, "1000\n5\ntty\nuser1000\nuser1000 user1000 /home/user1000\n/home/user1000\n1000:5\nout\n" + root},
		{[]string{"--user=65534"}, "65534\n65534\nnogroup\nnobody\nnobody nobody /home/nobody\n/home/nobody\n65534:65534\nout\n" + root},
		{[]string{"--user=65535:77", "--security=nested"}, "65535\n77\ngroup77\nuser65535\nuser65535 user65535 /home/user65535\n/home/user65535\n65535:77\nout\n" + root},
		{[]string{"--user=0:77"}, "0\n77\ngroup77\nroot\nroot root /root\n/root\n0:0\nout\n" + root},
		{[]string{"--user=7", "--env=HOME=/tmp", "--env=USER=me"}, "7\n7\nuser7\nuser7\nme user7 /tmp\n/tmp\n0:0\nout\n" + root},
	} {
		r := d.job(t, append(test.flags, "bash", "-c", look)...)
		if r.status != 0 || r.stdout != test.want || r.stderr != "err\n" {
			t.Errorf("%q: %v\nwant %s", test.flags, r, test.want)
		}
		if len(test.flags) != 1 {
			continue
		}
		d.must(t, "-d", "--name=box", test.flags[0], "sleep", "600") // the newest of this name is meant
		if r := d.rnx(patient(t), "job", "exec", "box", "bash", "-c", look); r.status != 0 || r.stdout != test.want || r.stderr != "err\n" {
			t.Errorf("exec, %q: %v\nwant %s", test.flags, r, test.want)
		}
	}
}

// TestStreamsOfAnotherUser: a process that has changed its user opens the standard
// streams by their names.
func TestStreamsOfAnotherUser(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const streams = `cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr`
	change := []string{"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c"}
	d.must(t, "-d", "--name=box", "sleep", "600")
	for _, args := range [][]string{{"job", "run", "-i"}, {"job", "exec", "-i", "box"}} {
		cmd := d.command(patient(t), append(append(args, change...), streams)...)
		cmd.Stdin = strings.NewReader("in\n")
		if r := finish(cmd); r.status != 0 || r.stdout != "in\nout\n" || r.stderr != "err\n" {
			t.Errorf("%q: %v", args, r)
		}
	}
	for _, args := range [][]string{{"job", "run", "-t"}, {"job", "exec", "-t", "box"}} {
		r := d.rnx(patient(t), append(append(args, change...), "echo out >/dev/stdout; echo err >/dev/stderr; test -w $(tty) && ! test -r $(tty)")...)
		if r.status != 0 || r.stdout != "out\r\nerr\r\n" {
			t.Errorf("%q: %v", args, r)
		}
	}
	// The file is the job's; only its processes come that far.
	if r := d.job(t, "--user=1000", "sh", "-c", "echo x >/etc/passwd || echo y >/etc/group; wc -l </etc/passwd"); r.status != 0 || r.stdout != "4\n" {
		t.Errorf("write to /etc/passwd: %v", r)
	}
}
