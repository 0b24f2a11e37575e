package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/testenv"
)

// remoteDaemon serves clients with certificates, with a configuration file.
type remoteDaemon struct {
	*daemon
	dir     string // of certificates, bundles and configuration
	address string
}

func newRemoteDaemon(t *testing.T, config string) *remoteDaemon {
	t.Helper()
	r := &remoteDaemon{dir: t.TempDir(), address: freeAddress(t)}
	r.joblet(t, "init", "--out="+r.bundle("admin"))
	r.configure(t, config)
	r.daemon = newDaemon(t, "--config="+filepath.Join(r.dir, "joblet-config.yml"))
	return r
}

var ports atomic.Int32 // that were tried

// freeAddress returns an address that a daemon can listen at, again and again: not one
// of the ports that the kernel gives to connections (ip_local_port_range of ip(7)),
// where it would be taken away between two starts.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+(os.Getpid()+int(ports.Add(1)))%20000)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (r *remoteDaemon) configure(t *testing.T, config string) {
	t.Helper()
	text := fmt.Sprintf("listen: %s\npki-dir: %s/pki\n%s", r.address, r.dir, config)
	if err := os.WriteFile(filepath.Join(r.dir, "joblet-config.yml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reload makes the daemon read its configuration again and waits until it has.
func (r *remoteDaemon) reload(t *testing.T, config string) {
	t.Helper()
	r.configure(t, config)
	before := strings.Count(r.stderr.String(), "configuration reloaded")
	if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if !eventually(20*time.Second, func() bool { return strings.Count(r.stderr.String(), "configuration reloaded") > before }) {
		t.Fatalf("not read: %s", r.stderr.String())
	}
}

// joblet runs a command of joblet pki.
func (r *remoteDaemon) joblet(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"pki", "--dir=" + filepath.Join(r.dir, "pki")}, args...)
	if args[2] == "init" || args[2] == "issue" || args[2] == "rotate" {
		args = append(args, "--address="+r.address)
	}
	if out, err := exec.Command(binDir+"/joblet", args...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v %s", args, err, out)
	}
}

func (r *remoteDaemon) bundle(name string) string { return filepath.Join(r.dir, name+".yml") }

func (r *remoteDaemon) issue(t *testing.T, name, role string) {
	t.Helper()
	r.joblet(t, "issue", name, "--role="+role, "--out="+r.bundle(name))
}

// as runs rnx with a client's bundle.
func (r *remoteDaemon) as(t *testing.T, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return finish(r.commandAs(ctx, name, args...))
}

func (r *remoteDaemon) commandAs(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, binDir+"/rnx", args...)
	cmd.Env = append(os.Environ(), "RNX_CONFIG="+r.bundle(name))
	return cmd
}

