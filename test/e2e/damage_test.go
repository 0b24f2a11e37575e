package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// TestDamage damages one file of the state directory at a time, beneath a daemon
// that was killed while jobs ran and waited. The next one starts, or refuses with
// an error that names the file; either way no job's directory is gone and the
// running job runs. If it starts it has every job, with its end and its output. Of files
// that are alike one is damaged, another one in each run.
func TestDamage(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	for _, file := range oneOfEach(v.files(t)) {
		for _, fault := range v.faults(file) {
			t.Run(strings.ReplaceAll(v.rename(file), "/", ":")+" "+fault.name, func(t *testing.T) {
				v.restore(t)
				if !fault.do(t, filepath.Join(v.d.state, file)) {
					return
				}
				v.check(t, file)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// TestRecordsLost takes several files away at once: what the directories tell has
// to be enough.
func TestRecordsLost(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	for _, tt := range []struct {
		name  string
		files []string // globs, to be removed
	}{
		{"database", []string{"joblet.db*"}},
		{"database and count", []string{"joblet.*"}},
		{"all but the log", []string{"joblet.db", "joblet.db-shm", "joblet.seq"}},
		{"database and key", []string{"joblet.*", "secrets.key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v.restore(t)
			for _, glob := range tt.files {
				found, err := filepath.Glob(filepath.Join(v.d.state, glob))
				if err != nil || len(found) == 0 {
					t.Fatalf("%s: %v %v", glob, found, err)
				}
				for _, f := range found {
					if err := os.Remove(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			v.check(t, "joblet.db")
		})
	}
}

// victim is the state of a daemon that was killed.
type victim struct {
	d      *daemon
	backup string
	pid    int // PID 1 of the job that runs
	jobs   map[string]*victimJob
	old    map[string]string // files as they were before there was a job
}

type victimJob struct {
	name     string
	status   int
	state    joblet.State
	log      string
	attempts int
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	address := freeAddress(t)
	v := &victim{d: withState(t, "--listen="+address), backup: t.TempDir(), jobs: map[string]*victimJob{}, old: map[string]string{}}
	init := exec.Command(binDir+"/joblet", "pki", "--dir="+filepath.Join(v.d.state, "pki"), "init", "--address="+address, "--out="+filepath.Join(t.TempDir(), "admin.yml"))
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v.d.serve(t)
	v.d.kill(t)
	for _, name := range []string{"joblet.db", "joblet.db-wal", "joblet.db-shm", "joblet.seq", "audit.log"} {
		if data, err := os.ReadFile(filepath.Join(v.d.state, name)); err == nil {
			v.old[name] = string(data)
		}
	}
	if err := v.d.start(); err != nil {
		t.Fatal(err)
	}
	upload := filepath.Join(t.TempDir(), "data.txt")
	if err := os.WriteFile(upload, []byte("data\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	v.add(t, &victimJob{"ended", 3, joblet.Failed, "out\n", 1}, "sh", "-c", "echo out; exit 3")
	v.add(t, &victimJob{"input", 0, joblet.Completed, "data\n", 1}, "--upload="+upload, "sh", "-c", "cat data.txt; cp data.txt result.txt")
	v.add(t, &victimJob{"retried", 5, joblet.Failed, "1\n2\n", 2}, "--retry=1", "--retry-delay=10ms", "sh", "-c", "echo $JOBLET_ATTEMPT; exit 5")
	v.add(t, &victimJob{"canceled", 125, joblet.Canceled, "", 0}, "--schedule=+10h", "echo", "never")
	v.add(t, &victimJob{"waiting", 0, joblet.Scheduled, "", 0}, "--schedule=+10h", "echo", "later")
	v.add(t, &victimJob{"secret", 0, joblet.Scheduled, "", 0}, "--schedule=+10h", "--secret-env=TOKEN=hunter2", "echo", "later")
	v.add(t, &victimJob{"running", 0, joblet.Running, "begun\n", 1}, "sh", "-c", "echo begun; sleep 100000")
	for id, j := range v.jobs {
		if j.state.Final() && j.attempts > 0 {
			v.d.says(t, j.status, `(?s).*`, `(?s).*`, "job", "wait", id)
		}
		switch j.name {
		case "canceled":
			v.d.says(t, 0, `(?s).*`, `(?s).*`, "job", "cancel", id)
		case "running":
			if !v.d.wrote(t, id, j.log) {
				t.Fatal("the job says nothing")
			}
			v.pid = v.job(t, id).PID
		}
	}
	v.d.kill(t)
	if err := os.CopyFS(v.backup, os.DirFS(v.d.state)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // so that a daemon ends the jobs
		v.restore(t)
		if err := v.d.start(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func (v *victim) add(t *testing.T, j *victimJob, args ...string) {
	t.Helper()
	id := strings.TrimSpace(v.d.must(t, append([]string{"-d", "--name=" + j.name}, args...)...))
	v.jobs[id] = j
}

func (v *victim) job(t *testing.T, id string) joblet.Job {
	t.Helper()
	c, err := client.Dial(t.Context(), v.d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	job, err := c.Job(t.Context(), id)
	if err != nil {
		t.Error(err)
	}
	return job
}

// running returns the id of the job that runs.
func (v *victim) running() string {
	for id, j := range v.jobs {
		if j.name == "running" {
			return id
		}
	}
	return ""
}

// rename gives a path its job's name in place of the id.
func (v *victim) rename(path string) string {
	for id, j := range v.jobs {
		path = strings.ReplaceAll(path, id, j.name)
	}
	return path
}

// files lists the files of the state directory, but for those of the job that
// runs, and of jobs that are like others.
func (v *victim) files(t *testing.T) (all []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(v.backup), ".", func(path string, e fs.DirEntry, err error) error {
		j := v.jobs[filepath.Base(filepath.Dir(path))]
		if err == nil && e.Type().IsRegular() && (j == nil || slices.Contains([]string{"input", "retried", "waiting"}, j.name)) {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"joblet.db", "joblet.db-wal", "joblet.seq", "secrets.key", "identity.json", "pki/server.pem", "pki/index.json"} {
		if !slices.Contains(all, want) {
			t.Errorf("there is no %s in %v", want, all)
		}
	}
	return all
}

// oneOfEach returns, of files that are alike, one at random.
func oneOfEach(files []string) (chosen []string) {
	alike := map[string][]string{}
	for _, file := range files {
		kind := file
		if dir, name := filepath.Split(file); strings.HasPrefix(file, "jobs/") {
			kind = strings.Replace(name, "exit-2.", "exit.", 1)
		} else if dir == "" {
			kind = strings.TrimRight(name, "12") // the reserves
		}
		alike[kind] = append(alike[kind], file)
	}
	for _, kind := range slices.Sorted(maps.Keys(alike)) {
		chosen = append(chosen, alike[kind][rand.IntN(len(alike[kind]))])
	}
	return chosen
}

// restore puts the state directory back as it was, but for the directory of the
// job that runs.
func (v *victim) restore(t *testing.T) {
	t.Helper()
	if v.d.cmd != nil {
		v.d.kill(t)
	}
	keep := filepath.Join(v.d.state, "jobs", v.running())
	for _, dir := range []string{filepath.Join(v.d.state, "jobs"), v.d.state} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); path != keep && path != filepath.Dir(keep) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	err := fs.WalkDir(os.DirFS(v.backup), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Dir(path) == "jobs/"+v.running() {
			return err
		}
		to := filepath.Join(v.d.state, path)
		if e.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		data, err := os.ReadFile(filepath.Join(v.backup, path))
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

type damageFault struct {
	name string
	do   func(t *testing.T, path string) bool // false: it makes no difference to this file
}

func (v *victim) faults(file string) []damageFault {
	change := func(f func([]byte) []byte) func(*testing.T, string) bool {
		return func(t *testing.T, path string) bool {
			t.Helper()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := f(bytes.Clone(data))
			if bytes.Equal(damaged, data) {
				return false
			}
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			return true
		}
	}
	all := []damageFault{
		{"missing", func(t *testing.T, path string) bool {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return true
		}},
		{"cut in half", change(func(b []byte) []byte { return b[:len(b)/2] })},
	}
	if dir, _ := filepath.Split(file); dir == "" || strings.HasSuffix(file, ".json") {
		all = append(all,
			damageFault{"empty", change(func(b []byte) []byte { return nil })},
			damageFault{"zeros", change(func(b []byte) []byte { return make([]byte, len(b)) })})
	}
	if old, ok := v.old[file]; ok {
		all = append(all, damageFault{"old copy", change(func([]byte) []byte { return []byte(old) })})
	}
	// Where the data is: a write-ahead log is zeros behind it.
	flips := []int{40}
	if file == "joblet.db-wal" {
		flips = []int{rand.IntN(10), 10 + rand.IntN(40), 50 + rand.IntN(40), 99}
	}
	for _, percent := range flips {
		all = append(all, damageFault{fmt.Sprintf("bit at %d%%", percent), change(func(b []byte) []byte {
			if used := len(bytes.TrimRight(b, "\x00")); used > 0 {
				b[used*percent/100] ^= 0x10
			}
			return b
		})})
	}
	return all
}

// check starts a daemon on what is there.
func (v *victim) check(t *testing.T, file string) {
	t.Helper()
	v.d.stderr.Reset()
	err := v.d.start()
	if strings.Contains(v.d.stderr.String(), "panic") || strings.Contains(v.d.stderr.String(), "DATA RACE") {
		t.Fatalf("the daemon said:\n%s", v.d.stderr.String())
	}
	defer func() {
		if t.Failed() {
			t.Logf("the daemon said:\n%s", v.d.stderr.String())
		}
	}()
	v.checkKept(t, file)
	if err != nil {
		name := filepath.Base(file)
		if text := strings.TrimSpace(err.Error()); !strings.Contains(text, strings.TrimSuffix(name, "-wal")) || file != "secrets.key" && !strings.HasPrefix(file, "joblet.db") && !strings.HasPrefix(file, "pki/") {
			t.Errorf("it refuses to start: %s", text)
		}
		return
	}
	c, err := client.Dial(t.Context(), v.d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for id, want := range v.jobs {
		v.checkJob(t, c, id, want, file)
	}
	v.checkKept(t, file)
}

// checkKept checks what must be so whatever the daemon does.
func (v *victim) checkKept(t *testing.T, file string) {
	t.Helper()
	if err := unix.Kill(v.pid, 0); err != nil {
		t.Fatalf("the running job: %v", err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(v.pid) + "/stat")
	if err != nil || bytes.Contains(stat, []byte(") Z ")) {
		t.Fatalf("the running job: %s %v", stat, err)
	}
	for id, j := range v.jobs {
		found, err := os.ReadDir(filepath.Join(v.d.state, "jobs", id))
		if err != nil {
			t.Errorf("the directory of job %s: %v", j.name, err)
			continue
		}
		var names []string
		for _, e := range found {
			names = append(names, e.Name())
		}
		for _, name := range []string{"exit.json", "exit-2.json", "log", "files.tar", "work.tar", "job.json"} {
			path := filepath.Join("jobs", id, name)
			if _, err := os.Stat(filepath.Join(v.backup, path)); err == nil && path != file && !slices.Contains(names, name) {
				t.Errorf("job %s: %s is gone", j.name, name)
			}
		}
	}
}

func (v *victim) checkJob(t *testing.T, c *client.Client, id string, want *victimJob, file string) {
	t.Helper()
	job, err := c.Job(t.Context(), id)
	if err != nil {
		t.Error(err)
		return
	}
	records := strings.HasPrefix(file, "joblet.")
	state := want.state
	if want.name == "secret" && (records || file == "secrets.key") && job.State == joblet.Canceled {
		if !strings.Contains(job.Reason, "secret") {
			t.Errorf("job %s is canceled: %s", want.name, job.Reason)
		}
		state = joblet.Canceled
	}
	if job.State != state || job.Spec.Name != want.name || job.Owner != "uid:0" || job.Attempt != want.attempts || time.Since(job.Created) > time.Hour {
		t.Errorf("job %s is %v (%s), %q of %s, attempt %d, created %v", want.name, job.State, job.Reason, job.Spec.Name, job.Owner, job.Attempt, job.Created)
	}
	if status, ended := job.Status(); ended && state != joblet.Canceled && status != want.status {
		t.Errorf("job %s has status %d, want %d", want.name, status, want.status)
	}
	if want.attempts > 0 && (len(job.Past) != want.attempts-1 || job.Started.IsZero()) {
		t.Errorf("job %s: past attempts %+v, started %v", want.name, job.Past, job.Started)
	}
	if filepath.Dir(file) == "jobs/"+id && strings.HasPrefix(filepath.Base(file), "log") {
		return
	}
	if want.attempts == 0 {
		return
	}
	var log strings.Builder
	for event, err := range c.Follow(t.Context(), id, joblet.LogOptions{}) {
		if err != nil {
			t.Errorf("the log of job %s: %v", want.name, err)
		}
		if out, ok := event.(client.Output); ok {
			log.Write(out.Data)
		}
	}
	if log.String() != want.log {
		t.Errorf("the log of job %s is %q", want.name, log.String())
	}
}

// TestOldRecords puts an old copy of the database back, as from a backup. What has
// happened since is in the jobs' directories: no attempt runs a second time, no
// job is missing, and none that runs is ended.
func TestOldRecords(t *testing.T) {
	t.Parallel()
	d := withState(t, "--max-concurrent=2")
	d.serve(t)
	submit := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(d.must(t, append([]string{"-d"}, args...)...))
	}
	const untilTold = "while [ ! -e /work/go ]; do sleep 0.05; done; "
	ran := submit("sh", "-c", untilTold+"echo ran; exit 4")
	runs := submit("sh", "-c", "echo runs; sleep 100000")
	queued := submit("--retry=1", "--retry-delay=10ms", "sh", "-c", "echo $JOBLET_ATTEMPT; [ $JOBLET_ATTEMPT = 2 ]")
	canceled := submit("--schedule=+10h", "true")
	waits := submit("--schedule=+10h", "true")
	deleted := submit("--schedule=+10h", "true")
	d.kill(t)
	backup := map[string][]byte{}
	for _, name := range []string{"joblet.db", "joblet.db-wal"} {
		data, err := os.ReadFile(filepath.Join(d.state, name))
		if err != nil {
			t.Fatal(err)
		}
		backup[name] = data
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, ``, ``, "job", "exec", ran, "touch", "/work/go")
	d.says(t, 4, `(?s).*`, ``, "job", "wait", ran)
	d.says(t, 0, `(?s).*`, ``, "job", "wait", queued)
	d.says(t, 0, `(?s).*`, ``, "job", "cancel", canceled)
	d.says(t, 0, `(?s).*`, ``, "job", "cancel", deleted)
	d.says(t, 0, `(?s).*`, ``, "job", "delete", deleted)
	later := submit("--name=later", "sh", "-c", "echo later; exit 6")
	d.says(t, 6, `(?s).*`, ``, "job", "wait", later)
	alsoRuns := submit("sh", "-c", "echo also; sleep 100000")
	v := &victim{d: d}
	pids := []int{v.job(t, runs).PID, v.job(t, alsoRuns).PID}
	d.kill(t)
	for name, data := range backup {
		if err := os.WriteFile(filepath.Join(d.state, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(d.state, "joblet.db-shm")); err != nil {
		t.Fatal(err)
	}
	d.stderr.Reset()
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if said := d.stderr.String(); !strings.Contains(said, "the job records lack changes") {
		t.Errorf("the daemon said %s", said)
	}
	for _, want := range []struct {
		id       string
		state    joblet.State
		status   int
		attempts int
		log      string
	}{
		{ran, joblet.Failed, 4, 1, "ran\n"},
		{queued, joblet.Completed, 0, 2, "1\n2\n"},
		{later, joblet.Failed, 6, 1, "later\n"},
		{runs, joblet.Running, 0, 1, "runs\n"},
		{alsoRuns, joblet.Running, 0, 1, "also\n"},
		{canceled, joblet.Canceled, 125, 0, ""},
		{waits, joblet.Scheduled, 0, 0, ""},
	} {
		job := v.job(t, want.id)
		if status, _ := job.Status(); job.State != want.state || status != want.status || job.Attempt != want.attempts || len(job.Past) != max(want.attempts-1, 0) {
			t.Errorf("job %v is %v (%s), status %d, attempt %d, past %+v; want %+v", job.Spec.CommandLine(), job.State, job.Reason, status, job.Attempt, job.Past, want)
		}
		d.says(t, 0, want.log, ``, "job", "log", want.id)
	}
	for i, id := range []string{runs, alsoRuns} {
		if pid := v.job(t, id).PID; pid != pids[i] || unix.Kill(pid, 0) != nil {
			t.Errorf("job %s ran as process %d and now as %d", id, pids[i], pid)
		}
	}
}

// TestExitRecordDamaged: a job whose exit record is damaged before a daemon has
// read it is LOST, and its reason says why.
func TestExitRecordDamaged(t *testing.T) {
	t.Parallel()
	d := withState(t)
	d.serve(t)
	for _, tt := range []struct {
		name   string
		damage func(data []byte) []byte
		reason string
	}{
		{"empty", func([]byte) []byte { return nil }, "exit.json is incomplete"},
		{"cut short", func(b []byte) []byte { return b[:len(b)/2] }, "exit.json is incomplete"},
		{"another status", func(b []byte) []byte { return bytes.Replace(b, []byte(`"code":3`), []byte(`"code":0`), 1) }, "the checksum of exit.json is wrong"},
		{"huge", func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }, "which is too many"},
	} {
		id := strings.TrimSpace(d.must(t, "-d", "--retry=2", "sh", "-c", "touch wait; echo out; while [ -e wait ]; do sleep 0.05; done; exit 3"))
		if !d.wrote(t, id, "out\n") {
			t.Fatal("the job says nothing")
		}
		v := &victim{d: d}
		work := fmt.Sprintf("/proc/%d/root/work", v.job(t, id).PID)
		d.kill(t)
		if err := os.Remove(work + "/wait"); err != nil {
			t.Fatal(err)
		}
		exit := filepath.Join(d.state, "jobs", id, "exit.json")
		if !eventually(patience, func() bool { _, err := os.Stat(work); return err != nil }) ||
			!eventually(patience, func() bool { _, err := os.Stat(exit); return err == nil }) {
			t.Fatal("the job does not end")
		}
		data, err := os.ReadFile(exit)
		if err != nil {
			t.Fatal(err)
		}
		damaged := tt.damage(bytes.Clone(data))
		if bytes.Equal(damaged, data) {
			t.Fatalf("%s: nothing to change in %s", tt.name, data)
		}
		if err := os.WriteFile(exit, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		d.says(t, 125, `(?s).*`, `(?s).*`, "job", "wait", id)
		if job := v.job(t, id); job.State != joblet.Lost || !strings.Contains(job.Reason, tt.reason) {
			t.Errorf("%s: the job is %v: %s", tt.name, job.State, job.Reason)
		}
		d.says(t, 0, "out\n", ``, "job", "log", id)
		if kept, err := os.ReadFile(exit); err != nil || !bytes.Equal(kept, damaged) {
			t.Errorf("%s: the damaged record is gone: %v", tt.name, err)
		}
	}
}