// dial connects as a client.
func (r *remoteDaemon) dial(t *testing.T, name string) *client.Client {
	t.Helper()
	conf, err := client.LoadConfig(r.bundle(name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := conf.Node("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustOK(t *testing.T, r result, what string) string {
	t.Helper()
	if r.status != 0 {
		t.Fatalf("%s: %v", what, r)
	}
	return r.stdout
}

func mustFail(t *testing.T, r result, want string) {
	t.Helper()
	if r.status == 0 || !strings.Contains(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("got %v, want one line with %q", r, want)
	}
}

// TestRemoteLife is the whole life of jobs over mutual TLS.
func TestRemoteLife(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	res := r.as(t, "alice", "job", "run", "--secret-env=TOKEN=hunter2", "sh", "-c", `echo out; echo err >&2; test "$TOKEN" = hunter2 && exit 7`)
	if res.status != 7 || res.stdout != "out\n" || res.stderr != "err\n" {
		t.Errorf("attached: %v", res)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), bytes.Repeat([]byte("0123456789abcdef"), 1<<20), 0o600); err != nil { // 16 MiB
		t.Fatal(err)
	}
	get := r.commandAs(t.Context(), "alice", "job", "run", "--upload="+filepath.Join(dir, "in"), "--download=out", "sh", "-c", "wc -c < in > out; cat out")
	get.Dir = dir
	if res := finish(get); res.status != 0 || res.stdout != "16777216\n" {
		t.Errorf("files: %v", res)
	}
	if out, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(out) != "16777216\n" {
		t.Errorf("fetched: %q %v", out, err)
	}
	stdin := r.commandAs(t.Context(), "alice", "job", "run", "--stdin", "sha256sum")
	stdin.Stdin = strings.NewReader("hello")
	if res := finish(stdin); !strings.HasPrefix(res.stdout, "2cf24dba") {
		t.Errorf("stdin: %v", res)
	}
	id := strings.TrimSpace(mustOK(t, r.as(t, "alice", "job", "run", "-d", "--name=web", "sleep", "300"), "run -d"))
	status := mustOK(t, r.as(t, "alice", "--json", "job", "status", "web"), "status")
	var job struct{ UUID, ID, Status, Owner string }
	if err := json.Unmarshal([]byte(status), &job); err != nil || job.Owner != "cert:alice" || job.Status != "RUNNING" {
		t.Errorf("%s %v", status, err)
	}
	mustOK(t, r.as(t, "alice", "job", "stop", id), "stop")
	mustOK(t, r.as(t, "alice", "job", "delete", id), "delete")
	mustFail(t, r.as(t, "alice", "runtime", "remove", "x"), "cert:alice has the role developer, and this call requires admin")
	if out := mustOK(t, r.as(t, "alice", "nodes"), "nodes"); !strings.Contains(out, "default *") || !strings.Contains(out, " ok ") || !strings.Contains(out, "developer") {
		t.Errorf("nodes: %s", out)
	}
	if out := mustOK(t, r.as(t, "admin", "monitor", "status"), "monitor"); out == "" {
		t.Error("monitor says nothing")
	}
}

// TestRemoteOwners: a developer sees and ends his own jobs, and others' as the
// rules grant, which a signal reads again.
func TestRemoteOwners(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	for name, role := range map[string]string{"alice": "developer", "bob": "developer", "eye": "reader", "mona": "maintainer"} {
		r.issue(t, name, role)
	}
	id := strings.TrimSpace(mustOK(t, r.as(t, "alice", "job", "run", "-d", "--name=web", "-e", "A=visible", "sh", "-c", "echo private; sleep 300"), "run"))
	denied := "belongs to cert:alice: cert:bob may not "
	for _, args := range [][]string{
		{"job", "status", id}, {"job", "log", id}, {"job", "wait", id}, {"job", "cp", id + ":x", "."}, {"job", "status", "web"},
	} {
		mustFail(t, r.as(t, "bob", args...), denied+"see it")
	}
	for _, args := range [][]string{{"job", "stop", id}, {"job", "kill", "web"}, {"job", "cancel", id}, {"job", "delete", id}, {"job", "rerun", id}, {"job", "pause", id}, {"job", "update", "--max-pids=100", id}} {
		mustFail(t, r.as(t, "bob", args...), denied+"change it")
	}
	if res := r.as(t, "bob", "job", "list", "--json"); !strings.Contains(res.stdout, id) || strings.Contains(res.stdout, "private") || strings.Contains(res.stdout, "visible") {
		t.Errorf("bob's list: %v", res)
	}
	if res := r.as(t, "alice", "job", "list", "--json"); !strings.Contains(res.stdout, "private") {
		t.Errorf("alice's list: %v", res)
	}
	bob := r.dial(t, "bob")
	for _, err := range bob.Jobs(t.Context(), joblet.Filter{Owner: "cert:bob"}) {
		t.Errorf("bob has a job, or an error: %v", err)
	}
	// Labels, which he does not see, do not find it.
	mustOK(t, r.as(t, "bob", "job", "run", "--label=team=secret", "true"), "a job of bob's")
	mustOK(t, r.as(t, "alice", "job", "run", "--label=team=secret", "true"), "a newer one of alice's")
	for _, filter := range []joblet.Filter{{Labels: []joblet.LabelMatch{{Name: "team", Value: "secret"}}}, {Labels: []joblet.LabelMatch{{Name: "team", Any: true}}, Limit: 1}} {
		found := 0
		for job, err := range bob.Jobs(t.Context(), filter) {
			if found++; err != nil || job.Owner != "cert:bob" {
				t.Errorf("bob finds %+v, %v", job, err)
			}
		}
		if found != 1 {
			t.Errorf("bob finds %d jobs", found)
		}
	}
	for name, want := range map[string]int{"eye": 2, "alice": 1} {
		if out := mustOK(t, r.as(t, name, "--json", "job", "list", "--label=team"), "list"); strings.Count(out, `"team"`) != want {
			t.Errorf("%s finds %s", name, out)
		}
	}
	mustOK(t, r.as(t, "bob", "job", "delete-all"), "delete it again")
	mustOK(t, r.as(t, "eye", "job", "status", id), "a reader's status")
	mustFail(t, r.as(t, "eye", "job", "stop", id), "cert:eye has the role reader, and this call requires developer")
	mustFail(t, r.as(t, "eye", "job", "run", "true"), "requires developer")

	mustOK(t, r.as(t, "alice", "job", "run", "true"), "a job that ends")
	if deleted, skipped, err := bob.DeleteAll(t.Context()); deleted != 0 || skipped != 0 || err != nil {
		t.Errorf("bob deletes %d, skips %d, %v", deleted, skipped, err)
	}
	if deleted, _, err := bob.Prune(t.Context(), joblet.Filter{}, true); deleted != 0 || err != nil {
		t.Errorf("bob prunes %d, %v", deleted, err)
	}

	r.reload(t, "allow:\n  - bob read alice\n")
	if out := mustOK(t, r.as(t, "bob", "job", "log", id), "what the rule grants"); out != "private\n" {
		t.Errorf("log: %q", out)
	}
	mustFail(t, r.as(t, "bob", "job", "stop", id), denied+"change it")
	r.reload(t, "allow: [bob control alice]\nmax-per-owner: 1\n")
	mustFail(t, r.as(t, "alice", "job", "run", "true"), "cert:alice has 1 unended jobs")
	mustFail(t, r.as(t, "alice", "job", "run", "-d", "--schedule=+1h", "true"), "cert:alice has 1 unended jobs")
	mustOK(t, r.as(t, "bob", "job", "stop", id), "stop what the rule grants")
	mustOK(t, r.as(t, "alice", "job", "run", "true"), "with a free place")
	// A bad file changes nothing.
	r.configure(t, "allow: [bob frobnicate alice]\n")
	if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if !eventually(20*time.Second, func() bool { return strings.Contains(r.stderr.String(), "frobnicate") }) {
		t.Error("nothing said of it")
	}
	mustOK(t, r.as(t, "bob", "job", "status", id), "status by the rule from before")
	mustOK(t, r.as(t, "mona", "job", "delete-all"), "a maintainer's delete-all")

	audit, err := os.ReadFile(filepath.Join(r.state, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	var stop []map[string]any
	for line := range bytes.Lines(audit) {
		var l map[string]any
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if l["method"] == "JobService/StopJob" && l["caller"] == "cert:bob" {
			stop = append(stop, l)
		}
	}
	if len(stop) < 3 || stop[0]["result"] != "PermissionDenied" || stop[len(stop)-1]["result"] != "OK" || stop[len(stop)-1]["job"] != id {
		t.Errorf("audit: %v", stop)
	}
	if !regexp.MustCompile(`"cert:mona".*"JobService/DeleteAllJobs","detail":"[1-9] jobs, 0 skipped"`).Match(audit) {
		t.Errorf("audit: nothing of what a maintainer deleted:\n%s", audit)
	}
	if bytes.Contains(audit, []byte("private")) || !bytes.Contains(audit, []byte(`"target":"sh"`)) {
		t.Errorf("audit:\n%s", audit)
	}
}

// TestForeignDependency: who depends on a job may read it, and does not keep its owner
// from deleting it.
func TestForeignDependency(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	for name, role := range map[string]string{"alice": "developer", "bob": "developer", "mona": "maintainer"} {
		r.issue(t, name, role)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		return strings.TrimSpace(mustOK(t, r.as(t, name, append([]string{"job", "run", "-d"}, args...)...), "run"))
	}
	completed := func() string {
		t.Helper()
		id := run("alice", "true")
		mustOK(t, r.as(t, "alice", "job", "wait", id), "wait")
		return id
	}
	id := completed()
	denied := "belongs to cert:alice: cert:bob may not see it"
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-d", "--schedule=+1000h"}, {"-d"}, {}, {"--upload=" + file}} {
		mustFail(t, r.as(t, "bob", append(append([]string{"job", "run", "--depends-on=" + id}, args...), "true")...), denied)
	}
	r.reload(t, "allow: [bob read alice]\n")
	far := run("bob", "--schedule=+1000h", "--depends-on="+id, "true")
	mustOK(t, r.as(t, "alice", "job", "delete", id), "alice's delete")
	mustOK(t, r.as(t, "bob", "job", "cancel", far), "cancel")

	const soon = 15 * time.Second
	id = completed()
	begun := time.Now()
	next := run("bob", fmt.Sprintf("--schedule=+%v", soon), "--depends-on="+id, "true")
	mustOK(t, r.as(t, "mona", "job", "delete", id), "a maintainer's delete")
	if took := time.Since(begun); took > soon-time.Second {
		t.Logf("deleted after %v: too late to see what becomes of its dependent", took)
	} else if !eventually(patience, func() bool {
		out := mustOK(t, r.as(t, "bob", "--json", "job", "status", next), "status")
		return strings.Contains(out, "CANCELED") && strings.Contains(out, "on which it depends, is gone")
	}) {
		t.Error("what depends on a job that is gone is not canceled")
	}

	id = completed()
	own := run("alice", "--schedule=+1000h", "--depends-on="+id, "true")
	for _, name := range []string{"alice", "mona", "admin"} {
		mustFail(t, r.as(t, name, "job", "delete", id), "depends on it and has not run yet")
	}
	mustOK(t, r.as(t, "alice", "job", "cancel", own), "cancel")
	mustOK(t, r.as(t, "alice", "job", "delete", id), "delete")
}

// TestRuleWithdrawn: calls under way end with the rule that allowed them, and no
// others.
func TestRuleWithdrawn(t *testing.T) {
	t.Parallel()
	const both = "allow: [bob control alice, carol read alice]\n"
	r := newRemoteDaemon(t, both)
	jobs := map[string]api.JobServiceClient{}
	for _, name := range []string{"alice", "bob", "carol"} {
		r.issue(t, name, "developer")
		conf, err := client.LoadConfig(r.bundle(name))
		if err != nil {
			t.Fatal(err)
		}
		jobs[name] = api.NewJobServiceClient(rawConn(t, conf))
	}
	bob := jobs["bob"]
	ctx := patient(t)
	id := strings.TrimSpace(mustOK(t, r.as(t, "alice", "job", "run", "-dt", "sh", "-c", `yes | head -c 8M; while read x; do echo "got=$x"; done`), "run"))
	attach := func(jobs api.JobServiceClient) grpc.BidiStreamingClient[api.JobInput, api.JobEvent] {
		t.Helper()
		call, err := jobs.AttachJob(ctx)
		if err == nil {
			err = call.Send(&api.JobInput{Input: &api.JobInput_Attach{Attach: &api.AttachJobRequest{Uuid: id}}})
		}
		if err == nil {
			_, err = call.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return call
	}
	ends := map[string]chan error{}
	drain := func(name string, recv func() error) {
		t.Helper()
		if err := recv(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ends[name] = make(chan error, 1)
		go func() {
			err := error(nil)
			for err == nil {
				err = recv()
			}
			ends[name] <- err
		}()
	}
	follow := func(name string) {
		t.Helper()
		call, err := jobs[name].FollowJob(ctx, &api.FollowJobRequest{Uuid: id})
		if err != nil {
			t.Fatal(err)
		}
		drain(name, func() error { _, err := call.Recv(); return err })
	}
	for _, name := range []string{"alice", "bob", "carol"} {
		follow(name)
	}
	attached := attach(bob)
	drain("attach", func() error { _, err := attached.Recv(); return err })
	metrics, err := bob.StreamJobMetrics(ctx, &api.StreamJobMetricsRequest{JobUuid: id})
	if err != nil {
		t.Fatal(err)
	}
	drain("metrics", func() error { _, err := metrics.Recv(); return err })
	process, err := bob.ExecJob(ctx)
	if err == nil {
		err = process.Send(&api.ExecInput{Input: &api.ExecInput_Run{Run: &api.ExecJobRequest{Uuid: id, Command: "sleep", Args: []string{"1000"}}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid atomic.Int64
	drain("exec", func() error {
		e, err := process.Recv()
		if e.GetStarted() != nil {
			pid.Store(e.GetStarted().GetHostPid())
		}
		return err
	})
	ends["wait"] = make(chan error, 1)
	go func() {
		_, err := bob.WaitJob(ctx, &api.WaitJobRequest{Uuid: id})
		ends["wait"] <- err
	}()
	silent := attach(bob) // reads nothing, so that the daemon waits for it

	r.reload(t, both+"max-per-owner: 9\n") // which ends nothing
	r.reload(t, "allow: [carol read alice]\n")
	for _, name := range []string{"bob", "attach", "metrics", "exec", "wait"} {
		if err := <-ends[name]; status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !eventually(patience, func() bool { _, err := os.Stat(fmt.Sprintf("/proc/%d", pid.Load())); return err != nil }) {
		t.Error("bob's process is still there")
	}
	for range 5 {
		_ = silent.Send(&api.JobInput{Input: &api.JobInput_Stdin{Stdin: []byte("stolen\n")}}) // it may have ended
		time.Sleep(50 * time.Millisecond)
	}
	own := attach(jobs["alice"])
	drain("own", func() error { _, err := own.Recv(); return err })
	if err := own.Send(&api.JobInput{Input: &api.JobInput_Stdin{Stdin: []byte("own\n\x04")}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "carol", "own"} {
		if err := <-ends[name]; err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	if log := mustOK(t, r.as(t, "alice", "job", "log", id), "log"); strings.Contains(log, "stolen") || !strings.Contains(log, "got=own") {
		t.Errorf("the log ends with %q", log[max(0, len(log)-200):])
	}
}

// TestRemoteSecurity: a job with io_uring takes the role admin, and nobody else has
// one that is there run something: not by a rule, not a maintainer, not again.
func TestRemoteSecurity(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "allow: [\"bob control *\"]\n")
	for name, role := range map[string]string{"bob": "developer", "mona": "maintainer"} {
		r.issue(t, name, role)
	}
	profile := filepath.Join(r.dir, "profile")
	if err := os.WriteFile(profile, []byte("allow io_uring_setup io_uring_enter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const refused = "system call io_uring_setup requires the role admin"
	run := []string{"job", "run", "--security=" + profile}
	for _, name := range []string{"bob", "mona"} {
		mustFail(t, r.as(t, name, append(run, "true")...), refused)
		mustFail(t, r.as(t, name, append(run, "-d", "true")...), refused)
		mustFail(t, r.as(t, name, append(run, "-d", "--schedule=+1h", "true")...), refused)
		_, err := r.dial(t, name).Run(t.Context(), joblet.Spec{Command: "true", Security: joblet.Security{AllowCalls: []string{"io_uring_setup"}}})
		if joblet.KindOf(err) != joblet.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustOK(t, r.as(t, "admin", append(run, "true")...), "an admin's")
	ended := strings.TrimSpace(mustOK(t, r.as(t, "admin", append(run, "-d", "true")...), "an admin's"))
	mustOK(t, r.as(t, "admin", "job", "wait", ended), "its end")
	id := strings.TrimSpace(mustOK(t, r.as(t, "admin", append(run, "-dt", "--name=ring", "sh", "-c", `while read x; do echo "got=$x"; done`)...), "an admin's"))
	for _, name := range []string{"bob", "mona"} {
		for _, ref := range []string{id, "ring"} {
			mustFail(t, r.as(t, name, "job", "exec", ref, "true"), refused)
			attach := r.commandAs(patient(t), name, "job", "attach", ref)
			attach.Stdin = strings.NewReader("stolen\n")
			mustFail(t, finish(attach), refused)
		}
		mustFail(t, r.as(t, name, "job", "rerun", ended), refused)
		mustFail(t, r.as(t, name, "job", "exec", "none", "true"), "none")
	}
	mustOK(t, r.as(t, "admin", "job", "exec", "ring", "true"), "an admin's")
	mustOK(t, r.as(t, "admin", "job", "rerun", ended), "an admin's")
	mustOK(t, r.as(t, "bob", "job", "stop", "ring"), "to end it takes no more than before")
	if log := mustOK(t, r.as(t, "admin", "job", "log", id), "log"); strings.Contains(log, "stolen") {
		t.Errorf("the log: %q", log)
	}
}

// TestRemoteRestart: a daemon that is killed in the middle of a run and starts
// again is survived: by job run, job log -f and job wait.
func TestRemoteRestart(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	run := r.commandAs(ctx, "alice", "job", "run", "--name=counter", "sh", "-c", "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 3")
	type ended struct {
		status int
		stderr string
	}
	start := func(cmd *exec.Cmd) (out *testenv.Output, end chan ended) {
		out, end = new(testenv.Output), make(chan ended, 1)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = out, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = cmd.Wait()
			end <- ended{cmd.ProcessState.ExitCode(), stderr.String()}
		}()
		return out, end
	}
	ran, results := start(run)
	if !eventually(patience, func() bool {
		return strings.Contains(r.rnx(ctx, "job", "list").stdout, "counter")
	}) {
		t.Fatal("it does not run")
	}
	log := r.commandAs(ctx, "alice", "job", "log", "-f", "counter")
	read, logged := start(log)
	if !eventually(patience, func() bool {
		return strings.Contains(ran.String(), "line ") && strings.Contains(read.String(), "line ")
	}) {
		t.Error("nothing comes")
	}
	r.kill(t)
	time.Sleep(time.Second)
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 60 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if end := <-results; end.status != 3 || ran.String() != want.String() {
		t.Errorf("run: %v %s", end, ran)
	}
	if end := <-logged; end.status != 0 || read.String() != want.String() {
		t.Errorf("log: %v %s", end, read)
	}
}

// TestRemoteErrors: what goes wrong with a connection is said clearly.
func TestRemoteErrors(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	r.issue(t, "gone", "admin")
	r.joblet(t, "revoke", "gone")
	other := &remoteDaemon{dir: t.TempDir(), address: r.address}
	other.joblet(t, "init", "--out="+other.bundle("admin"))
	mixed := func(name, ca, rest string) { // its authority from one bundle, the certificate from another
		a, err := client.LoadConfig(ca)
		if err != nil {
			t.Fatal(err)
		}
		b, err := client.LoadConfig(rest)
		if err != nil {
			t.Fatal(err)
		}
		n := b.Nodes["default"]
		n.CA = a.Nodes["default"].CA
		b.Nodes["default"] = n
		text, err := b.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.bundle(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mixed("wrong-ca", other.bundle("admin"), r.bundle("alice"))
	mixed("stranger", r.bundle("admin"), other.bundle("admin"))
	mustFail(t, r.as(t, "wrong-ca", "job", "list"), "not by the authority (ca) of your configuration")
	mustFail(t, r.as(t, "stranger", "job", "list"), `refuses the certificate of "admin": it is not signed by the daemon's authority`)
	if !eventually(patience, func() bool {
		return strings.Contains(r.as(t, "gone", "job", "list").stderr, `the daemon refuses the certificate of "gone", which is probably revoked`)
	}) {
		t.Errorf("revoked: %v", r.as(t, "gone", "job", "list"))
	}
	mustFail(t, r.as(t, "alice", "--host=127.0.0.1:1", "job", "list"), "no daemon answers at 127.0.0.1:1: cannot connect to the daemon: dial tcp 127.0.0.1:1: connect: connection refused")
	mustFail(t, r.as(t, "alice", "--node=nope", "job", "list"), `unknown node "nope": `)
	mustFail(t, r.as(t, "nobody", "job", "list"), "rnx login")
	if out := r.as(t, "wrong-ca", "nodes"); out.status != 0 || !strings.Contains(out.stdout, "authority") {
		t.Errorf("nodes: %v", out)
	}

	// What listens there speaks something else.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("SSH-2.0-OpenSSH\r\n"))
			c.Close()
		}
	}()
	mustFail(t, r.as(t, "alice", "--host="+l.Addr().String(), "job", "list"), "does not speak TLS")
}

// expired makes a certificate that has expired, as pki makes none, and its key.
func (r *remoteDaemon) expired(t *testing.T, name string, at time.Time) (cert, key []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "pki", "ca", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(at.UnixNano()), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{"developer"}}, DNSNames: []string{name},
		NotBefore: at.Add(-time.Hour), NotAfter: at, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, ca.Leaf, own.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestRemoteExpired: whose certificate has expired, and when.
func TestRemoteExpired(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	at := time.Now().Add(-90 * time.Minute).UTC().Truncate(time.Second)
	when := "expired on " + at.Format(time.RFC3339)
	conf, err := client.LoadConfig(r.bundle("alice"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key := r.expired(t, "late", at)
	n := conf.Nodes[client.DefaultNode]
	n.Cert, n.Key = string(cert), string(key)
	conf.Nodes[client.DefaultNode] = n
	text, err := conf.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.bundle("late"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	mustFail(t, r.as(t, "late", "job", "list"), `the certificate of "late" `+when+": get a new one (joblet pki rotate)")
	if res := r.as(t, "late", "nodes"); res.status != 0 || !strings.Contains(res.stdout, when) {
		t.Errorf("nodes: %v", res)
	}

	mustOK(t, r.as(t, "alice", "job", "list"), "before the daemon's has expired")
	cert, key = r.expired(t, "joblet", at)
	server := filepath.Join(r.dir, "pki", "server.pem")
	if err := os.WriteFile(server+".new", append(cert, key...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(server+".new", server); err != nil {
		t.Fatal(err)
	}
	want := "the daemon's certificate " + when
	if !eventually(20*time.Second, func() bool { return strings.Contains(r.as(t, "alice", "job", "list").stderr, want) }) {
		t.Errorf("got %v, want %s", r.as(t, "alice", "job", "list"), want)
	}
	r.joblet(t, "rotate", "--server")
	if !eventually(20*time.Second, func() bool { return r.as(t, "alice", "job", "list").status == 0 }) {
		t.Errorf("with a new one: %v", r.as(t, "alice", "job", "list"))
	}
}

// TestLogin: a bundle is imported under a name, asked first, and found where users
// have their configuration.
func TestLogin(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	home := t.TempDir()
	rnx := func(stdin string, args ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, binDir+"/rnx", args...)
		cmd.Dir = home
		cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "JOBLET_RUN_DIR=" + r.run}
		cmd.Stdin = strings.NewReader(stdin)
		return finish(cmd)
	}
	mustOK(t, rnx("", "login", r.bundle("alice")), "login")
	file := filepath.Join(home, ".rnx", "rnx-config.yml")
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	mustFail(t, rnx("", "login", r.bundle("alice")), "--force")
	text, err := os.ReadFile(r.bundle("admin"))
	if err != nil {
		t.Fatal(err)
	}
	mustOK(t, rnx(string(text), "--node=lab", "login", "-"), "login from stdin under another name")
	who := func(args ...string) string {
		return mustOK(t, rnx("", append(args, "--json", "job", "run", "-d", "true")...), "run")
	}
	if out := who(); !strings.Contains(out, `"cert:alice"`) {
		t.Errorf("default: %s", out)
	}
	if out := who("--node=lab"); !strings.Contains(out, `"cert:admin"`) {
		t.Errorf("lab: %s", out)
	}
	if out := who("--node=local"); !strings.Contains(out, `"uid:0"`) {
		t.Errorf("local: %s", out)
	}
	if out := mustOK(t, rnx("", "nodes"), "nodes"); strings.Count(out, "\n") != 3 || strings.Count(out, " ok ") != 2 {
		t.Errorf("nodes: %s", out)
	}
	// A bundle of files, which lie beside it.
	conf, err := client.LoadConfig(r.bundle("alice"))
	if err != nil {
		t.Fatal(err)
	}
	parts := filepath.Join(home, "parts")
	if err := os.Mkdir(parts, 0o700); err != nil {
		t.Fatal(err)
	}
	n := conf.Nodes[client.DefaultNode]
	for name, text := range map[string]string{
		"ca.pem": n.CA, "alice.crt": n.Cert, "alice.key": n.Key,
		"alice.yml": fmt.Sprintf("nodes: {parts: {address: %q, ca: ca.pem, cert: ./alice.crt, key: %s/alice.key}}", n.Address, parts),
	} {
		if err := os.WriteFile(filepath.Join(parts, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOK(t, rnx("", "login", "parts/alice.yml"), "login with files")
	if err := os.RemoveAll(parts); err != nil {
		t.Fatal(err)
	}
	if out := who("--node=parts"); !strings.Contains(out, `"cert:alice"`) {
		t.Errorf("parts: %s", out)
	}
	mustFail(t, rnx("nodes: {}", "login", "-"), "has no nodes")
	mustFail(t, rnx("x", "login", "-"), "bundle")
	mustFail(t, rnx("", "login", "--address=127.0.0.1:1", "--force", r.bundle("alice")), "--no-check")
	if err := os.Chmod(file, 0o622); err != nil {
		t.Fatal(err)
	}
	mustFail(t, rnx("", "job", "list"), "chmod go-w")
}

// TestLargeLists: nobody's large jobs keep others from their lists, whose messages
// even a client takes that has no larger bound than gRPC's.
func TestLargeLists(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	const large = 4 // of 1.8 MB
	spec := joblet.Spec{Command: "true", Schedule: "+1h", Env: map[string]string{}}
	for i := range 15 {
		spec.Env[fmt.Sprint("V", i)] = strings.Repeat("x", 120_000)
	}
	root := r.daemon.dial(t)
	for range large {
		if _, err := root.Run(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	small, err := root.Run(t.Context(), joblet.Spec{Command: "true", Schedule: "+1h", Env: map[string]string{"A": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(r.host(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	jobs := api.NewJobServiceClient(conn)
	list, err := jobs.ListJobs(t.Context(), &api.EmptyRequest{})
	if err != nil || len(list.GetJobs()) != large+1 {
		t.Fatalf("%d jobs, %v", len(list.GetJobs()), err)
	}
	if first := list.GetJobs()[0]; first.GetUuid() != small.ID || first.GetEnvironment()["A"] != "b" {
		t.Errorf("the small one: %v", first)
	}
	if e := list.GetJobs()[1].GetEnvironment(); len(e) != 0 {
		t.Errorf("a large one has %d variables", len(e))
	}
	parts, err := jobs.QueryJobs(t.Context(), &api.QueryJobsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		part, err := parts.Recv()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, j := range part.GetJobs() {
			if n++; len(j.GetEnvironment()) == 0 {
				t.Errorf("job %d has no environment", n)
			}
		}
	}
	if n != large+1 {
		t.Errorf("%d jobs", n)
	}
}

// TestRemoteUpload: RunJob carries files as older clients send them, up to what one
// message holds.
func TestRemoteUpload(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	conf, err := client.LoadConfig(r.bundle("admin"))
	if err != nil {
		t.Fatal(err)
	}
	jobs := api.NewJobServiceClient(rawConn(t, conf))
	request := &api.RunJobRequest{Command: "sh", ArgsBytes: [][]byte{
		[]byte("-c"), []byte("wc -c < big; stat -c '%a %n' script dir; ./script; cat \"$1\""), []byte("sh"), []byte("\xff"),
	}, Uploads: []*api.FileUpload{
		{Path: "big", Content: bytes.Repeat([]byte("x"), 120<<20), Mode: 0o644},
		{Path: "script", Content: []byte("#!/bin/sh\necho ran\n"), Mode: 0o100755}, // only the permission bits count
		{Path: "dir", IsDirectory: true, Mode: 1<<31 | 0o750},
		{Path: "\ufffd", PathBytes: []byte("\xff"), Content: []byte("odd\n")},
	}}
	out, err := jobs.RunJob(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	res := r.rnx(t.Context(), "job", "log", "-f", out.GetJobUuid())
	if res.stdout != "125829120\n755 script\n750 dir\nran\nodd\n" {
		t.Errorf("got %v", res)
	}
	request.Uploads[0].Content = bytes.Repeat([]byte("x"), 129<<20)
	if _, err := jobs.RunJob(t.Context(), request); err == nil {
		t.Error("129 MiB were taken")
	}
	for _, path := range []string{"../x", "/etc/x", "a/../../x", ""} {
		if _, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "true", Uploads: []*api.FileUpload{{Path: path}}}); err == nil {
			t.Errorf("%q was taken", path)
		}
	}
}

// encoded is a message as it is sent. Clients that send the same large one need not
// each have their copies of it: beside the race detector they would take more memory
// and time than the daemon.
type encoded []byte

func encode(t *testing.T, m proto.Message) encoded {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// encodedCodec sends what is encoded as it is.
type encodedCodec struct{ encoding.CodecV2 }

func (c encodedCodec) Marshal(m any) (mem.BufferSlice, error) {
	if b, ok := m.(encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(m)
}

// TestRemoteMemory: what clients send at once is bounded, in requests and in input.
func TestRemoteMemory(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "request-memory: 256M\n")
	conf, err := client.LoadConfig(r.bundle("admin"))
	if err != nil {
		t.Fatal(err)
	}
	tooMuch := func(err error) bool {
		return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "request-memory")
	}
	content := make([]byte, 100<<20)
	request := encode(t, &api.RunJobRequest{Command: "true", Uploads: []*api.FileUpload{{Path: "x", Content: content}}})
	input := encode(t, &api.JobInput{Input: &api.JobInput_Stdin{Stdin: content}})
	job := encode(t, &api.JobInput{Input: &api.JobInput_Run{Run: &api.RunJobRequest{Command: "sleep", Args: []string{"600"}, Stdin: "stream"}}})
	all, cancelAll := context.WithTimeout(t.Context(), 5*patience)
	defer cancelAll()
	sent := grpc.ForceCodecV2(encodedCodec{encoding.GetCodecV2("proto")})
	run := func(c *grpc.ClientConn) error {
		return c.Invoke(all, api.JobService_RunJob_FullMethodName, request, &api.RunJobResponse{}, sent)
	}
	const many = 6
	var clients []*grpc.ClientConn
	for range many {
		// A host that is busy may take longer for a handshake than the daemon allows.
		c := rawConn(t, conf)
		if _, err := api.NewJobServiceClient(c).ListJobs(all, &api.EmptyRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	results := make(chan error, many)
	for _, c := range clients {
		go func() { results <- run(c) }()
	}
	taken := 0
	for range many {
		if err := <-results; err == nil {
			taken++
		} else if !tooMuch(err) {
			t.Errorf("got %v", err)
		}
	}
	if taken == 0 || taken == many {
		t.Errorf("%d of %d were taken", taken, many)
	}
	if err := run(clients[0]); err != nil {
		t.Errorf("one after them: %v", err)
	}

	// Jobs that do not read what is sent to them: the newest has to go.
	ctx, cancel := context.WithCancel(all)
	defer cancel()
	for range 3 {
		go func() {
			results <- func() error {
				call, err := api.NewJobServiceClient(clients[0]).SubmitJob(ctx, sent)
				if err != nil {
					return err
				}
				for _, m := range []encoded{job, input, input} {
					if err := call.SendMsg(m); err != nil {
						break // Recv says why
					}
				}
				for {
					if _, err := call.Recv(); err != nil {
						return err
					}
				}
			}()
		}()
	}
	if err := <-results; !tooMuch(err) {
		t.Errorf("got %v", err)
	}
	cancel()
	for range 2 {
		if err := <-results; !tooMuch(err) && status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // until they have ended here
		err := run(clients[0])
		if err == nil {
			break
		}
		if !tooMuch(err) || time.Now().After(deadline) {
			t.Fatalf("one after them: %v", err)
		}
	}
	hwm, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(regexp.MustCompile(`VmHWM:.*`).FindString(string(hwm)))
}
